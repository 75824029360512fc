"""Our own layout on the hub: the names of `glm_jax/hub/modeling_glm_jax.py`."""

from glm_jax.layouts.table import Layout, Linear, Row, Same

_LAYER = "model.layers.{i}."
_ATTENTION = _LAYER + "self_attn."

LAYOUT = Layout(
    name="glm_jax",
    rows=(
        Row("token_embedding/embedding", "model.embed_tokens.weight", Same()),
        Row("position_embedding/embedding", "model.embed_positions.weight", Same()),
        Row("block_position_embedding/embedding", "model.embed_block_positions.weight", Same()),
        Row("layers/attention_norm/scale", _LAYER + "input_layernorm.weight", Same()),
        Row("layers/attention_norm/bias", _LAYER + "input_layernorm.bias", Same()),
        Row("layers/attention/query/kernel", _ATTENTION + "q_proj.weight", Linear(1)),
        Row("layers/attention/query/bias", _ATTENTION + "q_proj.bias", Linear(0)),
        Row("layers/attention/key/kernel", _ATTENTION + "k_proj.weight", Linear(1)),
        Row("layers/attention/key/bias", _ATTENTION + "k_proj.bias", Linear(0)),
        Row("layers/attention/value/kernel", _ATTENTION + "v_proj.weight", Linear(1)),
        Row("layers/attention/value/bias", _ATTENTION + "v_proj.bias", Linear(0)),
        Row("layers/attention/out/kernel", _ATTENTION + "o_proj.weight", Linear(2)),
        Row("layers/attention/out/bias", _ATTENTION + "o_proj.bias", Linear(0)),
        Row("layers/mlp_norm/scale", _LAYER + "post_attention_layernorm.weight", Same()),
        Row("layers/mlp_norm/bias", _LAYER + "post_attention_layernorm.bias", Same()),
        Row("layers/mlp/up/kernel", _LAYER + "mlp.up_proj.weight", Linear(1)),
        Row("layers/mlp/up/bias", _LAYER + "mlp.up_proj.bias", Linear(0)),
        Row("layers/mlp/down/kernel", _LAYER + "mlp.down_proj.weight", Linear(1)),
        Row("layers/mlp/down/bias", _LAYER + "mlp.down_proj.bias", Linear(0)),
        Row("final_norm/scale", "model.norm.weight", Same()),
        Row("final_norm/bias", "model.norm.bias", Same()),
        Row("head/kernel", "lm_head.weight", Linear(1)),
    ),
)
