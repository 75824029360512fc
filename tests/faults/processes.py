"""Training in a process of its own that a test can hit at a chosen moment."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from commands import ROOT

_DEADLINE = 180.0


class Training:
    """`python -m glm_jax.train` on the recipe beside this file."""

    def __init__(self, data_dir: Path, workdir: Path, *flags: str):
        self.workdir = workdir
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONUNBUFFERED": "1",
        }
        command = ["-m", "glm_jax.train", f"--config={ROOT}/tests/faults/recipe.py"]
        command += [f"--config.data.dir={data_dir}", f"--workdir={workdir}", *flags]
        self._output = workdir.parent / f"{workdir.name}.log"
        self._printed_before = self._output.stat().st_size if self._output.exists() else 0
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=self._output.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def printed(self) -> str:
        return self._output.read_bytes()[self._printed_before :].decode(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns as soon as the condition holds; fails if the process ends first."""
        deadline = time.monotonic() + _DEADLINE
        while not condition():
            assert self._process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.002)

    def signal(self, number: int) -> int:
        """Sends the signal and returns the exit code."""
        self._process.send_signal(number)
        return self.wait()

    def signal_group(self, number: int) -> int:
        """Sends the signal to the process and its children; returns the exit code."""
        os.killpg(self._process.pid, number)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(_DEADLINE)


def lines(workdir: Path, kind: str) -> list[dict]:
    """The lines of one kind in metrics.jsonl, but for one that a kill cut short."""
    path = workdir / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if values["kind"] == kind:
            found.append(values)
    return found


def last_step(workdir: Path) -> int:
    return max((line["step"] for line in lines(workdir, "train")), default=0)


def curve(workdir: Path) -> dict[int, float]:
    """Loss by step; of a step that was trained again, the last."""
    return {line["step"]: line["loss"] for line in lines(workdir, "train")}


def is_saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
