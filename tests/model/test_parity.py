"""The model against numbers computed by the published PyTorch code (float64, stored float32)."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.model import glm
from glm_jax.ops.cross_entropy import target_cross_entropy


class Case(NamedTuple):
    layout: str
    changes: dict  # fields of ModelConfig
    atol: float = 2e-5  # of logits; the road's tolerance for float64 fixtures


_DEEPNORM = {"residual": "deepnorm"}
CASES = {
    "glm_2021": Case("glm_2021", {"activation": "gelu"}),
    "glm_2021_scaled": Case("glm_2021", {"activation": "gelu"}),
    "chatglm_v1": Case("chatglm", {"position": "rope_2d", "tie_embeddings": False, **_DEEPNORM}),
    "glm_130b": Case("glm_130b", {"position": "rope_1d", "activation": "geglu", **_DEEPNORM}),
    # The published numbers are float32 themselves.
    "chatglm2": Case(
        "chatglm2",
        {
            "position": "rope_1d",
            "rope_fraction": 0.5,
            "rope_layout": "interleaved",
            "norm": "rmsnorm",
            "activation": "swiglu",
            "linear_bias": False,
            "tie_embeddings": False,
        },
        atol=5e-5,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, fixtures):
    case = CASES[request.param]
    with safe_open(fixtures / f"{request.param}.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        published = json.loads(file.metadata()["config"])
    hidden = published["hidden_size"]
    inner = published.get("inner_hidden_size", published.get("ffn_hidden_size", 4 * hidden))
    grouped = published.get("multi_query_attention", False)
    config = ModelConfig(
        vocab_size=len(tensors["logits"][0, 0]),
        num_layers=published["num_layers"],
        hidden_dim=hidden,
        num_heads=published["num_attention_heads"],
        num_kv_heads=published["multi_query_group_num"] if grouped else 0,
        mlp_dim=inner,
        max_positions=published.get("max_sequence_length", 64),
        norm_eps=published.get("layernorm_epsilon", 1e-5),
        dtype="float32",
        attention_backend="reference",
        **case.changes,
    )
    return case, config, tensors


def part(tensors: dict, prefix: str) -> dict:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def rows(tensors: dict) -> tuple:
    """Arguments of the model for the fixture's rows: a bidirectional part, causal from there."""
    tokens, ids = tensors["input_ids"], tensors.get("position_ids")
    end = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32) + 1, tokens.shape)
    if "sep" in tensors:
        end = np.maximum(tensors["sep"][:, None], end).astype(np.int32)
    position = end - 1 if ids is None else ids if ids.ndim == 2 else ids[:, 0]
    block_position = ids[:, 1] if ids is not None and ids.ndim == 3 else np.zeros_like(position)
    return tokens, position, block_position, np.zeros_like(end), end


def test_logits(case):
    case, config, tensors = case
    params = layouts.load_params(case.layout, part(tensors, "param."), config)
    logits = jax.jit(glm.apply_logits, static_argnums=0)(config, params, *rows(tensors))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, tensors["logits"], rtol=0, atol=case.atol)


def test_loss_and_gradients(case):
    case, config, tensors = case
    params = layouts.load_params(case.layout, part(tensors, "param."), config)
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
    published = layouts.export_tensors(case.layout, jax.device_get(gradients), config)
    expected = part(tensors, "grad.")
    for name, gradient in published.items():
        theirs = expected.get(name, expected.get(f"glm.{name}"))
        error = np.linalg.norm(gradient - theirs) / np.linalg.norm(theirs)
        assert error <= 1e-4, f"{name}: relative error {error:.2e}"
    assert len(published) == len(expected)
