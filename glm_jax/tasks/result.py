"""Figures of a task with their standard errors, overall and by language."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A score over n items. `stderr` is None for a single item: it has no spread."""

    n: int
    score: float
    stderr: float | None


class Result(NamedTuple):
    """What a task found.

    Attributes:
      metric: name of the score, such as "accuracy".
      figures: the score by group; "all" stands for everything.
      more: further figures by name and group.
    """

    metric: str
    figures: Mapping[str, Figure]
    more: Mapping[str, Mapping[str, float]] = {}

    def to_dict(self) -> dict:
        """Score, n and stderr by group under their names, and the further figures."""
        return {
            self.metric: {group: figure.score for group, figure in self.figures.items()},
            "n": {group: figure.n for group, figure in self.figures.items()},
            "stderr": {group: figure.stderr for group, figure in self.figures.items()},
            **self.more,
        }


def mean(values: Sequence[float]) -> Figure:
    """The mean of n values and its standard error, sqrt(sum (x - mean)^2 / (n (n - 1)))."""
    values = np.asarray(values, np.float64)
    return ratio(values, np.ones_like(values))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Figure:
    """sum x / sum y over n items, such as bits over bytes of documents.

    Its standard error is that of the ratio estimator of a cluster sample (Cochran, Sampling
    Techniques, 1977, section 6.3): sqrt(n / (n - 1) sum (x - r y)^2) / sum y. With y = 1 it is the
    standard error of a mean.
    """
    x, y = (np.asarray(values, np.float64) for values in (numerators, denominators))
    n, score = len(x), float(x.sum() / y.sum())
    if n < 2:
        return Figure(n, score, None)
    spread = n / (n - 1) * np.sum((x - score * y) ** 2)
    return Figure(n, score, float(np.sqrt(spread) / y.sum()))


def by_language(
    languages: Sequence[str | None], figure: Callable[..., object], *columns: Sequence[float]
) -> dict[str, object]:
    """`figure(*columns)` of all items under "all", then of those of each known language.

    Args:
      languages: of the items; None where it is not known.
      columns: values of the items, handed to `figure` as float64 arrays.
    """
    columns = [np.asarray(column, np.float64) for column in columns]
    groups = {"all": figure(*columns)}
    for language in sorted({language for language in languages if language}):
        of_language = np.array([language == each for each in languages])
        groups[language] = figure(*(column[of_language] for column in columns))
    return groups


def perplexity(nll: float, units: float) -> float:
    """exp(nll / units), nll in nats; infinite where it is beyond a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll) / units))
