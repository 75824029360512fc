"""Training in a process of its own that a test can hit at a chosen moment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from commands import ROOT

_DEADLINE = 180.0


class Training:
    """`python -m glm_jax.train` on the recipe beside this file."""

    def __init__(
        self,
        data_dir: Path,
        workdir: Path,
        *flags: str,
        devices: int = 1,
        variables: Mapping[str, str] = MappingProxyType({}),
        logs: Path | None = None,
    ):
        self.workdir = workdir
        virtual = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_backend_optimization_level=0 {virtual}",
            "PYTHONUNBUFFERED": "1",
        }
        environment |= variables
        command = ["-m", "glm_jax.train", f"--config={ROOT}/tests/faults/recipe.py"]
        command += [f"--config.data.dir={data_dir}", f"--workdir={workdir}", *flags]
        number = variables.get("JAX_PROCESS_ID", "")
        self._output = (logs or workdir.parent) / f"{workdir.name}{number}.log"
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
        self.send(number)
        return self.wait()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def signal_group(self, number: int) -> int:
        """Sends the signal to the process and its children; returns the exit code."""
        os.killpg(self._process.pid, number)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(_DEADLINE)

    def kill(self) -> None:
        """Whatever state it is in."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Together:
    """Processes that train together, two by default with two devices each."""

    def __init__(
        self,
        data_dir: Path,
        workdir: Path,
        *flags: str,
        count: int = 2,
        devices: int = 2,
        port: int | None = None,
        fault: str = "",
        of_last: Mapping[str, str] = MappingProxyType({}),
        flags_of_last: Sequence[str] = (),
        absent: int | None = None,
        logs: Path | None = None,
    ):
        """Starts them.

        Args:
          fault: one of the recipe.
          of_last: variables of the last process alone.
          flags_of_last: its flags.
          absent: a process that is not started.
          logs: folder of what they print; None: beside the run's.
        """
        self.workdir, address = workdir, f"localhost:{port or free_port()}"
        self.all = [
            Training(
                data_dir,
                workdir,
                *flags,
                *(flags_of_last if index == count - 1 else ()),
                devices=devices,
                variables={
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                    "FAULT": fault,
                    **(of_last if index == count - 1 else {}),
                },
                logs=logs,
            )
            for index in range(count)
            if index != absent
        ]

    def __getitem__(self, index: int) -> Training:
        return self.all[index]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        self.all[0].wait_until(condition)

    def wait(self) -> list[int]:
        return [training.wait() for training in self.all]

    def printed(self) -> str:
        return "\n".join(training.printed() for training in self.all)

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *_) -> None:
        for training in self.all:
            training.kill()


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


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
