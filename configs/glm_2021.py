"""GLM-Base and GLM-Large (Du et al. 2021), the published recipes on your own bilingual corpus.

What: 110M and 335M parameters, [MASK] spans only, learned 2D positions, rows of 512.
Cost: 1024 rows a step, 150k or 200k steps; the paper trained Large in 2.5 days on 64 V100s.
Command: python -m glm_jax.train --config=configs/glm_2021.py:large --config.data.dir=DATA
  --config.mesh.data=1 --config.mesh.fsdp=-1 --workdir=RUN
Expected loss: not known yet; nobody has run this recipe here.
Source: config/ds_block_{base,large}.sh of the published code; its attention dropout is left out.
"""

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset

RECIPES = {  # learning rate, steps, steps until the learning rate has decayed
    "base": (4e-4, 150_000, 120_000),
    "large": (2e-4, 200_000, 160_000),
}


def get_config(size: str = "large") -> ml_collections.ConfigDict:
    if size not in RECIPES:
        raise UserError(f"configs/glm_2021.py has no variant {size!r}; known: {', '.join(RECIPES)}")
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset(f"glm_{size}"))
    c.data.seq_length = 512
    c.data.num_workers = 4
    c.optimizer.learning_rate, c.training.steps, c.optimizer.decay_steps = RECIPES[size]
    c.optimizer.warmup_steps = c.optimizer.decay_steps // 20
    c.optimizer.final_ratio = 0.05
    c.training.batch_size = 1024
    c.training.log_every = 50
    c.training.eval_every = 1000
    c.training.eval_rows = 4096
    c.checkpoint.every = 1000
    c.checkpoint.keep_every = 20_000
    return c
