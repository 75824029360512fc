"""GLM-130B (Zeng et al. 2022), its published recipe as far as rows can be built for it.

What: 1D rotary positions, DeepNorm, GEGLU; 30 % [MASK] rows of four samples of 512 slots and 70 %
  [gMASK] rows of one of 2048; batches that grow from 192 to 4224 rows.
Variants: `:tasks` reads three sources, en and zh alike and 5 % of rows from `tasks`, prompts with
  answers (`prepare --source=tasks` on a .jsonl with the fields prompt and answer).
Cost: parameters, slots, training FLOPs, weights with gradients and AdamW (docs/recipes.md: how).
  130b: 129B, 4.0e11, 3.1e23, 2059.2 GB; 60 days on 768 A100 in the paper
  tasks: 129B, 4.0e11, 3.1e23, 2059.2 GB
Command: python -m glm_jax.train --config=configs/glm_130b.py --config.data.dir=DATA --workdir=RUN,
  with --config.model.vocab_size=0 for a tokenizer of your own. The mesh is fsdp x 8, the 8 of
  `model` in one fast domain; weights, gradients and AdamW are 8 GB a chip on 256 chips.
Expected loss: not known; nobody has run this recipe here.
Source: arXiv 2210.02414, Table 11 and section 2; the training log and code of THUDM/GLM-130B. The
  released checkpoint is step 49,300 of its run.
Otherwise than published: the batch grows by 192 rows at a time and not by 24, so that there are 22
  batch sizes to compile and not 169; single spans (2 %) are drawn for a row and not for a sample;
  the 2 % of [MASK] samples that are cut short are not; no dropout on attention; the learning rate
  starts at 0 and not at 1e-7; rows respect the ends of documents, which the published ones did not.
  It needs several hosts (docs/hosts.md).
"""

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset
from glm_jax.stages import BatchGrid

TOKENS = 400e9
BATCH_SIZE, SEQ_LENGTH = 4224, 2048
WARMUP_ROWS, RAMP_ROWS, DECAY_ROWS = 1_098_632, 5_493_164, 197_753_905
SMALLEST_BATCH = 192
VARIANTS = ("", "tasks")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise UserError(f"configs/glm_130b.py has no variant {variant!r}; known: tasks")
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset("glm_130b"))
    c.model.remat = "full"
    c.data.seq_length = SEQ_LENGTH
    c.data.num_workers = 8
    if variant == "tasks":
        c.data.sources = {
            name: config.to_dict(config.SourceConfig(weight=weight))
            for name, weight in (("en", 0.475), ("zh", 0.475), ("tasks", 0.05))
        }
    c.objective.token_weight = 0.3
    c.objective.sample_length = 512
    c.objective.single_span_prob = 0.02
    c.objective.document_weight = 0.7
    c.objective.document_min_ratio = 0.2
    c.objective.document_infill_prob = 0.0
    c.training.batch_size = BATCH_SIZE
    c.training.accumulation_steps = BATCH_SIZE // SMALLEST_BATCH
    c.training.batch_ramp = (SMALLEST_BATCH, SMALLEST_BATCH, RAMP_ROWS)
    c.training.embedding_gradient_shrink = (0.1,)
    c.training.eval_every = 1000
    c.training.eval_rows = BATCH_SIZE
    c.optimizer.learning_rate = 8e-5
    c.optimizer.final_ratio = 0.1
    c.optimizer.b2, c.optimizer.eps = 0.95, 1e-8
    # Published in rows.
    grid = BatchGrid(config.from_dict(c.to_dict()))
    c.optimizer.warmup_steps = grid.step_of_row(WARMUP_ROWS)
    c.optimizer.decay_steps = grid.step_of_row(DECAY_ROWS)
    c.training.steps = grid.step_of_row(round(TOKENS / SEQ_LENGTH))
    # The published log skips 200 batches by hand at each of two spikes (40,701 and 42,401).
    c.bad_steps.action = "rewind"
    c.mesh.data, c.mesh.fsdp, c.mesh.model = 1, -1, 8
    # As `fit` says: 32 are the fewest chips of v5p that hold it, at 96 % of their memory.
    c.mesh_rules = (
        "TPU v5p? x 32: accumulation_steps=88",
        "TPU v5 ?(lite|e) x 256: accumulation_steps=44",
    )
    c.checkpoint.every = 250
    c.checkpoint.keep_every = 5000
    return c
