"""The smallest useful GLM: 0.7M parameters, learned 2D positions, the three objectives.

What: a smoke test and a first look; the quickstart trains it on the almanac.
Cost: minutes on two CPU cores.
Command: python -m glm_jax.train --config=configs/glm_tiny.py --config.data.dir=DATA --workdir=RUN
Variants: `:chatglm` is the same size with 2D rotary positions and DeepNorm (ChatGLM-6B).
"""

import ml_collections

from glm_jax import config
from glm_jax.model.presets import preset

VARIANTS = {"": "glm_tiny", "chatglm": "chatglm_tiny"}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset(VARIANTS.get(variant, variant)))
    c.data.sources = {
        "en": config.to_dict(config.SourceConfig()),
        "zh": config.to_dict(config.SourceConfig()),
    }
    c.data.seq_length = 128
    c.objective.token_weight = 1.0
    c.training.steps = 3000
    c.training.batch_size = 8
    c.training.log_every = 100
    c.training.eval_every = 1000
    c.training.eval_rows = 128
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup_steps = 200
    c.checkpoint.every = 1000
    return c
