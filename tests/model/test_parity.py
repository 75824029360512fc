"""The model against numbers computed by the published PyTorch code (float64, stored float32)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.model import glm
from glm_jax.ops.cross_entropy import target_cross_entropy

CASES = {
    "glm_2021": ("glm_2021", "gelu"),
    "glm_2021_scaled": ("glm_2021", "gelu"),
    "chatglm_v1": ("chatglm", "gelu_tanh"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, fixtures):
    layout, activation = CASES[request.param]
    with safe_open(fixtures / f"{request.param}.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        published = json.loads(file.metadata()["config"])
    config = ModelConfig(
        vocab_size=published["vocab_size"],
        num_layers=published["num_layers"],
        hidden_dim=published["hidden_size"],
        num_heads=published["num_attention_heads"],
        mlp_dim=published.get("inner_hidden_size", 4 * published["hidden_size"]),
        max_positions=published["max_sequence_length"],
        position="rope_2d" if layout == "chatglm" else "learned_2d",
        residual="deepnorm" if layout == "chatglm" else "pre",
        tie_embeddings=layout != "chatglm",
        activation=activation,
        dtype="float32",
        attention_backend="reference",
    )
    return layout, config, tensors


def part(tensors: dict, prefix: str) -> dict:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def rows(tensors: dict) -> tuple:
    """Arguments of the model for the fixture's rows: a bidirectional part, causal from there."""
    length = tensors["input_ids"].shape[1]
    end = np.maximum(tensors["sep"][:, None], np.arange(length) + 1).astype(np.int32)
    position, block_position = tensors["position_ids"][:, 0], tensors["position_ids"][:, 1]
    return tensors["input_ids"], position, block_position, np.zeros_like(end), end


def test_logits(case):
    layout, config, tensors = case
    params = layouts.load_params(layout, part(tensors, "param."), config)
    logits = jax.jit(glm.apply_logits, static_argnums=0)(config, params, *rows(tensors))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, tensors["logits"], rtol=0, atol=2e-5)


def test_loss_and_gradients(case):
    layout, config, tensors = case
    params = layouts.load_params(layout, part(tensors, "param."), config)
    labels = tensors["labels"]
    weights = (labels >= 0).astype(np.float32)

    def mean_loss(params):
        hidden = glm.apply_hidden(config, params, *rows(tensors))
        kernel = glm.output_kernel(config, params)
        total, _ = target_cross_entropy(hidden, kernel, np.maximum(labels, 0), weights)
        return total / weights.sum()

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(loss, tensors["loss"][0], rtol=0, atol=2e-6)
    # Compared tensor by tensor of theirs: the gradient of a key bias alone is zero in exact maths.
    published = dict(layouts.export_tensors(layout, jax.device_get(gradients), config))
    expected = part(tensors, "grad.")
    for name, gradient in published.items():
        theirs = expected.get(name, expected.get(f"glm.{name}"))
        error = np.linalg.norm(gradient - theirs) / np.linalg.norm(theirs)
        assert error <= 1e-4, f"{name}: relative error {error:.2e}"
    assert len(published) == len(expected)
