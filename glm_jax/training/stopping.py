"""When a session ends before its run does: signals and limits."""

import os
import signal
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Turns SIGTERM and Ctrl-C into a wish that the training loop asks for.

    As a context manager it owns the two signals. A second one of a kind acts as it always does, so
    that a program that hangs can still be ended.
    """

    def __init__(self, max_steps: int | None = None, max_minutes: float | None = None):
        """`max_steps` is the number of the last step, not counted from where the session began."""
        self.max_steps = max_steps
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal: str | None = None
        self._previous: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> "Stopping":
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        for end in self._pipe:
            os.close(end)
        self._pipe = None

    def wish(self) -> str | None:
        """Why this process is to end; None to go on. For any thread, at any time.

        Python calls a handler only between two of its own instructions, which may be minutes away
        while a program is compiled: what came through the pipe is known at once.
        """
        if self._signal is None and self._pipe is not None:
            try:
                noted = os.read(self._pipe[0], 64)
            except BlockingIOError:
                noted = b""
            if numbers := [number for number in noted if number in SIGNALS]:
                self._signal = signal.Signals(numbers[0]).name
        if self._signal:
            return self._signal
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "max_minutes"
        return None

    def _note(self, number: int, _frame) -> None:
        self._signal = signal.Signals(number).name
        signal.signal(number, self._previous[number])


def is_urgent(reason: str | None) -> bool:
    """Whether somebody waits for the process to end."""
    return reason in {number.name for number in SIGNALS}
