"""When a session ends before its run does: signals and limits, noticed between two steps."""

import signal
import time

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Turns SIGTERM and Ctrl-C into a wish that the training loop asks for.

    As a context manager it owns the two signals. A second one of a kind acts as it always does, so
    that a program that hangs can still be ended.
    """

    def __init__(self, max_steps: int | None = None, max_minutes: float | None = None):
        """`max_steps` is the number of the last step, not counted from where the session began."""
        self._max_steps = max_steps
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def is_urgent(self) -> bool:
        """Somebody waits for this process to end."""
        return self._signal is not None

    def reason(self, step: int) -> str | None:
        """Why no step may follow `step`; None to go on."""
        if self._signal:
            return self._signal
        if self._max_steps is not None and step >= self._max_steps:
            return "max_steps"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "max_minutes"
        return None

    def _note(self, number: int, _frame) -> None:
        self._signal = signal.Signals(number).name
        signal.signal(number, self._previous[number])
