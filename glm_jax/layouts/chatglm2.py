"""ChatGLM2-6B, ChatGLM3-6B and the remote-code releases of GLM-4-9B.

Source: THUDM/chatglm2-6b `modeling_chatglm.py`. The fused projection is [Q; K; V] with fewer rows
of K and V; the rows of the gated mlp are silu(first half) * second half.
"""

from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts.published_config import Fields, model_config
from glm_jax.layouts.table import Block, Layout, Row, Same, norm, projection

_LAYER = "transformer.encoder.layers.{i}."
_QKV = _LAYER + "self_attention.query_key_value"
_QKV_AXES = ("heads", "kv_heads", "kv_heads")
_UP = _LAYER + "mlp.dense_h_to_4h"
_BASE = 10000.0
_GLM4_VOCAB = 151552

# What the later members share; their files and the native classes of transformers fix it.
FUNCTION = {
    "position": "rope_1d",
    "rope_layout": "interleaved",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "linear_bias": False,
}
SERVES = {"span_position": "slot", "context": "causal"}


def read_config(
    hub: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """The model of a published config."""
    fields = Fields(hub or {})
    _check_function(fields)
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    groups = fields.size("multi_query_group_num", 1)
    return model_config(
        vocab_size=fields.size("padded_vocab_size"),
        num_layers=fields.size("num_layers"),
        hidden_dim=hidden,
        num_heads=heads,
        num_kv_heads=groups if fields.flag("multi_query_attention", False) else heads,
        mlp_dim=fields.size("ffn_hidden_size"),
        max_positions=fields.size("seq_length"),
        norm_eps=fields.number("layernorm_epsilon"),
        rope_base=_BASE * _rope_ratio(fields),
        rope_fraction=0.5,
        qkv_bias=fields.flag("add_qkv_bias", False),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        output_dropout=fields.number("hidden_dropout", 0.0),
        **FUNCTION,
        **SERVES,
    )


def _rope_ratio(fields: Fields) -> float:
    """What the base is multiplied with. ChatGLM2 divides positions by this field instead."""
    ratio = fields.number("rope_ratio", 1.0)
    told = f"{fields.get('_name_or_path', '')} {fields.get('auto_map', '')}".lower()
    is_glm4 = fields.size("padded_vocab_size") == _GLM4_VOCAB or "glm-4" in told
    if ratio != 1.0 and not (is_glm4 or "chatglm3" in told):
        raise UserError(
            f"config.json: rope_ratio is {ratio:g}: ChatGLM2 divides positions by it, which is not "
            "supported; if this is ChatGLM3 or GLM-4, let _name_or_path say so (THUDM/chatglm3-6b)"
        )
    return ratio


def _check_function(fields: Fields) -> None:
    fields.must_be("rmsnorm", True)
    fields.must_be("post_layer_norm", True)
    fields.must_be("original_rope", True)
    fields.must_be("add_bias_linear", False)
    fields.must_be("apply_residual_connection_post_layernorm", False)
    fields.must_be("pre_seq_len", None)
    head_dim = fields.size("hidden_size") // fields.size("num_attention_heads")
    if fields.size("kv_channels", head_dim) != head_dim:
        raise UserError(
            f"config.json: kv_channels is {fields.get('kv_channels')}, supported is hidden_size / "
            f"num_attention_heads = {head_dim}"
        )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture as the published ChatGLMConfig has it."""
    # Of the published classes, GLM-4's is the one that surely scales the base.
    code = "THUDM/chatglm3-6b--" if config.rope_base == _BASE else "THUDM/glm-4-9b--"
    model_class = code + "modeling_chatglm.ChatGLMForConditionalGeneration"
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "auto_map": {
            "AutoConfig": code + "configuration_chatglm.ChatGLMConfig",
            "AutoModel": model_class,
            "AutoModelForCausalLM": model_class,
            "AutoModelForSeq2SeqLM": model_class,
        },
        "add_bias_linear": False,
        "add_qkv_bias": config.qkv_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.mlp_dim,
        "fp32_residual_connection": False,
        "hidden_dropout": config.output_dropout,
        "hidden_size": config.hidden_dim,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.norm_eps,
        "multi_query_attention": config.is_grouped,
        "multi_query_group_num": config.kv_heads,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": config.rope_base / _BASE,
        "seq_length": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


LAYOUT = Layout(
    name="chatglm2",
    read_config=read_config,
    write_config=write_config,
    requires={
        **{field: (value,) for field, value in FUNCTION.items()},
        "rope_fraction": (0.5,),
        "residual": ("pre",),
        "tie_embeddings": (False,),
    },
    serves=SERVES,
    ignored=("rotary_pos_emb.inv_freq",),
    token_ids={"eos_token_id": "eos", "pad_token_id": "pad"},
    rows=(
        Row("token_embedding/embedding", "transformer.embedding.word_embeddings.weight", Same()),
        *norm("layers/attention_norm", _LAYER + "input_layernorm"),
        *projection("layers/attention/query", _QKV, fused=Block(0, _QKV_AXES)),
        *projection("layers/attention/key", _QKV, fused=Block(1, _QKV_AXES)),
        *projection("layers/attention/value", _QKV, fused=Block(2, _QKV_AXES)),
        *projection("layers/attention/out", _LAYER + "self_attention.dense", inputs=2),
        *norm("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
        *projection("layers/mlp/gate", _UP, fused=Block(0, ("mlp", "mlp"))),
        *projection("layers/mlp/up", _UP, fused=Block(1, ("mlp", "mlp"))),
        *projection("layers/mlp/down", _LAYER + "mlp.dense_4h_to_h"),
        *norm("final_norm", "transformer.encoder.final_layernorm"),
        *projection("head", "transformer.output_layer"),
    ),
)
