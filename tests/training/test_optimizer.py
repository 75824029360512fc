import dataclasses
import math

import jax
import numpy as np
import pytest
from training.samples import tiny_config

from glm_jax.config import OptimizerConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.training.optimizer import decay_mask, make_optimizer, make_schedule


def test_schedule_is_the_published_one():
    """Megatron's rule for update n, from 1: linear to the peak, cosine to r of it (GLM 2021)."""
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=10, decay_steps=50, final_ratio=0.1)
    schedule = make_schedule(config, steps=80)
    for n in (1, 5, 10, 11, 30, 49, 50, 70):
        t = min(1.0, (n - 10) / 40)
        cosine = 1e-3 * 0.1 * ((math.cos(math.pi * t) + 1) * (1 / 0.1 - 1) / 2 + 1)
        assert schedule(n - 1) == pytest.approx(1e-3 * n / 10 if n <= 10 else cosine, rel=1e-5)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_steps 100 .* 50 decay steps"):
        make_schedule(OptimizerConfig(warmup_steps=100), steps=50)


def test_tables_and_kernels_decay_and_norms_and_biases_do_not():
    shapes, _ = glm.abstract_params(tiny_config().model)
    mask = decay_mask(OptimizerConfig(), shapes)
    assert mask["position_embedding"]["embedding"]
    assert mask["layers"]["mlp"]["up"] == {"kernel": True, "bias": False}
    assert mask["final_norm"] == {"scale": False, "bias": False}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"no_decay": ("bias$",)}, "final_norm/scale: neither matches"),
        ({"decay": (".",)}, "final_norm/bias: both match"),
    ],
)
def test_every_parameter_is_covered_once(fields, message):
    shapes, _ = glm.abstract_params(tiny_config().model)
    with pytest.raises(UserError, match=message):
        decay_mask(dataclasses.replace(OptimizerConfig(), **fields), shapes)


def test_update_is_clipped_adam_with_decoupled_decay():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=1, final_ratio=1.0, clip_norm=1.0)
    params = {"kernel": np.full(3, 2.0, np.float32), "bias": np.full(3, 2.0, np.float32)}
    optimizer = make_optimizer(config, steps=10)
    gradients = jax.tree.map(lambda x: 100 * x, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    adam = 1 / (1 + config.eps * math.sqrt(6))  # g / (|g| + eps) of the clipped gradient
    np.testing.assert_allclose(updates["bias"], -0.1 * adam, rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], -0.1 * (adam + 0.1 * 2.0), rtol=1e-5)
