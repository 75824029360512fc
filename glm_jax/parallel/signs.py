"""Signs of life: where each process of a run is in its program, and since when."""

import contextlib
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from glm_jax.parallel.hosts import Hosts

STEP = "step"
"""The phase in which a process waits for all others."""

_ALIVE = "glm_jax/alive"
_SLOW_INPUT = 0.2  # of a step: worth to be said


@dataclasses.dataclass(frozen=True)
class Sign:
    """Where a process is.

    Attributes:
      step: in flight, or the next one.
      rows: of its batch, first and end.
      since: when its loop came here, in Unix seconds.
      input_wait: share of its last reported steps that it waited for rows.
    """

    phase: str
    step: int
    rows: tuple[int, int] | None
    since: float
    input_wait: float = 0.0

    def describe(self, now: float) -> str:
        """As in "waiting for input of step 7 for 12 s"."""
        return f"{self.phase} of step {self.step} for {now - self.since:.0f} s"


class SignFile:
    """The last sign of this process in `<folder>/<index>.json`, once there is a folder."""

    def __init__(self, hosts: Hosts):
        self.folder: Path | None = None
        self._name = str(hosts.index)
        self._about = {"host": hosts.names[hosts.index], "pid": os.getpid()}
        self._about["process"] = hosts.index

    def write(self, sign: Sign, failure: str | None = None) -> None:
        """Writes it whole; storage that is away is no reason to end."""
        if self.folder is None:
            return
        values = self._about | dataclasses.asdict(sign) | {"time": time.time(), "failure": failure}
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            temporary = self.folder / f".{self._name}.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(values) + "\n")
            temporary.replace(self.folder / f"{self._name}.json")


def _progress(sign: Sign) -> tuple[int, bool, float]:
    """Orders processes by how far they are."""
    return sign.step, sign.phase == STEP, sign.since


class _Seen(NamedTuple):
    number: int
    sign: Sign
    at: float  # on this process's clock, when it was new


class Signs:
    """The last sign of every process, as far as this one has heard."""

    def __init__(self, hosts: Hosts):
        self._hosts = hosts
        self._number = 0
        self._seen: dict[int, _Seen] = {}

    def exchange(self, sign: Sign) -> None:
        """Gives this process's sign and reads the others'.

        Raises:
          jax.errors.JaxRuntimeError: process 0, which keeps them, does not answer.
        """
        self._number += 1
        value = json.dumps([self._number, dataclasses.asdict(sign)])
        mine = f"{_ALIVE}/{self._hosts.index}"
        self._hosts.store.key_value_set(mine, value, allow_overwrite=True)
        for key, text in self._hosts.store.key_value_dir_get(_ALIVE):
            index, (number, values) = int(key.rpartition("/")[2]), json.loads(text)
            if index not in self._seen or self._seen[index].number != number:
                self._seen[index] = _Seen(number, Sign(**values), time.monotonic())

    def slowest_input(self) -> tuple[str, float] | None:
        """Who waits for rows, and its share, where that holds up the others, who wait less.

        A step begins when the last process has its rows; that a device is slow nobody's clock
        tells.
        """
        waits = {index: seen.sign.input_wait for index, seen in self._seen.items()}
        if len(waits) < 2:
            return None
        slowest = max(waits, key=waits.get)
        others = statistics.median(wait for index, wait in waits.items() if index != slowest)
        if waits[slowest] < _SLOW_INPUT or waits[slowest] < 2 * others:
            return None
        return self._hosts.describe(slowest), waits[slowest]

    def others_alive(self, limit: float) -> set[int]:
        """The other processes, but those not heard from any more for `limit` seconds."""
        now = time.monotonic()
        gone = {index for index, seen in self._seen.items() if now - seen.at >= limit}
        return set(range(self._hosts.count)) - gone - {self._hosts.index}

    def silent(self, limit: float) -> str | None:
        """The process that was not heard from for the longest, if that is over `limit` seconds."""
        if not self._seen:
            return None
        index, seen = min(self._seen.items(), key=lambda item: item[1].at)
        silence = time.monotonic() - seen.at
        if silence <= limit:
            return None
        last = f"last {seen.sign.phase} of step {seen.sign.step}"
        return f"{self._hosts.describe(index)}, not heard from for {silence:.0f} s ({last}),"

    def first_to_stand_still(self, now: float) -> str:
        """For whom the others wait, if there are others: they do so in a step."""
        if len(self._seen) < 2:
            return ""
        signs = {index: seen.sign for index, seen in self._seen.copy().items()}
        first = min(signs, key=lambda index: _progress(signs[index]))
        who, where = self._hosts.describe(first), signs[first].describe(now)
        return f"; first to stand still: {who}, {where}"
