"""What a run came to, in a few figures: state, progress, and where the time went."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

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
      wall: seconds from the first line to the last.
      shares: what the wall time was spent on, as (name, seconds), all of it.
      rate: median tokens per second.
    """

    state: str
    why: str
    step: int
    steps: int
    tokens: float
    best: tuple[float, int] | None
    wall: float
    shares: list[tuple[str, float]]
    rate: float | None

    @property
    def training_share(self) -> float | None:
        return self.shares[0][1] / self.wall if self.wall else None


def overview(history: History, config: Mapping[str, Any], now: float) -> Overview:
    """Reads a run's state and progress off its history.

    Args:
      config: resolved, as nested dicts.
      now: Unix seconds; decides whether a run without a last word is still running.
    """
    training = config.get("training", {})
    state, why = _state(history, now)
    rates = [line.number("tokens_per_second") for line in history.of("train")]
    losses = [(line.number("loss"), line.step) for line in history.of("validation")]
    windows = _windows(history)
    return Overview(
        state=state,
        why=why,
        step=max((line.step for line in history.lines if line.overwritten is None), default=0),
        steps=training.get("steps", 0),
        tokens=sum(tokens for line, tokens, _ in windows if line.overwritten is None),
        best=min(((loss, step) for loss, step in losses if loss is not None), default=None),
        wall=_wall(history),
        shares=_shares(history, windows),
        rate=statistics.median([rate for rate in rates if rate] or [0]) or None,
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


def _longest_pause(history: History) -> float:
    """Between two lines of one session."""
    pairs = zip(history.lines, history.lines[1:], strict=False)
    return max((b.time - a.time for a, b in pairs if not _begins_session(b)), default=0.0)


def _begins_session(line: Line) -> bool:
    return line.kind in ("started", "resumed", "fallback")


def _wall(history: History) -> float:
    times = [line.time for line in history.lines]
    return max(times) - min(times) if times else 0.0


def _windows(history: History) -> list[tuple[Line, float, float]]:
    """(line, tokens, seconds) of the steps behind each train line."""
    windows = []
    for line in (line for line in history.lines if line.kind == "train"):
        tokens, rate = line.number("tokens") or 0.0, line.number("tokens_per_second")
        windows.append((line, tokens, tokens / rate if rate else 0.0))
    return windows


def _shares(history: History, windows: list[tuple[Line, float, float]]) -> list[tuple[str, float]]:
    kept = sum(seconds for line, _, seconds in windows if line.overwritten is None)
    again = sum(seconds for line, _, seconds in windows if line.overwritten is not None)
    saving = sum(line.number("seconds") or 0.0 for line in history.lines if line.kind == "saved")
    down = _down(history)
    rest = max(0.0, _wall(history) - kept - again - saving - down)
    return [
        ("training", kept),
        ("training that was overwritten", again),
        ("down or starting", down),
        ("saving checkpoints", saving),
        ("compiling, validation, all else", rest),
    ]


def _down(history: History) -> float:
    """Seconds between the last line of a session and the first step of the next."""
    down, last_alive = 0.0, None
    for line in history.lines:
        if line.kind in ("started", "resumed") and last_alive is not None:
            down += line.time - last_alive
        if line.kind != "fallback":
            last_alive = line.time
    return down
