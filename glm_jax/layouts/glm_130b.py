"""GLM-130B: the released SwissArmyTransformer files.

Source: THUDM/GLM-130B. The fused projection alternates q, k, v head by head. The gated mlp is
x1 * gelu(x2): each rank holds its rows of x1, then its rows of x2. There is no config.json; one of
ours has the fields below.
"""

from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.layouts.published_config import Fields, model_config, num_layers
from glm_jax.layouts.table import Block, Layout, PerHead, Row, Same, norm, projection
from glm_jax.model.presets import preset

_LAYER = "transformer.layers.{i}."
_QKV = _LAYER + "attention.query_key_value"
_UP = _LAYER + "mlp.dense_h_to_4h"
_DOWN = _LAYER + "mlp.dense_4h_to_h"
_WORDS = "transformer.word_embeddings.weight"
_HEAD_DIM = 128  # of the one released size; its files do not say it


def read_config(
    hub: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """The model of our config.json, or of the shapes of the released files."""
    if hub is None:
        vocab_size, hidden = shapes[_WORDS]
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "num_layers": num_layers(shapes, _QKV + ".weight"),
            "num_attention_heads": hidden // _HEAD_DIM,
            "inner_hidden_size": shapes[(_DOWN + ".weight").format(i=0)][1],
        }
        hub = sizes
    fields = Fields(hub)
    return model_config(
        preset("glm_130b"),
        vocab_size=fields.size("vocab_size"),
        num_layers=fields.size("num_layers"),
        hidden_dim=fields.size("hidden_size"),
        num_heads=fields.size("num_attention_heads"),
        mlp_dim=fields.size("inner_hidden_size"),
        max_positions=fields.size("max_sequence_length", 2048),
        norm_eps=fields.number("layernorm_epsilon", 1e-5),
        deepnorm_alpha=fields.number("deepnorm_alpha", 0.0),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """What `read_config` reads; no released library does."""
    return {
        "model_type": "glm-130b",
        "num_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "inner_hidden_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "layernorm_epsilon": config.norm_eps,
        "deepnorm_alpha": config.residual_scale,
        "max_sequence_length": config.max_positions,
    }


LAYOUT = Layout(
    name="glm_130b",
    read_config=read_config,
    write_config=write_config,
    requires={
        "position": ("rope_1d",),
        "rope_fraction": (1.0,),
        "rope_layout": ("half",),
        "rope_base": (10000.0,),
        "residual": ("deepnorm",),
        "norm": ("layernorm",),
        "activation": ("geglu",),
        "is_grouped": (False,),
        "qkv_bias": (True,),
        "linear_bias": (True,),
        "tie_embeddings": (True,),
    },
    serves={"span_position": "mixed", "context": "bidirectional"},
    ignored=(".rotary_emb.inv_freq",),
    rows=(
        Row("token_embedding/embedding", _WORDS, Same()),
        *norm("layers/attention_norm", _LAYER + "input_layernorm"),
        *projection("layers/attention/query", _QKV, fused=PerHead(0)),
        *projection("layers/attention/key", _QKV, fused=PerHead(1)),
        *projection("layers/attention/value", _QKV, fused=PerHead(2)),
        *projection("layers/attention/out", _LAYER + "attention.dense", inputs=2),
        *norm("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
        *projection("layers/mlp/up", _UP, fused=Block(0, ("mlp", "mlp"))),
        *projection("layers/mlp/gate", _UP, fused=Block(1, ("mlp", "mlp"))),
        *projection("layers/mlp/down", _DOWN),
        *norm("final_norm", "transformer.final_layernorm"),
    ),
)
