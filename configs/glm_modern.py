"""Small GLMs with the parts of ChatGLM2 and the blanks of GLM 2021, to train from scratch.

What: RMSNorm, SwiGLU, grouped queries and 2D rotary positions; 40 % [MASK], 30 % [sMASK] and 30 %
  [gMASK] rows, the mixture of GLM-2B: [gMASK] rows have the most targets, the others both sides.
Cost: parameters (with 32,000 pieces), slots, training FLOPs, weights with gradients and AdamW
  (docs/recipes.md: how); about 20 tokens a parameter (Hoffmann et al. 2022, arXiv 2203.15556).
  30m: 28M, 5.9e8, 9.9e16, 0.4 GB
  120m: 113M, 2.4e9, 1.6e18, 1.8 GB
  350m: 303M, 6.3e9, 1.1e19, 4.9 GB
  1b3: 1.21B, 2.5e10, 1.8e20, 19.4 GB
Command: python -m glm_jax.train --config=configs/glm_modern.py:120m --config.data.dir=DATA
  --workdir=RUN
Expected loss: not known; nobody has run these recipes here.
Source: ours. Learning rates are Pythia's for its next larger size (arXiv 2304.01373), the z-loss is
  PaLM's (arXiv 2204.02311). The schedule holds its peak, so that a longer run (`training.steps`)
  shares its first steps, and its cooldown is the last fifth (arXiv 2405.18392).
"""

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset

VARIANTS = {  # learning rate, slots of a row, rows of a batch, steps
    "30m": (1e-3, 1024, 128, 4_500),
    "120m": (6e-4, 1024, 256, 9_000),
    "350m": (3e-4, 2048, 256, 12_000),
    "1b3": (2e-4, 2048, 512, 24_000),
}


def get_config(variant: str = "120m") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"configs/glm_modern.py has no variant {variant!r}; known: {known}")
    learning_rate, seq_length, batch_size, steps = VARIANTS[variant]
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset(f"glm_modern_{variant}"))
    c.data.seq_length = seq_length
    c.data.num_workers = 4
    c.objective.token_weight = 0.4
    c.objective.sentence_weight = 0.3
    c.objective.document_weight = 0.3
    c.optimizer.learning_rate = learning_rate
    c.optimizer.schedule = "wsd"
    c.optimizer.warmup_steps = steps // 20
    c.optimizer.cooldown_steps = steps // 5
    c.optimizer.b2, c.optimizer.eps = 0.95, 1e-8
    c.training.steps = steps
    c.training.batch_size = batch_size
    c.training.z_loss = 1e-4
    c.training.log_every = 50
    c.training.eval_rows = 2048
    c.checkpoint.keep_every = steps // 5
    if variant == "1b3":
        c.model.remat = "full"
        c.mesh.data, c.mesh.fsdp = 1, -1
    return c
