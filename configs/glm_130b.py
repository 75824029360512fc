"""GLM-130B (Zeng et al. 2022), its published recipe as far as rows can be built for it.

What: 1D rotary positions, DeepNorm, GEGLU; 30 % [MASK] rows of four samples of 512 slots and 70 %
  [gMASK] rows of one of 2048.
Cost: parameters, slots, training FLOPs, weights with gradients and AdamW (docs/recipes.md: how).
  130b: 129B, 4.0e11, 3.1e23, 2059.2 GB; 60 days on 768 A100 in the paper
Command: python -m glm_jax.train --config=configs/glm_130b.py --config.data.dir=DATA --workdir=RUN,
  with --config.model.vocab_size=0 for a tokenizer of your own. The mesh is fsdp x 8, the 8 of
  `model` in one fast domain; weights, gradients and AdamW are 8 GB a chip on 256 chips.
Expected loss: not known; nobody has run this recipe here.
Source: arXiv 2210.02414, Table 11 and section 2; the training log and code of THUDM/GLM-130B. The
  released checkpoint is step 49,300 of a run with a batch ramp; 46,239 steps at the full batch are
  the paper's 400B tokens.
Not expressible yet: the batch ramp (192 to 4224 rows over the first 2.5 % of the rows), so the
  warm-up has the number of updates of the published one (2,316) and not its rows; 5 % of multi-task
  instruction rows; the 2 % of [MASK] samples that are cut short; dropout on attention; several
  hosts, which it needs. Single spans (2 %) are drawn for a row and not for a sample. The learning
  rate starts at 0 and not at 1e-7, and rows respect the ends of documents, which the published ones
  did not.
"""

import ml_collections

from glm_jax import config
from glm_jax.model.presets import preset

TOKENS = 400e9
BATCH_SIZE, SEQ_LENGTH = 4224, 2048
DECAY_ROWS = 197_753_905


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset("glm_130b"))
    c.model.remat = "full"
    c.data.seq_length = SEQ_LENGTH
    c.data.num_workers = 8
    c.objective.token_weight = 0.3
    c.objective.sample_length = 512
    c.objective.single_span_prob = 0.02
    c.objective.document_weight = 0.7
    c.objective.document_min_ratio = 0.2
    c.objective.document_infill_prob = 0.0
    c.optimizer.learning_rate = 8e-5
    c.optimizer.final_ratio = 0.1
    c.optimizer.warmup_steps = 2_316
    c.optimizer.decay_steps = round(DECAY_ROWS / BATCH_SIZE)
    c.optimizer.b2, c.optimizer.eps = 0.95, 1e-8
    c.training.embedding_gradient_shrink = (0.1,)
    c.training.batch_size = BATCH_SIZE
    c.training.steps = round(TOKENS / (BATCH_SIZE * SEQ_LENGTH))
    c.training.eval_every = 1000
    c.training.eval_rows = 4224
    # The published log skips 200 batches by hand at each of two spikes (40,701 and 42,401).
    c.bad_steps.action = "rewind"
    c.mesh.data, c.mesh.fsdp, c.mesh.model = 1, -1, 8
    c.checkpoint.every = 250
    c.checkpoint.keep_every = 5000
    return c
