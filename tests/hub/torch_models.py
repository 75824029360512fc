"""The torch class in float64, with weights of ours."""

import numpy as np
import torch

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.hub.configuration_glm_jax import GLMJaxConfig
from glm_jax.hub.modeling_glm_jax import GLMJaxForBlankInfilling
from glm_jax.layouts import parameters
from glm_jax.tokenizer import SPECIAL_PIECES

NUM_CONTROL = len(SPECIAL_PIECES)
_HUB_ONLY = ("architectures", "auto_map", "model_type")

# ChatGLM2's architecture in miniature.
CHATGLM2 = ModelConfig(
    vocab_size=160,
    num_layers=3,
    hidden_dim=64,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=168,
    max_positions=64,
    position="rope_1d",
    span_position="slot",
    context="causal",
    rope_fraction=0.5,
    rope_layout="interleaved",
    norm="rmsnorm",
    activation="swiglu",
    linear_bias=False,
    tie_embeddings=False,
)


def torch_model(config: ModelConfig, params: dict | None = None, **overrides):
    """Random weights unless `params` (ours) are given; `overrides` are fields of GLMJaxConfig."""
    torch.manual_seed(0)
    fields = layouts.find_layout("glm_jax").write_config(config)
    fields = {key: value for key, value in fields.items() if key not in _HUB_ONLY}
    hub = GLMJaxConfig(**fields, tokenizer_vocab_size=config.vocab_size, **overrides)
    model = GLMJaxForBlankInfilling(hub).double().eval()
    if params is not None:
        tensors = layouts.export_tensors("glm_jax", params, config)
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert (missing, unexpected) == (["lm_head.weight"] * config.tie_embeddings, [])
    return model


def random_params(config: ModelConfig) -> dict:
    """Weights large enough that greedy answers depend on all of the input."""
    rng = np.random.default_rng(1)
    scale = {"embedding": 0.5, "kernel": 0.15, "bias": 0.05, "scale": 0.1}
    flat = {
        name: rng.normal(scale=scale[name.split("/")[-1]], size=shape) + name.endswith("scale")
        for name, shape in parameters.shapes(config).items()
    }
    return parameters.unflatten(flat)


def random_model(config: ModelConfig, **overrides):
    """Of `random_params`; like an export, it never answers with a control symbol."""
    model = torch_model(config, random_params(config), **overrides)
    model.generation_config.suppress_tokens = list(range(NUM_CONTROL))
    return model
