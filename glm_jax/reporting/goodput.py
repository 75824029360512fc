"""Where the wall-clock time of a run went: goodput is the share spent in steps that stand.

All of it is read off the lines of `metrics.jsonl`. Steps after the last line of a session that was
killed left no trace: their time counts as time between sessions.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from glm_jax.reporting import units
from glm_jax.reporting.history import Line, read_history

STANDING, AGAIN, SKIPPED, INPUT, SAVING, LOOKING, STARTING, BETWEEN, REST = CAUSES = (
    "steps that stand",
    "steps done again",
    "bad steps",
    "waiting for input",
    "saving",
    "validation and samples",
    "starting and compiling",
    "between sessions",
    "all else",
)
_BEGINNINGS = ("started", "resumed")
_SECONDS = {
    "saved": SAVING,
    "stopped": SAVING,  # for the last checkpoint to be whole
    "validation": LOOKING,
    "samples": LOOKING,
    "rewound": STARTING,
}


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Seconds by cause, in the order of CAUSES; together they are the wall-clock time.

    Attributes:
      wall: seconds from the start of the first session to the last line.
      spent: seconds by cause.
    """

    wall: float
    spent: dict[str, float]

    @property
    def share(self) -> float | None:
        """The goodput; None where no time has passed, or none of it was measured.

        Every session that measures has seconds for its start; runs of older versions have none.
        """
        is_measured = self.spent[STANDING] + self.spent[STARTING] > 0
        return self.spent[STANDING] / self.wall if self.wall and is_measured else None

    def values(self) -> dict[str, Any]:
        """For the line of an event."""
        return {"goodput": self.share, "wall_seconds": self.wall, "spent_seconds": self.spent}

    def describe(self) -> str:
        """One line, the largest losses first."""
        losses = {name: s for name, s in self.spent.items() if name != STANDING and s > 0}
        lost = [
            f"{name} {units.percent(losses[name] / self.wall)}"
            for name in sorted(losses, key=losses.get, reverse=True)
        ]
        share = f"goodput {units.percent(self.share)} of {units.duration(self.wall)}"
        return f"{share}; lost to: {', '.join(lost)}" if lost else share


def goodput(lines: Sequence[Line]) -> Goodput:
    """Where the time went that these lines, in the order they were written, tell of."""
    if not lines:
        return Goodput(0.0, dict.fromkeys(CAUSES, 0.0))
    spent = dict.fromkeys(CAUSES, 0.0)
    for line in lines:
        for cause, seconds in _spent(line):
            spent[cause] += max(0.0, seconds)
    for begin, pause in _starts(lines):
        spent[STARTING] += begin
        spent[BETWEEN] += pause
    wall = _wall(lines)
    spent[REST] = max(0.0, wall - sum(spent.values()))
    return Goodput(wall, spent)


def goodput_of_session(workdir: Path, last: Line) -> Goodput:
    """The goodput of the newest session of a run, which ends with `last`."""
    lines = [*read_history(workdir / "metrics.jsonl").lines, last]
    first = max((i for i, line in enumerate(lines) if line.kind in _BEGINNINGS), default=0)
    return goodput(lines[first:])


def _spent(line: Line) -> Iterable[tuple[str, float]]:
    """(cause, seconds) that a line tells of."""
    number = functools.partial(_number, line)
    if line.kind != "train":
        if line.kind in _SECONDS:
            yield _SECONDS[line.kind], number("seconds")
        if line.kind == "rewound":
            yield AGAIN, number("lost_seconds")
        return
    yield STARTING, number("compile_seconds")
    if line.overwritten is not None:
        yield AGAIN, number("seconds")
        return
    waited, skipped = number("input_wait") * number("seconds"), number("skipped_seconds")
    yield INPUT, waited
    yield SKIPPED, skipped
    yield STANDING, number("seconds") - waited - skipped


def _starts(lines: Sequence[Line]) -> Iterable[tuple[float, float]]:
    """Seconds of every session before its first line, and since the last line of the one before."""
    last_alive = None
    for line in lines:
        if line.kind in _BEGINNINGS:
            start = _number(line, "start_seconds")
            pause = line.time - start - last_alive if last_alive is not None else 0.0
            yield start, max(0.0, pause)
        if line.kind != "fallback":  # a session that resumes writes it before its first line
            last_alive = line.time


def _wall(lines: Sequence[Line]) -> float:
    beginnings = (line.time - _number(line, "start_seconds") for line in lines)
    return max(line.time for line in lines) - min(beginnings)


def _number(line: Line, name: str) -> float:
    return line.number(name) or 0.0
