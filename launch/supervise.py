"""Starts a training command on this machine, and again when it asks for that.

    python launch/supervise.py [--num_processes=N] [--devices_per_process=K] ... -- COMMAND

COMMAND is the same line everywhere: `python -m glm_jax.train --config=... --workdir=...`. With one
process, the default, this is what a container or a host of a pod runs. With several, each gets its
number through the environment (launch/README.md). Exit codes of COMMAND: 0 done, 2 a mistake that
somebody has to mend; after everything else, as 42 or a kill, it is started again. Only the standard
library is needed.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DONE, MISTAKE, RESTART = 0, 2, 42
LONGEST_PAUSE = 300.0

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


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


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    if options.dry_run:
        for index in range(options.num_processes):
            print(describe(options, index))
        return DONE
    supervisor = Supervisor(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.stop)
    return supervisor.run()


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with `command` and `workdir`; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="supervise.py",
        description="Starts a training command, and again when it asks for that.",
        usage="%(prog)s [options] -- COMMAND",
    )
    parser.error = fail
    add = parser.add_argument
    add("--num_processes", type=positive(int), default=1, help="processes on this machine")
    add("--devices_per_process", type=positive(int), help="virtual CPU devices of each")
    add("--port", type=positive(int), help="of process 0, of several; by default a free one")
    add("--max_restarts", type=int, default=100, help="restarts in all")
    add("--same_step_limit", type=positive(int), default=3, help="failures in a row at one step")
    add("--pause", type=positive(float), default=2.0, help="seconds before a restart, doubling")
    add("--grace", type=positive(float), default=300.0, help="seconds to save before a kill")
    add("--dry_run", "--dry-run", action="store_true", help="print the commands, start nothing")
    own, command = split_at_dashes(arguments)
    options = parser.parse_args(own)
    if not command:
        fail("nothing to run: give the command after --, as in -- python -m glm_jax.train ...")
    if shutil.which(command[0]) is None:
        fail(f"{command[0]} is not a command")
    options.command = command
    options.workdir = workdir_of(command)
    return options


def positive(kind: type):
    def parse(text: str):
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    return parse


def split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return list(arguments), []
    place = list(arguments).index("--")
    return list(arguments[:place]), list(arguments[place + 1 :])


def workdir_of(command: Sequence[str]) -> Path | None:
    """The --workdir of the command; without one nothing is known of its steps."""
    for argument, following in zip(command, [*command[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--workdir", "-workdir"):
            return Path(value if equals else following or "")
    return None


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(MISTAKE)


def environment(options: argparse.Namespace, index: int, port: int | str) -> dict[str, str]:
    """The variables that a process gets beside those that are there."""
    added = {}
    if options.num_processes > 1:
        added["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        added["JAX_NUM_PROCESSES"] = str(options.num_processes)
        added["JAX_PROCESS_ID"] = str(index)
    if options.devices_per_process:
        devices = f"--xla_force_host_platform_device_count={options.devices_per_process}"
        added["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
        added["JAX_PLATFORMS"] = "cpu"
    return added


def describe(options: argparse.Namespace, index: int) -> str:
    """The command of a process as a shell would take it."""
    variables = environment(options, index, options.port or "PORT")
    return shlex.join([*(f"{name}={value}" for name, value in variables.items()), *options.command])


class Supervisor:
    """Attempts, one after another, until one is the last."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._processes: list[subprocess.Popen] = []
        self._asked_to_stop: int | None = None
        self._wake = threading.Event()

    def stop(self, number: int, _frame) -> None:
        """A signal for this process is one for all; a second one is passed on too."""
        self._asked_to_stop = number
        for process in self._processes:
            process.send_signal(number)
        self._wake.set()

    def run(self) -> int:
        """Starts the command as often as it takes; returns the exit code."""
        restarts, alike, before = 0, 0, None
        while True:
            attempt = self._attempt()
            code = verdict(attempt.codes)
            alike = alike + 1 if before and are_alike(before, attempt) else 1
            before = attempt
            if code in (DONE, MISTAKE) or self._asked_to_stop is not None:
                return self._finish(attempt, code, "ended")
            if alike >= self._options.same_step_limit and not is_waiting(attempt):
                say(crash_loop(attempt, alike, self._options.workdir))
                return self._finish(attempt, MISTAKE, "crash loop")
            if restarts == self._options.max_restarts:
                say(f"gave up after {restarts} restarts")
                return self._finish(attempt, code, "gave up")
            restarts += 1
            pause = min(LONGEST_PAUSE, self._options.pause * 2.0 ** min(alike - 1, 30))
            say(f"restart {restarts} in {pause:g} s: {in_words(attempt)}")
            self._remember(attempt, "restart")
            if self._wake.wait(pause):
                return self._finish(attempt, code, "ended")

    def _finish(self, attempt: Attempt, code: int, decision: str) -> int:
        self._remember(attempt, decision)
        if code:
            say(f"ends with {code}: {in_words(attempt)}")
        return code

    def _attempt(self) -> Attempt:
        """Starts all processes and waits for them; where one fails the others end too."""
        began, port = time.time(), self._options.port or free_port()
        try:
            for index in range(self._options.num_processes):
                self._processes.append(self._start(index, port))
            self._wait()
        finally:
            self._kill_what_is_left()
        codes = [process.wait() for process in self._processes]
        self._processes = []
        return Attempt(began, codes, last_sight(self._options.workdir, began))

    def _start(self, index: int, port: int) -> subprocess.Popen:
        process = subprocess.Popen(
            self._options.command,
            env=os.environ | environment(self._options, index, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._options.num_processes > 1 else None,
            stderr=subprocess.STDOUT if self._options.num_processes > 1 else None,
            start_new_session=True,
            preexec_fn=_die_with_parent if _LIBC else None,
        )
        if process.stdout is not None:
            threading.Thread(target=pass_on, args=(index, process), daemon=True).start()
        return process

    def _wait(self) -> None:
        """Until all have ended, or the grace of those that should have is over."""
        deadline = None
        while any(process.poll() is None for process in self._processes):
            failed = any(process.poll() for process in self._processes)
            if deadline is None and (failed or self._asked_to_stop is not None):
                # Processes of one run hear of each other's end in seconds, and may save.
                deadline = time.monotonic() + self._options.grace
            if deadline is not None and time.monotonic() >= deadline:
                return
            time.sleep(0.05)

    def _kill_what_is_left(self) -> None:
        """Of the processes and their children."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _remember(self, attempt: Attempt, decision: str) -> None:
        """A line in `<workdir>/restarts.jsonl`, once there is a run."""
        workdir = self._options.workdir
        if workdir is None or not workdir.is_dir():
            return
        values = attempt._asdict() | {"ended": time.time(), "decision": decision}
        values["sight"] = attempt.sight and attempt.sight._asdict()
        try:
            with (workdir / "restarts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            say(f"{workdir}/restarts.jsonl cannot be written: {error}")


def verdict(codes: Sequence[int]) -> int:
    """The exit code of processes that ran together."""
    if MISTAKE in codes:
        return MISTAKE
    return DONE if not any(codes) else RESTART


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
    show = f"python -m glm_jax.prepare --show={rows[0]}:{rows[1]} --workdir={workdir}"
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


def pass_on(index: int, process: subprocess.Popen) -> None:
    """Prints what a process prints, line by line, with its number in front."""
    for line in process.stdout:
        sys.stdout.buffer.write(b"[%d] " % index + line)
        sys.stdout.buffer.flush()


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def say(message: str) -> None:
    print(f"supervise: {message}", flush=True)


def _die_with_parent() -> None:
    """So that a supervisor that is killed leaves nobody behind who holds devices."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
