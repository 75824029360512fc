"""Every layout in miniature: a model it holds, random weights, and a folder of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.layouts import parameters
from glm_jax.layouts.sources import ArraySource

_LEARNED = ModelConfig(
    vocab_size=160,
    num_layers=3,
    hidden_dim=48,
    num_heads=4,
    mlp_dim=192,
    max_positions=64,
    dtype="float32",
)
_DEEPNORM = dataclasses.replace(_LEARNED, residual="deepnorm")
_LATER = dataclasses.replace(
    _LEARNED,
    num_kv_heads=2,
    hidden_dim=64,
    mlp_dim=168,
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
MODELS = {
    "glm_2021": _LEARNED,
    "chatglm": dataclasses.replace(
        _DEEPNORM, position="rope_2d", tie_embeddings=False, deepnorm_alpha=56**0.5
    ),
    "glm_130b": dataclasses.replace(
        _DEEPNORM, position="rope_1d", span_position="mixed", activation="geglu", mlp_dim=128
    ),
    "chatglm2": _LATER,
    "glm": dataclasses.replace(_LATER, rope_base=5e6, norm_eps=1.5625e-7),
    "glm4": dataclasses.replace(_LATER, residual="sandwich", qkv_bias=False),
    "glm_jax": dataclasses.replace(
        _LATER,
        position="rope_2d",
        span_position="blank",
        context="bidirectional",
        rope_fraction=1.0,
        rope_layout="half",
        tie_embeddings=True,
    ),
}


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Weights large enough that logits depend on all of the input: nested dict of float32."""
    rng = np.random.default_rng(seed)
    scale = {"embedding": 0.5, "kernel": 0.15, "bias": 0.05, "scale": 0.1}
    flat = {
        name: (
            rng.normal(scale=scale[name.split("/")[-1]], size=shape) + name.endswith("scale")
        ).astype(np.float32)
        for name, shape in parameters.shapes(config).items()
    }
    return parameters.unflatten(flat)


def write_folder(
    out: Path, layout: str, params: dict, config: ModelConfig, dtype="float32"
) -> Path:
    """The weights and config.json of a layout, as a hub folder has them."""
    out.mkdir(parents=True)
    found = layouts.find_layout(layout)
    source = ArraySource(config, parameters.flatten(params))
    layouts.write_weights(found, source, out, np.dtype(dtype), "5GB")
    no_tokens = dict.fromkeys(found.token_ids)  # the defaults of classes exceed this vocabulary
    (out / "config.json").write_text(json.dumps(found.write_config(config) | no_tokens))
    return out
