"""Processes of one command that start together and end together."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_LAST_WORDS_SECONDS = 10.0


class CannotStart(Exception):
    """The system does not start the command; the message names it and says why."""


def run_together(
    command: Sequence[str],
    variables: Sequence[Mapping[str, str]],
    signals: Sequence[int],
    grace: float,
) -> list[int]:
    """Starts the command once for each of `variables` and waits until all have ended.

    Where one fails the others get `grace` seconds to end too, and so do all after a signal. What is
    left then is killed, with its children.

    Args:
      variables: of each process, beside those of this one.
      signals: those that arrived here; it may grow meanwhile, and each is passed on to all.

    Returns:
      The exit codes; negative: the signal that killed the process.

    Raises:
      CannotStart: a process could not be started; none is left.
    """
    several = len(variables) > 1
    processes: list[subprocess.Popen] = []
    try:
        for own in variables:
            processes.append(_start(command, own, piped=several))
        readers = [_pass_on(*numbered) for numbered in enumerate(processes)] if several else []
        _wait(processes, signals, grace)
    finally:
        _kill_what_is_left(processes)
    codes = [process.wait() for process in processes]
    for reader in readers:
        reader.join(_LAST_WORDS_SECONDS)
    _bury_orphans()
    return codes


def _start(command: Sequence[str], variables: Mapping[str, str], *, piped: bool):
    try:
        return subprocess.Popen(
            command,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else None,
            stderr=subprocess.STDOUT if piped else None,
            start_new_session=True,
            preexec_fn=_die_with_parent if _LIBC else None,
        )
    except OSError as error:
        raise CannotStart(f"{command[0]} cannot be started: {error.strerror}") from error


def _die_with_parent() -> None:
    """So that a supervisor that is killed leaves nobody behind who holds devices."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(processes: Sequence[subprocess.Popen], signals: Sequence[int], grace: float) -> None:
    """Until all have ended, or the grace of those that should have is over."""
    passed_on, deadline = 0, None
    while any(process.poll() is None for process in processes):
        # Here and not where they arrive: then some processes may not have been started.
        for number in signals[passed_on:]:
            for process in processes:
                process.send_signal(number)
            passed_on += 1
        failed = any(process.poll() for process in processes)
        if deadline is None and (failed or passed_on):
            # Processes of one run hear of each other's end in seconds, and may save.
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() >= deadline:
            return
        time.sleep(0.05)


def _kill_what_is_left(processes: Sequence[subprocess.Popen]) -> None:
    """Of the processes and their children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _bury_orphans() -> None:
    """The first process of a container inherits the children of those that were killed."""
    if os.getpid() == 1:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _pass_on(index: int, process: subprocess.Popen) -> threading.Thread:
    """Prints what a process prints, line by line, with its number in front."""

    def read() -> None:
        for line in process.stdout:
            whole = line if line.endswith(b"\n") else line + b"\n"  # a kill cut it short
            sys.stdout.buffer.write(b"[%d] " % index + whole)
            sys.stdout.buffer.flush()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader
