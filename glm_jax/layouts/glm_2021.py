"""GLM 2021: the original checkpoints and the hub's remote-code class, which share their names.

Source: THUDM/GLM `modeling_glm.py`. The fused projection is [Q; K; V], three equal blocks. The
checkpoints were trained with tanh GELU; the hub class computes erf GELU.
"""

from glm_jax.layouts.table import Fused, Layout, Linear, Row, Same

_LAYER = "transformer.layers.{i}."
_QKV = _LAYER + "attention.query_key_value."

LAYOUT = Layout(
    name="glm_2021",
    prefix="glm.",
    requires={"position": "learned_2d", "residual": "pre", "tie_embeddings": True},
    rows=(
        Row("token_embedding/embedding", "word_embeddings.weight", Same()),
        Row("position_embedding/embedding", "transformer.position_embeddings.weight", Same()),
        Row(
            "block_position_embedding/embedding",
            "transformer.block_position_embeddings.weight",
            Same(),
        ),
        Row("layers/attention_norm/scale", _LAYER + "input_layernorm.weight", Same()),
        Row("layers/attention_norm/bias", _LAYER + "input_layernorm.bias", Same()),
        Row("layers/attention/query/kernel", _QKV + "weight", Linear(1, Fused(0, axis=0))),
        Row("layers/attention/query/bias", _QKV + "bias", Linear(0, Fused(0, axis=0))),
        Row("layers/attention/key/kernel", _QKV + "weight", Linear(1, Fused(1, axis=0))),
        Row("layers/attention/key/bias", _QKV + "bias", Linear(0, Fused(1, axis=0))),
        Row("layers/attention/value/kernel", _QKV + "weight", Linear(1, Fused(2, axis=0))),
        Row("layers/attention/value/bias", _QKV + "bias", Linear(0, Fused(2, axis=0))),
        Row("layers/attention/out/kernel", _LAYER + "attention.dense.weight", Linear(2)),
        Row("layers/attention/out/bias", _LAYER + "attention.dense.bias", Linear(0)),
        Row("layers/mlp_norm/scale", _LAYER + "post_attention_layernorm.weight", Same()),
        Row("layers/mlp_norm/bias", _LAYER + "post_attention_layernorm.bias", Same()),
        Row("layers/mlp/up/kernel", _LAYER + "mlp.dense_h_to_4h.weight", Linear(1)),
        Row("layers/mlp/up/bias", _LAYER + "mlp.dense_h_to_4h.bias", Linear(0)),
        Row("layers/mlp/down/kernel", _LAYER + "mlp.dense_4h_to_h.weight", Linear(1)),
        Row("layers/mlp/down/bias", _LAYER + "mlp.dense_4h_to_h.bias", Linear(0)),
        Row("final_norm/scale", "transformer.final_layernorm.weight", Same()),
        Row("final_norm/bias", "transformer.final_layernorm.bias", Same()),
    ),
)
