"""Named architectures, with the sizes and numerics of the published models."""

import dataclasses

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError

_GLM_2021 = ModelConfig(embedding_dropout=0.1, output_dropout=0.1)
_CHATGLM = ModelConfig(
    position="rope_2d", residual="deepnorm", tie_embeddings=False, init_std=0.0052
)

_TINY = ModelConfig(
    num_layers=3, hidden_dim=128, num_heads=4, mlp_dim=512, max_positions=256, dtype="float32"
)

PRESETS = {
    # GLM (Du et al. 2021): learned 2D positions, pre-LN, tanh GELU, tied embeddings.
    "glm_base": _GLM_2021,
    "glm_large": dataclasses.replace(
        _GLM_2021, num_layers=24, hidden_dim=1024, num_heads=16, mlp_dim=4096
    ),
    # ChatGLM-6B: 2D rotary positions, DeepNorm residual, untied head, no dropout.
    "chatglm_6b": dataclasses.replace(
        _CHATGLM,
        num_layers=28,
        hidden_dim=4096,
        num_heads=32,
        mlp_dim=16384,
        max_positions=2048,
        vocab_size=130528,
    ),
    # For the quickstart and first steps on a CPU: the two architectures in miniature. The initial
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
