"""ChatGLM-6B v1.

Source: THUDM/chatglm-6b `modeling_chatglm.py`. The rows of the fused projection are q, k, v of
head 0, then of head 1 and so on. The rotary frequencies in its files are buffers that follow from
the config. Its blocks compute the residual scale from a default of 28 layers that nobody overrides:
alpha is sqrt(56), however many layers there are.
"""

import math
from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts.published_config import Fields, model_config
from glm_jax.layouts.table import Layout, PerHead, Row, Same, norm, projection
from glm_jax.model.presets import preset

_LAYER = "transformer.layers.{i}."
_QKV = _LAYER + "attention.query_key_value"
_ALPHA = math.sqrt(56)


def read_config(
    hub: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """The model of a published config."""
    fields = Fields(hub or {})
    fields.must_be("position_encoding_2d", True)
    fields.must_be("pre_seq_len", None)
    hidden = fields.size("hidden_size")
    return model_config(
        preset("chatglm_6b"),
        vocab_size=fields.size("vocab_size"),
        num_layers=fields.size("num_layers"),
        hidden_dim=hidden,
        num_heads=fields.size("num_attention_heads"),
        mlp_dim=fields.size("inner_hidden_size", 4 * hidden),
        max_positions=fields.size("max_sequence_length", 2048),
        norm_eps=fields.number("layernorm_epsilon", 1e-5),
        deepnorm_alpha=_ALPHA,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture as the published ChatGLMConfig has it."""
    code = "THUDM/chatglm-6b--"
    model_class = code + "modeling_chatglm.ChatGLMForConditionalGeneration"
    return {
        "architectures": ["ChatGLMForConditionalGeneration"],
        "model_type": "chatglm",
        "auto_map": {
            "AutoConfig": code + "configuration_chatglm.ChatGLMConfig",
            "AutoModel": model_class,
            "AutoModelForSeq2SeqLM": model_class,
        },
        "num_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "inner_hidden_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "layernorm_epsilon": config.norm_eps,
        "max_sequence_length": config.max_positions,
        "position_encoding_2d": True,
        # transformers 4 ties the head of a class that has one unless the config says otherwise.
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _check_alpha(config: ModelConfig) -> None:
    if not math.isclose(config.residual_scale, _ALPHA, rel_tol=1e-6):
        raise UserError(
            f"layout chatglm: the published code scales the residual by sqrt(56) = {_ALPHA:.3f} "
            f"whatever the depth; this model of {config.num_layers} layers has "
            f"{config.residual_scale:.3f} (model.deepnorm_alpha)"
        )


LAYOUT = Layout(
    name="chatglm",
    read_config=read_config,
    write_config=write_config,
    requires={
        "block_positions": (True,),
        "position": ("rope_2d",),
        "rope_layout": ("half",),
        "rope_base": (10000.0,),
        "residual": ("deepnorm",),
        "norm": ("layernorm",),
        "activation": ("gelu_tanh",),
        "is_grouped": (False,),
        "qkv_bias": (True,),
        "linear_bias": (True,),
        "tie_embeddings": (False,),
    },
    serves={"span_position": "blank", "context": "bidirectional"},
    check_code=_check_alpha,
    ignored=(".rotary_emb.inv_freq",),
    token_ids={
        "bos_token_id": "sop",
        "eos_token_id": "eop",
        "pad_token_id": "pad",
        "mask_token_id": "mask",
        "gmask_token_id": "gmask",
    },
    rows=(
        Row("token_embedding/embedding", "transformer.word_embeddings.weight", Same()),
        *norm("layers/attention_norm", _LAYER + "input_layernorm"),
        *projection("layers/attention/query", _QKV, fused=PerHead(0)),
        *projection("layers/attention/key", _QKV, fused=PerHead(1)),
        *projection("layers/attention/value", _QKV, fused=PerHead(2)),
        *projection("layers/attention/out", _LAYER + "attention.dense", inputs=2),
        *norm("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
        *projection("layers/mlp/up", _LAYER + "mlp.dense_h_to_4h"),
        *projection("layers/mlp/down", _LAYER + "mlp.dense_4h_to_h"),
        *norm("final_norm", "transformer.final_layernorm"),
        *projection("head", "lm_head"),
    ),
)
