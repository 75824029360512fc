"""Our own layout on the hub: the names of `glm_jax/hub/modeling_glm_jax.py`, for every model."""

from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.layouts.published_config import Fields, model_config
from glm_jax.layouts.table import Layout, Row, Same, norm, projection

MODEL_TYPE = "glm_jax_infilling"

_LAYER = "model.layers.{i}."
_ATTENTION = _LAYER + "self_attn."
_ACTIVATIONS = {  # ours -> hidden_act, gated_mlp
    "gelu_tanh": ("gelu_pytorch_tanh", False),
    "gelu": ("gelu", False),
    "geglu": ("gelu", True),
    "swiglu": ("silu", True),
}


def read_config(
    hub: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """The model of a config that `write_config` wrote."""
    fields = Fields(hub or {})
    is_gated = fields.flag("gated_mlp", False)
    activations = {
        theirs: ours for ours, (theirs, gated) in _ACTIVATIONS.items() if gated == is_gated
    }
    fields.must_be("hidden_act", *activations)
    return model_config(
        vocab_size=fields.size("vocab_size"),
        num_layers=fields.size("num_hidden_layers"),
        hidden_dim=fields.size("hidden_size"),
        num_heads=fields.size("num_attention_heads"),
        num_kv_heads=fields.size("num_key_value_heads", fields.size("num_attention_heads")),
        mlp_dim=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        position=fields.get("position_type"),
        span_position=fields.get("span_position", "blank"),
        context=fields.get("context", "bidirectional"),
        rope_base=fields.number("rope_base"),
        rope_fraction=fields.number("rope_fraction", 1.0),
        rope_layout=fields.get("rope_layout", "half"),
        norm=fields.get("norm_type", "layernorm"),
        norm_eps=fields.number("layer_norm_eps"),
        residual=fields.get("residual_type"),
        deepnorm_alpha=fields.number("deepnorm_alpha"),
        activation=activations[fields.get("hidden_act")],
        qkv_bias=fields.flag("qkv_bias", True),
        linear_bias=fields.flag("linear_bias", True),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        init_std=fields.number("initializer_range"),
        embedding_dropout=fields.number("embedding_dropout"),
        output_dropout=fields.number("output_dropout"),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture as GLMJaxConfig has it."""
    hidden_act, gated = _ACTIVATIONS[config.activation]
    model_class = "modeling_glm_jax.GLMJaxForBlankInfilling"
    return {
        "architectures": ["GLMJaxForBlankInfilling"],
        "auto_map": {
            "AutoConfig": "configuration_glm_jax.GLMJaxConfig",
            "AutoModel": "modeling_glm_jax.GLMJaxModel",
            "AutoModelForSeq2SeqLM": model_class,
            "AutoModelForCausalLM": model_class,
        },
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "position_type": config.position,
        "span_position": config.span_position,
        "context": config.context,
        "rope_base": config.rope_base,
        "rope_fraction": config.rope_fraction,
        "rope_layout": config.rope_layout,
        "norm_type": config.norm,
        "layer_norm_eps": config.norm_eps,
        "residual_type": config.residual,
        "deepnorm_alpha": config.residual_scale if config.residual == "deepnorm" else 0.0,
        "hidden_act": hidden_act,
        "gated_mlp": gated,
        "qkv_bias": config.qkv_bias,
        "linear_bias": config.linear_bias,
        "embedding_dropout": config.embedding_dropout,
        "output_dropout": config.output_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


LAYOUT = Layout(
    name="glm_jax",
    read_config=read_config,
    write_config=write_config,
    requires={"block_positions": (True,)},
    token_ids={
        "pad_token_id": "pad",
        "eos_token_id": "eos",
        "cls_token_id": "cls",
        "sop_token_id": "sop",
        "eop_token_id": "eop",
    },
    rows=(
        Row("token_embedding/embedding", "model.embed_tokens.weight", Same()),
        Row("position_embedding/embedding", "model.embed_positions.weight", Same()),
        Row("block_position_embedding/embedding", "model.embed_block_positions.weight", Same()),
        *norm("layers/attention_norm", _LAYER + "input_layernorm"),
        *projection("layers/attention/query", _ATTENTION + "q_proj"),
        *projection("layers/attention/key", _ATTENTION + "k_proj"),
        *projection("layers/attention/value", _ATTENTION + "v_proj"),
        *projection("layers/attention/out", _ATTENTION + "o_proj", inputs=2),
        *norm("layers/attention_out_norm", _LAYER + "post_self_attn_layernorm"),
        *norm("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
        *projection("layers/mlp/gate", _LAYER + "mlp.gate_proj"),
        *projection("layers/mlp/up", _LAYER + "mlp.up_proj"),
        *projection("layers/mlp/down", _LAYER + "mlp.down_proj"),
        *norm("layers/mlp_out_norm", _LAYER + "post_mlp_layernorm"),
        *norm("final_norm", "model.norm"),
        *projection("head", "lm_head"),
    ),
)
