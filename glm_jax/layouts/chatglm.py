"""ChatGLM-6B v1.

Source: THUDM/chatglm-6b `modeling_chatglm.py`. The rows of the fused projection are q, k, v of
head 0, then of head 1 and so on. The rotary frequencies in its files are buffers that follow from
the config.
"""

from glm_jax.layouts.table import Fused, Layout, Linear, Row, Same

_LAYER = "transformer.layers.{i}."
_QKV = _LAYER + "attention.query_key_value."

LAYOUT = Layout(
    name="chatglm",
    requires={"position": "rope_2d", "residual": "deepnorm", "tie_embeddings": False},
    ignored=(".rotary_emb.inv_freq",),
    rows=(
        Row("token_embedding/embedding", "transformer.word_embeddings.weight", Same()),
        Row("layers/attention_norm/scale", _LAYER + "input_layernorm.weight", Same()),
        Row("layers/attention_norm/bias", _LAYER + "input_layernorm.bias", Same()),
        Row("layers/attention/query/kernel", _QKV + "weight", Linear(1, Fused(0, axis=1))),
        Row("layers/attention/query/bias", _QKV + "bias", Linear(0, Fused(0, axis=1))),
        Row("layers/attention/key/kernel", _QKV + "weight", Linear(1, Fused(1, axis=1))),
        Row("layers/attention/key/bias", _QKV + "bias", Linear(0, Fused(1, axis=1))),
        Row("layers/attention/value/kernel", _QKV + "weight", Linear(1, Fused(2, axis=1))),
        Row("layers/attention/value/bias", _QKV + "bias", Linear(0, Fused(2, axis=1))),
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
        Row("head/kernel", "lm_head.weight", Linear(1)),
    ),
)
