"""Scores and standard errors."""

import math

import numpy as np
import pytest

from glm_jax.batch import OBJECTIVES
from glm_jax.tasks.loss import spread
from glm_jax.tasks.result import Figure, Result, by_language, mean, perplexity, ratio


def test_standard_error_of_a_mean():
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    figure = mean(values)
    assert (figure.n, figure.score) == (5, 0.6)
    assert figure.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    assert figure.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 4))  # as the harness has it


def test_standard_error_of_a_ratio_is_the_spread_of_repeated_samples():
    rng = np.random.default_rng(0)

    def sample():
        size = rng.integers(5, 50, 200).astype(float)
        return size * 2 + rng.normal(0, 5, 200), size

    repeated = [ratio(*sample()) for _ in range(400)]
    assert np.mean([f.score for f in repeated]) == pytest.approx(2, abs=0.01)
    assert np.mean([f.stderr for f in repeated]) == pytest.approx(
        np.std([f.score for f in repeated]), rel=0.1
    )


def test_one_item_has_no_standard_error():
    assert mean([1.0]) == Figure(1, 1.0, None)


def test_groups_are_all_and_the_known_languages():
    groups = by_language(["zh", None, "en", "zh"], mean, [1, 1, 0, 0])
    assert {name: (f.n, f.score) for name, f in groups.items()} == {
        "all": (4, 0.5),
        "en": (1, 0.0),
        "zh": (2, 0.5),
    }


def test_further_figures_stand_beside_the_score():
    assert perplexity(1e6, 1) == math.inf
    result = Result("accuracy", {"all": mean([1.0])}, {"perplexity": {"all": perplexity(0, 1)}})
    assert result.to_dict() == {
        "accuracy": {"all": 1.0},
        "n": {"all": 1},
        "stderr": {"all": None},
        "perplexity": {"all": 1.0},
    }


def test_spread_of_a_loss():
    rng = np.random.default_rng(0)
    shape = (6, 2, len(OBJECTIVES))
    weight = rng.integers(1, 9, shape).astype(float)
    is_there = np.isin(OBJECTIVES, ("token", "document"))
    weight[:, :, ~is_there] = 0
    loss = weight * rng.random(shape)
    figures = spread(loss, weight, weight, ["zh", "en"])
    assert set(figures["n"]) == {"all", "token", "document", "en", "zh"}
    assert figures["n"]["en"] == weight[:, 1].sum()
    assert figures["n"]["token"] == weight[:, :, OBJECTIVES.index("token")].sum()
    expected = ratio(loss[:, 0].sum(1), weight[:, 0].sum(1)).stderr
    assert figures["stderr"]["zh"] == pytest.approx(expected)
