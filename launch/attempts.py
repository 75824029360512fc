"""What became of the attempts at a run, and what that says about the next one."""

import json
import shlex
import signal
from pathlib import Path
from typing import NamedTuple

RESTART = 42


class Sight(NamedTuple):
    """Where a run was when its processes ended: the furthest of `<workdir>/hosts/*.json`."""

    step: int
    rows: tuple[int, int] | None
    failure: str | None


class Attempt(NamedTuple):
    """What became of the processes that were started together."""

    began: float  # Unix seconds
    codes: list[int]  # by process; negative: the signal that killed it
    sight: Sight | None  # None: the run left no sign of life


class History:
    """What the attempts so far say about the next one.

    Attributes:
      fruitless: restarts since the run last got further than it had been.
      alike: attempts in a row that ended at the same step.
    """

    def __init__(self):
        self.fruitless = -1  # the first attempt is no restart
        self.alike = 0
        self._furthest = -1
        self._first_alike: Attempt | None = None

    def add(self, attempt: Attempt) -> None:
        step = attempt.sight.step if attempt.sight else -1
        self.fruitless = 0 if step > self._furthest else self.fruitless + 1
        self._furthest = max(step, self._furthest)
        if self._first_alike and are_alike(self._first_alike, attempt):
            self.alike += 1
        else:
            self._first_alike, self.alike = attempt, 1


def are_alike(one: Attempt, other: Attempt) -> bool:
    """Whether two attempts ended at the same place; a kill leaves a sign that is a second old."""
    if one.sight is None or other.sight is None:
        return one.sight is other.sight
    return abs(one.sight.step - other.sight.step) <= 1


def is_waiting(attempt: Attempt) -> bool:
    """Whether the command only asked to be started again, as when another host is not there yet."""
    return attempt.sight is None and RESTART in attempt.codes


def crash_loop(attempt: Attempt, alike: int, workdir: Path | None) -> str:
    if attempt.sight is None:
        return f"crash loop: {alike} times in a row the command ended before it trained"
    step, rows, _ = attempt.sight
    said = f"crash loop: {alike} times in a row the run ended at step {step}"
    if rows is None:
        return said
    of_run = f"--workdir={shlex.quote(str(workdir))}"
    show = f"python -m glm_jax.prepare --show={rows[0]}:{rows[1]} {of_run}"
    return f"{said}, rows {rows[0]} to {rows[1] - 1}; {show} shows them"


def in_words(attempt: Attempt) -> str:
    codes = ", ".join(map(in_a_word, attempt.codes))
    which = "process" if len(attempt.codes) == 1 else "processes"
    if attempt.sight is None:
        return f"{which} ended with {codes}"
    failure = f" ({attempt.sight.failure})" if attempt.sight.failure else ""
    return f"{which} ended with {codes} at step {attempt.sight.step}{failure}"


def in_a_word(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else str(code)


def last_sight(workdir: Path | None, since: float) -> Sight | None:
    """The furthest step of the signs of life that the processes of an attempt left."""
    found = []
    for path in sorted((workdir / "hosts").glob("*.json")) if workdir else ():
        try:
            sign = json.loads(path.read_bytes())
            if sign["time"] >= since:
                rows = sign["rows"] and tuple(sign["rows"])
                found.append(Sight(sign["step"], rows, sign["failure"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a kill cut it short
    furthest = max(found, key=lambda sight: sight.step, default=None)
    failures = [sight.failure for sight in found if sight.failure]
    return furthest and furthest._replace(failure=next(iter(failures), None))
