"""Operations of a step, against slow counts."""

import dataclasses

import numpy as np
import pytest
from training.samples import make_batch

from glm_jax.model.presets import preset
from glm_jax.training.flops import NO_FLOPS, Counts, model_costs
from glm_jax.training.metrics import visible_pairs

SMALL = {"vocab_size": 96, "num_layers": 3}


def products_of_a_layer(config) -> int:
    """Elements of its matrices, one by one."""
    width = config.hidden_dim
    query = out = width * config.num_heads * config.head_dim
    key = value = width * config.kv_heads * config.head_dim
    is_gated = config.activation in ("geglu", "swiglu")
    mlp = [width * config.mlp_dim] * (3 if is_gated else 2)
    return query + key + value + out + sum(mlp)


@pytest.mark.parametrize(
    "name", ["glm_base", "glm_130b", "chatglm_6b", "chatglm2_6b", "glm_modern_120m"]
)
def test_costs_equal_a_slow_count(name):
    """Plain, gated, with a head of its own, with grouped queries too, and grouped but tied."""
    config = dataclasses.replace(preset(name), **SMALL)
    costs = model_costs(config)
    assert costs.layer_weights == 3 * products_of_a_layer(config)
    assert costs.head_weights == 96 * config.hidden_dim
    assert costs.attention_width == 3 * config.hidden_dim


def test_pairs_equal_those_of_a_dense_mask():
    batch = make_batch(5)
    start, end, key = batch.kv_start, batch.kv_end.copy(), np.arange(batch.tokens.shape[1])
    end[0, :7] = start[0, :7] - 3  # an empty range that is the wrong way round
    sees = (start[..., None] <= key) & (key < end[..., None])
    np.testing.assert_array_equal(visible_pairs(start, end), sees.sum((1, 2)))
    assert sees.any(axis=(1, 2)).all()


def test_the_pairs_of_a_very_long_row_do_not_overflow():
    start = np.zeros((1, 65_536), np.int32)
    assert visible_pairs(start, start + 65_536).item() == pytest.approx(65_536**2, rel=1e-6)


COUNTS = Counts(slots=64.0, tokens=50.0, targets=9.0, pairs=700.0, row_length=32.0)


def test_the_three_formulas():
    """One layer of width 8 with 2 heads and an mlp of 12, over 16 words."""
    config = dataclasses.replace(
        preset("glm_base"), num_layers=1, hidden_dim=8, num_heads=2, mlp_dim=12, vocab_size=16
    )
    weights, head, width = 4 * 8 * 8 + 2 * 8 * 12, 16 * 8, 8
    flops = model_costs(config).of_step(COUNTS)
    assert flops.useful == 6 * weights * 50 + 6 * head * 9 + 12 * width * 700
    assert flops.palm == 64 * (6 * (weights + head) + 12 * width * 32)
    assert flops.hardware == 6 * weights * 64 + 6 * head * 9 + 18 * width * 700
    full = model_costs(dataclasses.replace(config, remat="full")).of_step(COUNTS)
    down = 8 * 12  # which no later operation of the layer reads
    assert full.hardware - flops.hardware == 2 * (weights - down) * 64 + 4 * width * 700
    selective = dataclasses.replace(config, remat="selective")
    assert model_costs(selective).of_step(COUNTS) == flops
    some = dataclasses.replace(
        selective, remat_saved=("attention_out", "attention_lse", "residual")
    )
    again = model_costs(some).of_step(COUNTS).hardware - flops.hardware
    assert again == 2 * (3 * 8 * 8 + 8 * 12) * 64
    assert (full.useful, full.palm) == (flops.useful, flops.palm)
    assert NO_FLOPS + flops + full == full + flops


def test_full_rows_in_which_all_see_all_and_predict_are_as_palm_counts():
    costs = model_costs(dataclasses.replace(preset("glm_base"), **SMALL))
    full = Counts(slots=64.0, tokens=64.0, targets=64.0, pairs=64.0 * 32, row_length=32.0)
    assert costs.of_step(full).useful == costs.of_step(full).palm
