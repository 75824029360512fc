"""Named architectures, with the sizes and numerics of the published models.

`vocab_size` is the published number of embedding rows; 0 fits them to the tokenizer at hand.
"""

import dataclasses

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError


def _sized(base: ModelConfig, layers: int, hidden: int, heads: int, mlp: int, **changes):
    return dataclasses.replace(
        base, num_layers=layers, hidden_dim=hidden, num_heads=heads, mlp_dim=mlp, **changes
    )


# GLM (Du et al. 2021, arXiv 2103.10360): learned 2D positions, pre-LN, tanh GELU, tied embeddings.
_GLM_2021 = ModelConfig(vocab_size=30592, embedding_dropout=0.1, output_dropout=0.1)
_LARGE = _sized(_GLM_2021, 24, 1024, 16, 4096)
_10B = _sized(_GLM_2021, 48, 4096, 64, 16384, max_positions=1024, vocab_size=50304)

# GLM-130B (Zeng et al. 2022, arXiv 2210.02414).
_GLM_130B = _sized(
    ModelConfig(),
    70,
    12288,
    96,
    32768,
    vocab_size=150528,
    max_positions=2048,
    position="rope_1d",
    span_position="mixed",
    residual="deepnorm",
    activation="geglu",
    init_std=0.0052,
    embedding_dropout=0.1,
    output_dropout=0.1,
)

# ChatGLM-6B: 2D rotary positions, DeepNorm residual, untied head, no dropout.
_CHATGLM = ModelConfig(
    position="rope_2d", residual="deepnorm", tie_embeddings=False, init_std=0.0052
)

# ChatGLM2 and later: grouped queries, RMSNorm, SwiGLU, half of each head turns.
_CHATGLM2 = ModelConfig(
    num_kv_heads=2,
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
_GLM4 = dataclasses.replace(_CHATGLM2, vocab_size=151552)
_GLM4_0414 = dataclasses.replace(_GLM4, residual="sandwich", max_positions=32768)

# Ours: what ChatGLM2 changed, with the blanks and two positions of GLM 2021 and ChatGLM-6B.
_MODERN = dataclasses.replace(
    _CHATGLM2,
    position="rope_2d",
    span_position="blank",
    context="bidirectional",
    rope_fraction=1.0,
    rope_layout="half",
    qkv_bias=False,
    max_positions=2048,
)

_TINY = ModelConfig(
    num_layers=3, hidden_dim=128, num_heads=4, mlp_dim=512, max_positions=256, dtype="float32"
)

PRESETS = {
    "glm_base": _GLM_2021,
    "glm_large": _LARGE,
    "glm_doc": _LARGE,
    "glm_410m": dataclasses.replace(_LARGE, num_layers=30),
    "glm_515m": _sized(_GLM_2021, 30, 1152, 18, 4608),
    "glm_roberta": dataclasses.replace(_LARGE, vocab_size=50304),
    "glm_large_chinese": dataclasses.replace(_LARGE, vocab_size=50048, max_positions=1024),
    "glm_2b": _sized(_10B, 36, 2048, 32, 8192),
    "glm_10b": _10B,
    "glm_10b_chinese": dataclasses.replace(_10B, vocab_size=50048),
    "glm_130b": _GLM_130B,
    "chatglm_6b": _sized(_CHATGLM, 28, 4096, 32, 16384, max_positions=2048, vocab_size=130528),
    "chatglm2_6b": _sized(_CHATGLM2, 28, 4096, 32, 13696, max_positions=32768, vocab_size=65024),
    "chatglm3_6b": _sized(_CHATGLM2, 28, 4096, 32, 13696, max_positions=32768, vocab_size=65024),
    "glm4_9b": _sized(
        _GLM4, 40, 4096, 32, 13696, max_positions=131072, rope_base=5e6, norm_eps=1.5625e-7
    ),
    "glm4_0414_9b": _sized(_GLM4_0414, 40, 4096, 32, 13696),
    "glm4_0414_32b": _sized(_GLM4_0414, 61, 6144, 48, 23040, qkv_bias=False),
    "glm_modern_30m": _sized(_MODERN, 10, 384, 6, 1024, tie_embeddings=True),
    "glm_modern_120m": _sized(_MODERN, 14, 768, 12, 2048, num_kv_heads=4, tie_embeddings=True),
    "glm_modern_350m": _sized(_MODERN, 24, 1024, 16, 2816, num_kv_heads=4, tie_embeddings=True),
    "glm_modern_1b3": _sized(_MODERN, 24, 2048, 16, 5632, num_kv_heads=4),
    # For the quickstart and first steps on a CPU: the architectures in miniature. The initial
    # weights are as large for this width as 0.02 is for 768.
    "glm_tiny": dataclasses.replace(_TINY, init_std=0.05),
    "chatglm_tiny": dataclasses.replace(
        _TINY, position="rope_2d", residual="deepnorm", tie_embeddings=False, init_std=0.0052
    ),
}


def preset(name: str) -> ModelConfig:
    """The architecture called `name`.

    Raises:
      UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"no model preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
