"""What a run came to, in a few figures: state, progress, and where the time went."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from glm_jax.reporting.goodput import Goodput, goodput
from glm_jax.reporting.history import History, Line
from glm_jax.reporting.units import duration

_SILENCE = 900.0  # seconds without a line after which a run is not taken to be running


@dataclasses.dataclass(frozen=True)
class Overview:
    """The figures of a report's head.

    Attributes:
      state: running, finished, stopped, killed or empty.
      why: the rest of the sentence.
      tokens: in slots that are not padding, over the surviving steps.
      best: (validation loss, step).
      rate: median tokens per second.
      mfu: median share of the devices' peak, useful operations alone; None where no peak is known.
    """

    state: str
    why: str
    step: int
    steps: int
    tokens: float
    best: tuple[float, int] | None
    goodput: Goodput
    rate: float | None
    mfu: float | None


def overview(history: History, config: Mapping[str, Any], now: float) -> Overview:
    """Reads a run's state and progress off its history.

    Args:
      config: resolved, as nested dicts.
      now: Unix seconds; decides whether a run without a last word is still running.
    """
    training = config.get("training", {})
    state, why = _state(history, now)
    losses = [(line.number("loss"), line.step) for line in history.of("validation")]
    return Overview(
        state=state,
        why=why,
        step=max((line.step for line in history.lines if line.overwritten is None), default=0),
        steps=training.get("steps", 0),
        tokens=sum(line.number("tokens") or 0.0 for line in history.of("train")),
        best=min(((loss, step) for loss, step in losses if loss is not None), default=None),
        goodput=goodput(history.lines),
        rate=_median(history, "tokens_per_second"),
        mfu=_median(history, "mfu"),
    )


def _state(history: History, now: float) -> tuple[str, str]:
    if not history.lines:
        return "empty", "nothing was logged yet"
    last = history.lines[-1]
    if last.kind == "stopped":
        reason = str(last.values.get("reason", "no reason given"))
        return ("finished", "all steps done") if reason == "done" else ("stopped", reason)
    silence = now - last.time
    if silence < max(_SILENCE, 5 * _longest_pause(history)):
        return "running", f"last line {duration(max(0.0, silence))} ago"
    return "killed", f"or hung: silent for {duration(silence)}, without a last word"


def _median(history: History, name: str) -> float | None:
    """Of a figure over the surviving steps."""
    values = [line.number(name) for line in history.of("train")]
    return statistics.median([value for value in values if value] or [0]) or None


def _longest_pause(history: History) -> float:
    """Between two lines of one session."""
    pairs = zip(history.lines, history.lines[1:], strict=False)
    return max((b.time - a.time for a, b in pairs if not _begins_session(b)), default=0.0)


def _begins_session(line: Line) -> bool:
    return line.kind in ("started", "resumed", "fallback")
