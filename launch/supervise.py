"""Starts a training command on this machine, and again when it asks for that.

    python launch/supervise.py [--num_processes=N] [--devices_per_process=K] ... -- COMMAND

COMMAND is the same line everywhere: `python -m glm_jax.train --config=... --workdir=...`. With one
process, the default, this is what a container or a host of a pod runs. With several, each gets its
number through the environment (launch/README.md). Exit codes of COMMAND: 0 done, 2 a mistake that
somebody has to mend; after everything else, as 42 or a kill, it is started again. Only the standard
library is needed.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attempts import RESTART, Attempt, History, crash_loop, in_words, is_waiting, last_sight
from processes import CannotStart, run_together

DONE, MISTAKE = 0, 2
LONGEST_PAUSE = 300.0


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    if options.dry_run:
        for index in range(options.num_processes):
            print(describe(options, index))
        return DONE
    check_that_it_can_start(options)
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
    add, a_count = parser.add_argument, at_least(1)
    add("--num_processes", type=a_count, default=1, help="processes on this machine")
    add("--devices_per_process", type=a_count, help="virtual CPU devices of each")
    add("--port", type=a_count, help="where several processes meet; by default a free one")
    add("--max_restarts", type=at_least(0), default=20, help="in a row that bring a run no further")
    add("--same_step_limit", type=a_count, default=3, help="failures in a row at one step")
    add("--pause", type=seconds, default=2.0, help="seconds before a restart, doubling")
    add("--grace", type=seconds, default=300.0, help="seconds to save before a kill")
    add("--dry_run", "--dry-run", action="store_true", help="print the commands, start nothing")
    own, command = split_at_dashes(arguments)
    options = parser.parse_args(own)
    if not command:
        fail("nothing to run: give the command after --, as in -- python -m glm_jax.train ...")
    if options.port and options.num_processes == 1:
        fail(f"--port={options.port} is for several processes: --num_processes is 1")
    options.command = command
    options.workdir = workdir_of(command)
    return options


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value


def check_that_it_can_start(options: argparse.Namespace) -> None:
    """Whether the command is one and the port is free; ends with one line if not."""
    if shutil.which(options.command[0]) is None:
        fail(f"{options.command[0]} is not a command")
    if options.port:
        try:
            socket.create_server(("", options.port)).close()
        except (OSError, OverflowError) as error:
            fail(f"--port={options.port} cannot be used: {error}")


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
    assigned = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*assigned, shlex.join(options.command)])


class Supervisor:
    """Attempts, one after another, until one is the last."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._signals: list[int] = []
        self._wake = threading.Event()

    def stop(self, number: int, _frame) -> None:
        """A signal for this process is one for all; a second one is passed on too."""
        self._signals.append(number)
        self._wake.set()

    def run(self) -> int:
        """Starts the command as often as it takes; returns the exit code."""
        options, history, restarts = self._options, History(), 0
        while True:
            attempt = self._attempt()
            code = verdict(attempt.codes)
            history.add(attempt)
            if code in (DONE, MISTAKE) or self._signals:
                return self._finish(attempt, code, "ended")
            if history.alike >= options.same_step_limit and not is_waiting(attempt):
                say(crash_loop(attempt, history.alike, options.workdir))
                return self._finish(attempt, MISTAKE, "crash loop")
            if history.fruitless == options.max_restarts:
                say(f"gave up: {options.max_restarts} restarts in a row brought the run no further")
                return self._finish(attempt, code, "gave up")
            pause = min(LONGEST_PAUSE, options.pause * 2.0 ** min(history.fruitless, 30))
            restarts += 1
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
        """Starts all processes and waits until they have ended."""
        options, began = self._options, time.time()
        port = options.port or free_port()
        variables = [environment(options, index, port) for index in range(options.num_processes)]
        try:
            codes = run_together(options.command, variables, self._signals, options.grace)
        except CannotStart as error:
            fail(str(error))
        return Attempt(began, codes, last_sight(options.workdir, began))

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


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def say(message: str) -> None:
    print(f"supervise: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
