"""Figures over the steps between two reports, without waiting for the device in between."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from glm_jax.training.bad_steps import GOOD, VERDICTS, BadStep, Streak
from glm_jax.training.metrics import Sums, summarise, total
from glm_jax.training.speed import Machine, Stopwatch
from glm_jax.training.step import StepMetrics


class _Pending(NamedTuple):
    step: int
    rows: range
    metrics: StepMetrics


class Window:
    """Figures over the steps since the last report.

    A step's figures are read once the next step has been dispatched, so the host learns of a bad
    step one step late.
    """

    def __init__(self, languages: Mapping[str, str], streak: Streak, machine: Machine):
        self._languages = languages
        self._streak = streak
        self._stopwatch = Stopwatch(machine)
        self._pending: _Pending | None = None
        self._found: list[BadStep] = []
        self._compiled = False
        self._clear()

    def add(self, step: int, rows: range, metrics: StepMetrics, waited: float) -> None:
        """Takes the figures of a dispatched step.

        Args:
          rows: the row indices of its batch.
          waited: seconds that the loop stood still for that batch.
        """
        self._stopwatch.wait(waited)  # before the lap ends in which it was
        self._read_pending()
        self._pending = _Pending(step, rows, metrics)

    @property
    def is_empty(self) -> bool:
        """No step was added since the last report."""
        return self._pending is None and not self._sums and not self._bad_steps

    @property
    def is_compiled(self) -> bool:
        """Whether a step was seen to end that needed no compilation any more, or just had it."""
        return self._compiled

    def catch_up(self) -> None:
        """Waits for the last step's figures."""
        self._read_pending()

    def take_bad_steps(self) -> list[BadStep]:
        """The bad steps that were found since the last call."""
        found, self._found = self._found, []
        return found

    def close(self) -> dict[str, float]:
        """Figures of the window's good steps by name; begins the next window."""
        self._read_pending()
        figures = summarise(total(self._sums), self._languages) if self._sums else {}
        figures |= self._last
        figures |= self._stopwatch.figures()
        if self._noise:
            covariance, true_gradient = np.mean(self._noise, axis=0)
            figures["gradient_noise_scale"] = float(covariance / true_gradient)
        figures["tokens"], figures["bad_steps"] = self._tokens, self._bad_steps
        self._clear()
        return figures

    @property
    def unreported_seconds(self) -> float:
        """What the steps since the last report took."""
        return self._stopwatch.total_seconds

    def expect_compilation(self) -> None:
        """Leaves the next step out of the rates."""
        self._read_pending()
        self._compiled = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done inside, and was done since the last step, out of the rates."""
        self._read_pending()
        yield
        self._stopwatch.leave_out()

    def _clear(self) -> None:
        self._sums: list[Sums] = []
        self._last: dict[str, float] = {}
        self._noise: list[np.ndarray] = []
        self._tokens = self._bad_steps = 0
        self._stopwatch.clear()

    def _read_pending(self) -> None:
        if self._pending is None:
            return
        step, rows, metrics = self._pending
        self._pending = None
        sums, grad_norm, learning_rate, verdict, noise = jax.device_get(metrics)
        self._last = {"grad_norm": float(grad_norm), "learning_rate": float(learning_rate)}
        self._streak.add(step, rows, verdict == GOOD)
        if verdict == GOOD:
            self._sums.append(sums)
            if noise is not None:
                self._noise.append(noise)
        else:
            loss = float(sums.loss.sum() / sums.weight.sum())
            bad = BadStep(step, rows, VERDICTS[int(verdict)], loss, float(grad_norm))
            self._found.append(bad)
            self._bad_steps += 1
        self._tokens += int(sums.tokens.sum())
        if self._compiled:
            self._stopwatch.add(sums, len(rows), stands=bool(verdict == GOOD))
        else:
            self._compiled = True
            self._stopwatch.add_compilation()
