"""GLM-4-9B, GLM-4-9B-0414 and GLM-4-32B-0414: continued pretraining of the released weights.

What: causal models, so rows are [gMASK] alone: a document is written from its first two tokens on,
  as close as rows come to the `[gMASK] <sop> text` of the released models.
Cost: parameters, slots, training FLOPs, weights with gradients and AdamW (docs/recipes.md: how).
  9b: 9.4B, 1.0e10, 5.9e20, 150.4 GB
  0414_9b: 9.4B, 1.0e10, 5.9e20, 150.4 GB
  0414_32b: 32.6B, 1.0e10, 2.0e21, 521.1 GB
Command: python -m glm_jax.train --config=configs/glm4.py:9b --config.init_from=DIR
  --config.data.dir=DATA --workdir=RUN, on data prepared with the tokenizer of the released model.
Expected loss: not known; nobody has run these recipes here.
Variants: 9b has the base of the rotary positions of the 128K chat release; another release has its
  own, and configs/continued.py reads it from the folder.
Source: ours. How these models were pretrained was never published beyond the number of tokens
  (about 10T for 9b, 15T for 0414_32b). The learning rate is a cautious guess, to keep what was
  learned; a batch is a million slots; the schedule holds its peak, so that a longer run shares its
  first steps, and its cooldown is the last fifth (arXiv 2405.18392).
"""

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset
from glm_jax.recipes import CAUSAL_OBJECTIVE, CONTINUED

VARIANTS = {"9b": "glm4_9b", "0414_9b": "glm4_0414_9b", "0414_32b": "glm4_0414_32b"}


def get_config(variant: str = "9b") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"configs/glm4.py has no variant {variant!r}; known: {known}")
    c = ml_collections.ConfigDict(config.default_dict())
    c.update(CONTINUED)
    c.model = config.to_dict(preset(VARIANTS[variant]))
    c.model.remat = "full"
    c.data.seq_length = 8192
    c.data.num_workers = 4
    c.objective.update(CAUSAL_OBJECTIVE)
    if variant == "0414_32b":
        c.optimizer.learning_rate = 1e-5
        c.mesh_rules = ("NVIDIA H200 x 8: accumulation_steps=4",)
    c.training.batch_size = 128
    c.checkpoint.keep_every = 2_500
    return c
