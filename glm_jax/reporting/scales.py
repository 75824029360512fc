"""From values to pixels: linear and logarithmic axes with round ticks."""

import dataclasses
import math
from collections.abc import Iterable

_MULTIPLES = (1.0, 2.0, 5.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop]; a call gives the pixel of a value."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(self._even, (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """About `count` round values inside the range."""
        found = _log_ticks(self.low, self.high, count) if self.log else []
        return found if len(found) > 1 else _linear_ticks(self.low, self.high, count)

    def _even(self, value: float) -> float:
        return math.log10(value) if self.log else value


def fitted(
    values: Iterable[float], start: float, stop: float, *, log_from: float, zero: bool = False
) -> Scale:
    """A scale that holds the values.

    Args:
      log_from: ratio of the largest to the smallest value from which the scale is logarithmic.
      zero: a linear scale begins at zero.
    """
    values = list(values)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low >= log_from:
        return Scale(low / 1.05, high * 1.05, start, stop, log=True)
    if zero and low >= 0:
        return Scale(0.0, high * 1.08 or 1.0, start, stop)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin, start, stop)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min(_MULTIPLES, key=lambda m: abs(math.log(rough / (m * power))))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = math.log10(high / low)
    if span > count:
        stride = math.ceil(span / count)
        return [10.0**d for d in decades if d % stride == 0 and low <= 10.0**d <= high]
    multiples = (1, 2, 3, 5) if span < 1.2 else (1, 3) if span < 2.5 else (1,)
    candidates = (m * 10.0**d for d in decades for m in multiples)
    return [value for value in candidates if low <= value <= high]
