"""The model against numbers computed by the published PyTorch code (float64, stored float32)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

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
    tensors, fields = published.read(fixtures / f"{request.param}.safetensors")
    grouped = fields.get("multi_query_attention", False)
    config = ModelConfig(
        vocab_size=len(tensors["logits"][0, 0]),
        num_layers=fields["num_layers"],
        hidden_dim=fields["hidden_size"],
        num_heads=fields["num_attention_heads"],
        num_kv_heads=fields["multi_query_group_num"] if grouped else 0,
        mlp_dim=published.mlp_dim(fields),
        max_positions=fields.get("max_sequence_length", 64),
        norm_eps=fields.get("layernorm_epsilon", 1e-5),
        dtype="float32",
        attention_backend="reference",
        **case.changes,
    )
    return case, config, tensors


def test_logits(case):
    case, config, tensors = case
    params = layouts.load_params(case.layout, published.part(tensors, "param."), config)
    logits = jax.jit(glm.apply_logits, static_argnums=0)(
        config, params, *published.model_rows(tensors)
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, tensors["logits"], rtol=0, atol=case.atol)


def test_loss_and_gradients(case):
    case, config, tensors = case
    params = layouts.load_params(case.layout, published.part(tensors, "param."), config)
    labels = tensors["labels"]
    weights = (labels >= 0).astype(np.float32)

    def mean_loss(params):
        hidden = glm.apply_hidden(config, params, *published.model_rows(tensors))
        kernel = glm.output_kernel(config, params)
        total, _ = target_cross_entropy(hidden, kernel, np.maximum(labels, 0), weights)
        return total / weights.sum()

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(loss, tensors["loss"][0], rtol=0, atol=2e-6)
    # Compared tensor by tensor of theirs: the gradient of a key bias alone is zero in exact maths.
    ours = layouts.export_tensors(case.layout, jax.device_get(gradients), config)
    expected = published.part(tensors, "grad.")
    for name, gradient in ours.items():
        theirs = expected.get(name, expected.get(f"glm.{name}"))
        error = np.linalg.norm(gradient - theirs) / np.linalg.norm(theirs)
        assert error <= 1e-4, f"{name}: relative error {error:.2e}"
    assert len(ours) == len(expected)
