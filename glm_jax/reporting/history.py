"""`metrics.jsonl` as series and events, with the steps that were trained again told apart.

After a crash or a rewind the file holds the same steps twice. What a later `started`, `resumed` or
`rewound` line took back is kept, but marked as overwritten.
"""

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FIGURES = ("train", "validation")
_LARGEST = sys.float_info.max
_CUTS = ("started", "resumed", "rewound")

Points = list[tuple[float, float | None]]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the file.

    Attributes:
      time: Unix seconds.
      overwritten: number of the session or rewind that took the line back; None where it stands.
    """

    step: int
    kind: str
    time: float
    values: dict[str, Any]
    overwritten: int | None = None

    def number(self, name: str) -> float | None:
        """The value as a number; None if it is absent, was not finite or is something else."""
        return as_number(self.values.get(name))


@dataclasses.dataclass(frozen=True)
class Series:
    """A figure over steps.

    Attributes:
      points: of the surviving history; None where the figure was not finite.
      overwritten: the stretches that were trained again.
    """

    points: Points
    overwritten: list[Points]


@dataclasses.dataclass(frozen=True)
class History:
    """The lines of a run in the order they were written.

    Attributes:
      unreadable: lines that were left out, such as one cut short by a crash.
    """

    lines: list[Line]
    unreadable: int = 0

    @functools.cached_property
    def _by_kind(self) -> dict[str, list[Line]]:
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.kind, []).append(line)
        return found

    def of(self, *kinds: str) -> list[Line]:
        """Surviving lines, kind by kind."""
        lines = itertools.chain.from_iterable(self._by_kind.get(kind, ()) for kind in kinds)
        return [line for line in lines if line.overwritten is None]

    @property
    def events(self) -> list[Line]:
        """Everything that happened, overwritten or not, figures and samples aside."""
        return [line for line in self.lines if line.kind not in (*FIGURES, "samples")]

    def groups(self, name: str) -> list[str]:
        """What a figure is told apart by: token and zh for loss/token and loss/zh."""
        found = {key for line in self.of(*FIGURES) for key in line.values}
        return sorted(key.removeprefix(f"{name}/") for key in found if key.startswith(f"{name}/"))

    def series(self, kind: str, name: str) -> Series:
        """A figure of one kind of line; where a step comes twice, the later line stands."""
        lines = [line for line in self._by_kind.get(kind, ()) if name in line.values]
        kept = {line.step: line.number(name) for line in lines if line.overwritten is None}
        gone = (line for line in lines if line.overwritten is not None)
        stretches = itertools.groupby(gone, key=lambda line: line.overwritten)
        return Series(
            sorted(kept.items()),
            [[(line.step, line.number(name)) for line in stretch] for _, stretch in stretches],
        )


def read_history(path: Path) -> History:
    """Reads `metrics.jsonl`; a file that is not there is an empty history."""
    objects, unreadable = read_json_lines(path)
    lines = [line for line in map(_line, objects) if line is not None]
    return History(_mark_overwritten(lines), unreadable + len(objects) - len(lines))


def read_json_lines(path: Path) -> tuple[list[dict], int]:
    """The JSON objects of a file and the number of its lines that are something else."""
    if not path.exists():
        return [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        parsed = [_object(line) for line in file if line.strip()]
    objects = [value for value in parsed if value is not None]
    return objects, len(parsed) - len(objects)


def as_number(value: Any) -> float | None:
    """A finite JSON number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= _LARGEST else None  # false for NaN too


def taken_back_to(line: Line) -> int:
    """The last step that stands after a started, resumed or rewound line."""
    return int(min(line.step, line.number("from_step") or line.step))


def _object(text: str) -> dict | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(value: Mapping[str, Any]) -> Line | None:
    values = dict(value)
    step, kind, time = (values.pop(name, None) for name in ("step", "kind", "time"))
    numbers = (as_number(step), as_number(time))
    if None in numbers or not isinstance(step, int) or not isinstance(kind, str):
        return None
    return Line(step, kind, time, values)


def _mark_overwritten(lines: Iterable[Line]) -> list[Line]:
    marked: list[Line] = []
    cuts = 0
    for line in lines:
        if line.kind in _CUTS:
            cuts += 1
            last = taken_back_to(line)
            marked = [
                dataclasses.replace(earlier, overwritten=cuts)
                if earlier.overwritten is None and earlier.step > last
                else earlier
                for earlier in marked
            ]
        marked.append(line)
    return marked
