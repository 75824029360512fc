"""Bad steps: what counts as one, that it changes nothing, and when a run gives up or goes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.samples import VOCAB, changed, make_batch, tiny_config

from glm_jax.config import BadStepsConfig, MeshConfig
from glm_jax.parallel.sharding import make_sharding
from glm_jax.training.bad_steps import VERDICTS, Streak, empty_history, judge, remember
from glm_jax.training.step import init_state, make_train_step

CONFIG = BadStepsConfig(sigma=3.0, window=8)


def history_of(values, config=CONFIG):
    history = empty_history(config)
    for value in values:
        history = remember(history, jnp.float32(value), jnp.float32(10 * value))
    return history


def verdict(history, loss, grad_norm, config=CONFIG) -> str:
    return VERDICTS[int(judge(config, history, jnp.float32(loss), jnp.float32(grad_norm)))]


def test_a_spike_is_more_than_sigma_deviations_above_the_mean():
    values = [1.0, 2.0, 3.0, 2.0, 1.0, 3.0]
    limit = np.mean(values) + 3.0 * np.std(values)
    history = history_of(values)
    assert verdict(history, limit - 1e-4, 10.0) == "good"
    assert verdict(history, limit + 1e-4, 10.0) == "loss spike"
    assert verdict(history, 2.0, 10 * limit + 1e-3) == "gradient spike"
    assert verdict(history, -1e9, 0.0) == "good"


def test_the_window_forgets():
    values = [1.0, 9.0, 9.0] + [2.0, 2.5, 3.0, 3.5] * 2
    assert verdict(history_of(values), 6.0, 20.0) == "loss spike"
    assert verdict(history_of(values[:6]), 6.0, 20.0) == "good"


def test_nothing_is_a_spike_before_half_a_window_is_known():
    assert verdict(history_of([1.0, 1.0, 1.0]), 1e9, 1e9) == "good"
    assert verdict(history_of([1.0, 1.0, 1.0, 1.0]), 2.0, 10.0) == "loss spike"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_always_bad(bad):
    assert verdict(empty_history(CONFIG), bad, 1.0) == "not finite"
    assert verdict(empty_history(CONFIG), 1.0, bad) == "not finite"
    assert verdict(history_of([1.0] * 9), bad, bad) == "not finite"


def test_without_sigma_only_what_is_not_finite_is_bad():
    config = BadStepsConfig(sigma=0.0, window=8)
    assert verdict(history_of([1.0] * 8), 1e9, 1e9, config) == "good"
    assert verdict(history_of([1.0] * 8), np.nan, 1.0, config) == "not finite"


def test_a_streak_counts_bad_steps_in_a_row():
    streak = Streak(limit=2)
    rows = [range(10 * step, 10 * step + 10) for step in range(6)]
    for step, is_good in [(1, False), (2, True), (3, False)]:
        streak.add(step, rows[step], is_good)
    assert not streak.is_too_long
    streak.add(4, rows[4], False)
    streak.add(5, rows[5], False)  # it is too long already, whenever that is looked at
    assert (streak.is_too_long, streak.first, streak.length, streak.end_row) == (True, 3, 2, 50)


def test_a_streak_goes_on_after_a_resume():
    streak = Streak(limit=3, step=7, length=2, end_row=28)
    assert (streak.is_too_long, streak.first) == (False, 6)
    streak.add(8, range(28, 32), False)
    assert (streak.is_too_long, streak.first, streak.end_row) == (True, 6, 32)


def poisoned(batch):
    """The batch with a token id that no table row has: its embedding is NaN."""
    tokens = batch.tokens.copy()
    tokens[0, 3] = VOCAB + 5
    return batch._replace(tokens=tokens)


def test_a_bad_step_changes_nothing_but_the_step():
    config = changed(tiny_config(), "optimizer", ema_decay=0.9)
    sharding = make_sharding(MeshConfig(), jax.devices()[:1])
    step = make_train_step(config, sharding, num_sources=2)

    def trained(batches):
        state = init_state(config, sharding)
        verdicts = []
        for batch in batches:
            state, metrics = step(state, sharding.place(batch))
            verdicts.append(VERDICTS[int(metrics.verdict)])
        return state, verdicts

    good = [make_batch(0), make_batch(1)]
    clean, _ = trained(good)
    state, verdicts = trained([*good, poisoned(make_batch(2)), poisoned(make_batch(3))])
    assert verdicts == ["good", "good", "not finite", "not finite"]
    assert (int(clean.step), int(state.step)) == (2, 4)
    assert (int(clean.history.streak), int(state.history.streak)) == (0, 2)
    same = clean.history.streak
    for ours, theirs in zip(
        jax.tree.leaves(state._replace(step=0, history=state.history._replace(streak=same))),
        jax.tree.leaves(clean._replace(step=0)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_spike_in_a_real_step_is_skipped():
    config = changed(tiny_config(), "bad_steps", window=4, sigma=6.0)
    sharding = make_sharding(MeshConfig(), jax.devices()[:1])
    step = make_train_step(config, sharding, num_sources=2)
    state = init_state(config, sharding)
    for seed in range(4):
        state, _ = step(state, sharding.place(make_batch(seed)))
    table = state.params["final_norm"]["scale"]
    loud = state._replace(
        params=state.params
        | {
            "final_norm": {"scale": 40 * table}
            | {name: value for name, value in state.params["final_norm"].items() if name != "scale"}
        }
    )
    before = jax.device_get(loud.params)
    after, metrics = step(loud, sharding.place(make_batch(5)))
    assert VERDICTS[int(metrics.verdict)] in ("loss spike", "gradient spike")
    for ours, theirs in zip(jax.tree.leaves(after.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(ours, theirs)
