"""Curves: attention backends and remat policies against the reference, bfloat16 against float32."""

import functools

import jax
import numpy as np
import pytest
from training.samples import changed, counting_text, make_batch, tiny_config

from glm_jax.config import Config, MeshConfig
from glm_jax.ops import range_attention
from glm_jax.ops.range_attention_tpu import tpu_attention
from glm_jax.parallel.sharding import make_sharding
from glm_jax.training.step import init_state, make_train_step


def config_of(**model) -> Config:
    config = changed(tiny_config(), "model", **model)
    return changed(config, "optimizer", learning_rate=3e-3, decay_steps=300)


def curve(config: Config, steps: int) -> np.ndarray:
    """Losses on one device, every batch a new one."""
    sharding = make_sharding(MeshConfig(), jax.devices()[:1])
    state = init_state(config, sharding)
    step = make_train_step(config, sharding, num_sources=2)
    losses = []
    for number in range(steps):
        state, metrics = step(state, sharding.place(make_batch(number, text=counting_text)))
        losses.append(metrics.sums.loss.sum() / metrics.sums.weight.sum())
    return np.array(losses)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    losses = curve(config_of(attention_backend="reference"), 50)
    assert losses[-1] < 0.8 * losses[0]
    return losses


@pytest.fixture
def tpu_kernel_on_cpu(monkeypatch):
    """The kernels for TPUs, run step by step."""
    kernel = functools.partial(tpu_attention, interpret=True)
    monkeypatch.setattr(range_attention, "tpu_attention", kernel)
    monkeypatch.setattr(range_attention, "_NEEDS_PLATFORM", {})
    range_attention.resolve_backend.cache_clear()
    yield
    range_attention.resolve_backend.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "remat"),
    [("chunked", remat) for remat in ("none", "selective", "offload", "full")]
    + [("tpu", "none"), ("tpu", "selective")],
)
@pytest.mark.usefixtures("tpu_kernel_on_cpu")
def test_backends_and_policies_give_the_curve_of_the_reference(reference, backend, remat):
    config = config_of(attention_backend=backend, remat=remat)
    np.testing.assert_allclose(curve(config, 50), reference, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does():
    """Means of fifty steps, over 300."""
    wide = curve(config_of(), 300).reshape(-1, 50).mean(axis=1)
    narrow = curve(config_of(dtype="bfloat16"), 300).reshape(-1, 50).mean(axis=1)
    assert wide[-1] < 0.6 * wide[0]
    np.testing.assert_allclose(narrow, wide, rtol=0.01)
