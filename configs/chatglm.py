"""ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B: continued pretraining of the released weights.

What: 6b has 2D rotary positions and learns 30 % [MASK] and 70 % [gMASK] rows, as GLM-130B does;
  2_6b and 3_6b are causal, so their rows are [gMASK] alone: a document is written from its first
  two tokens on, as close as rows come to the `[gMASK] sop text` of the released models.
Cost: parameters, slots, training FLOPs, weights with gradients and AdamW (docs/recipes.md: how).
  6b: 6.71B, 1.0e10, 4.2e20, 107.3 GB
  2_6b: 6.24B, 1.0e10, 3.9e20, 99.9 GB
  3_6b: 6.24B, 1.0e10, 3.9e20, 99.9 GB
Command: python -m glm_jax.train --config=configs/chatglm.py:3_6b --config.init_from=DIR
  --config.data.dir=DATA --workdir=RUN, on data prepared with the tokenizer of the released model.
Expected loss: not known; nobody has run these recipes here.
Source: ours. How these models were pretrained was never published beyond the number of tokens (1T
  for 6b, 1.4T for 2_6b). The learning rate is a cautious guess, to keep what was learned; a batch
  is a million slots; the schedule holds its peak, so that a longer run shares its first steps, and
  its cooldown is the last fifth (arXiv 2405.18392).
"""

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset
from glm_jax.recipes import CAUSAL_OBJECTIVE, CONTINUED

VARIANTS = {"6b": "chatglm_6b", "2_6b": "chatglm2_6b", "3_6b": "chatglm3_6b"}


def get_config(variant: str = "3_6b") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"configs/chatglm.py has no variant {variant!r}; known: {known}")
    c = ml_collections.ConfigDict(config.default_dict())
    c.update(CONTINUED)
    c.model = config.to_dict(preset(VARIANTS[variant]))
    c.model.remat = "full"
    c.data.num_workers = 4
    if variant == "6b":
        c.data.seq_length, c.training.batch_size = 2048, 512
        c.objective.token_weight, c.objective.document_weight = 0.3, 0.7
        c.objective.document_infill_prob = 0.0
    else:
        c.data.seq_length, c.training.batch_size = 8192, 128
        c.objective.update(CAUSAL_OBJECTIVE)
    c.checkpoint.keep_every = 2_500
    return c
