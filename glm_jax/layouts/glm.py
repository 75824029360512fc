"""The native classes of transformers: `glm` (GLM-4-9B) and `glm4` (GLM-4-0414).

Source: transformers `models/glm` and `models/glm4`. They need no remote code. `glm4` has two more
norms in each layer, on the outputs of attention and mlp. A model of the layout `chatglm2` is one of
`glm` under other names.
"""

import functools
from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts.chatglm2 import FUNCTION, SERVES
from glm_jax.layouts.published_config import Fields, model_config
from glm_jax.layouts.table import Block, Layout, Row, Same, norm, projection

_LAYER = "model.layers.{i}."
_ATTENTION = _LAYER + "self_attn."
_GATE_UP = _LAYER + "mlp.gate_up_proj"
_RESIDUAL = {"glm": "pre", "glm4": "sandwich"}
_CLASS = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM"}


def read_config(
    name: str, hub: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """The model of a config of transformers 4.46 to 5."""
    fields = Fields(hub or {})
    fields.must_be("hidden_act", "silu")
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    if fields.size("head_dim", hidden // heads) * heads != hidden:
        raise UserError(
            f"config.json: head_dim is {fields.get('head_dim')}, supported is hidden_size / "
            f"num_attention_heads = {hidden // heads}"
        )
    base, fraction = _rope(fields)
    return model_config(
        vocab_size=fields.size("vocab_size"),
        num_layers=fields.size("num_hidden_layers"),
        hidden_dim=hidden,
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        mlp_dim=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        rope_base=base,
        rope_fraction=fraction,
        qkv_bias=fields.flag("attention_bias"),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        residual=_RESIDUAL[name],
        init_std=fields.number("initializer_range", 0.02),
        **FUNCTION,
        **SERVES,
    )


def _rope(fields: Fields) -> tuple[float, float]:
    """Base and rotated fraction; transformers 5 moved them into `rope_parameters`."""
    for name in ("rope_parameters", "rope_scaling"):
        scaling = fields.get(name, {})
        if not isinstance(scaling, Mapping):
            raise UserError(f"config.json: {name} must be an object, got {scaling!r}")
        for kind in ("rope_type", "type"):
            Fields(scaling).must_be(kind, "default")
    rope = Fields({**fields.values, **fields.get("rope_parameters", {})})
    return rope.number("rope_theta", 10000.0), rope.number("partial_rotary_factor", 0.5)


def write_config(name: str, config: ModelConfig) -> dict[str, Any]:
    """The architecture as GlmConfig and Glm4Config have it, for transformers 4.46 to 5."""
    return {
        "architectures": [_CLASS[name]],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_base,
        "partial_rotary_factor": config.rope_fraction,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_base,
            "partial_rotary_factor": config.rope_fraction,
        },
        "use_cache": True,
    }


def _layout(name: str) -> Layout:
    return Layout(
        name=name,
        read_config=functools.partial(read_config, name),
        write_config=functools.partial(write_config, name),
        requires={
            **{field: (value,) for field, value in FUNCTION.items()},
            "residual": (_RESIDUAL[name],),
        },
        serves=SERVES,
        token_ids={"eos_token_id": "eos", "pad_token_id": "pad"},
        rows=(
            Row("token_embedding/embedding", "model.embed_tokens.weight", Same()),
            *norm("layers/attention_norm", _LAYER + "input_layernorm"),
            *projection("layers/attention/query", _ATTENTION + "q_proj"),
            *projection("layers/attention/key", _ATTENTION + "k_proj"),
            *projection("layers/attention/value", _ATTENTION + "v_proj"),
            *projection("layers/attention/out", _ATTENTION + "o_proj", inputs=2),
            *norm("layers/attention_out_norm", _LAYER + "post_self_attn_layernorm"),
            *norm("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
            *projection("layers/mlp/gate", _GATE_UP, fused=Block(0, ("mlp", "mlp"))),
            *projection("layers/mlp/up", _GATE_UP, fused=Block(1, ("mlp", "mlp"))),
            *projection("layers/mlp/down", _LAYER + "mlp.down_proj"),
            *norm("layers/mlp_out_norm", _LAYER + "post_mlp_layernorm"),
            *norm("final_norm", "model.norm"),
            *projection("head", "lm_head"),
        ),
    )


GLM = _layout("glm")
GLM4 = _layout("glm4")
