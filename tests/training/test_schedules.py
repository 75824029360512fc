"""Learning rates against closed forms, update by update."""

import math

import jax
import numpy as np
import optax
import pytest

from glm_jax.config import OptimizerConfig
from glm_jax.errors import UserError
from glm_jax.training.schedules import make_schedule

PEAK, WARMUP, STEPS, RATIO, COOLDOWN = 1e-3, 10, 50, 0.1, 15


def published(style: str, n: int) -> float:
    """Megatron's rule for update n, from 1 (GLM 2021, `learning_rates.py`), and its floor."""
    if n <= WARMUP:
        return PEAK * n / WARMUP
    t = min(1.0, (n - WARMUP) / (STEPS - WARMUP))
    if style == "cosine":
        return PEAK * RATIO * ((math.cos(math.pi * t) + 1) * (1 / RATIO - 1) / 2 + 1)
    return PEAK - PEAK * (1 - RATIO) * t


def warmup_stable_decay(n: int) -> float:
    t = min(1.0, max(0.0, (n - (STEPS - COOLDOWN)) / COOLDOWN))
    return PEAK * min(1.0, n / WARMUP) * (1 - (1 - RATIO) * t)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", lambda n: published("cosine", n)),
        ("linear", lambda n: published("linear", n)),
        ("wsd", warmup_stable_decay),
        ("constant", lambda n: PEAK * min(1.0, n / WARMUP)),
    ],
)
@pytest.mark.parametrize("decay_steps", [STEPS, 0])
def test_schedules_are_their_closed_forms(name, expected, decay_steps):
    config = OptimizerConfig(
        learning_rate=PEAK,
        schedule=name,
        warmup_steps=WARMUP,
        decay_steps=decay_steps,
        cooldown_steps=COOLDOWN,
        final_ratio=RATIO,
    )
    schedule = make_schedule(config, steps=80 if decay_steps else STEPS)
    rates = jax.jit(jax.vmap(schedule))(np.arange(80, dtype=np.int32))
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates, [expected(n) for n in range(1, 81)], rtol=1e-5)


def test_cosine_is_that_of_optax_to_the_bit():
    config = OptimizerConfig(warmup_steps=WARMUP)
    reference = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        WARMUP,
        STEPS,
        config.learning_rate * config.final_ratio,
    )
    count = np.arange(60, dtype=np.int32)
    ours = jax.vmap(make_schedule(config, STEPS))(count)
    np.testing.assert_array_equal(ours, jax.vmap(reference)(count + 1))


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_without_warmup_the_first_update_has_the_peak_or_just_less(name):
    config = OptimizerConfig(
        learning_rate=PEAK, schedule=name, warmup_steps=0, cooldown_steps=COOLDOWN
    )
    assert 0.95 * PEAK < make_schedule(config, STEPS)(0) <= PEAK * 1.000001


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_warmup_longer_than_the_run_is_refused(name):
    config = OptimizerConfig(schedule=name, warmup_steps=100, cooldown_steps=1)
    with pytest.raises(UserError, match=r"warmup_steps 100 .* 50 decay steps"):
        make_schedule(config, steps=50)


def test_cooldown_must_fit_behind_the_warmup():
    config = OptimizerConfig(schedule="wsd", warmup_steps=10, cooldown_steps=41)
    with pytest.raises(UserError, match=r"cooldown_steps 41 is longer than the 40 steps"):
        make_schedule(config, steps=50)
    make_schedule(config, steps=51)
