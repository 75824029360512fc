"""Every layout in miniature: a model it holds, random weights, and a folder of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.layouts import parameters
from glm_jax.layouts.sources import ArraySource
from glm_jax.model.presets import preset

_SIZES = {
    "vocab_size": 160,
    "num_layers": 3,
    "hidden_dim": 48,
    "num_heads": 4,
    "mlp_dim": 192,
    "max_positions": 64,
    "dtype": "float32",
    "embedding_dropout": 0.0,
    "output_dropout": 0.0,
}


def tiny(name: str, **changes) -> ModelConfig:
    """A preset at toy size."""
    return dataclasses.replace(preset(name), **(_SIZES | changes))


_LATER = {"hidden_dim": 64, "mlp_dim": 168}
MODELS = {
    "glm_2021": tiny("glm_base"),
    "chatglm": tiny("chatglm_6b", deepnorm_alpha=56**0.5),
    "glm_130b": tiny("glm_130b", mlp_dim=128),
    "chatglm2": tiny("chatglm2_6b", **_LATER),
    "glm": tiny("glm4_9b", **_LATER),
    "glm4": tiny("glm4_0414_32b", **_LATER),
    "glm_jax": tiny("glm_modern_30m", **_LATER),
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


def assert_same(left: dict, right: dict) -> None:
    """Of nested dicts of parameters: bit for bit."""
    left, right = parameters.flatten(left), parameters.flatten(right)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
