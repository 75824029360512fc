"""GLM 2021, from Base to 10B-Chinese with its second stage: the published recipes, on your corpus.

What: learned 2D positions; [MASK] alone for base, large and roberta, mixed with [sMASK] and [gMASK]
  for the others. `_longer` is the second stage of the 10B models, rows of 1024 instead of 512.
Cost: parameters, slots, training FLOPs, weights with gradients and AdamW (docs/recipes.md: how).
  base: 109M, 7.9e10, 5.2e19, 1.7 GB
  large: 335M, 1.0e11, 2.1e20, 5.4 GB; 2.5 days on 64 V100 in the paper
  doc: 335M, 1.0e11, 2.1e20, 5.4 GB
  410m: 410M, 1.0e11, 2.6e20, 6.6 GB
  515m: 515M, 1.0e11, 3.2e20, 8.2 GB
  roberta: 355M, 1.0e12, 2.2e21, 5.7 GB
  large_chinese: 356M, 1.3e11, 2.8e20, 5.7 GB
  2b: 1.92B, 2.6e11, 3.0e21, 30.7 GB
  10b: 9.88B, 6.9e11, 4.1e22, 158.1 GB
  10b_longer: 9.88B, 1.0e11, 6.2e21, 158.1 GB
  10b_chinese: 9.88B, 2.0e11, 1.2e22, 158.1 GB; 38 s a step on 256 A100 (asker of THUDM/GLM#81)
  10b_chinese_longer: 9.88B, 1.7e10, 9.9e20, 158.1 GB
Command: python -m glm_jax.train --config=configs/glm_2021.py:large --config.data.dir=DATA
  --workdir=RUN, with --config.model.vocab_size=0 for a tokenizer of your own; a second stage with
  --config.init_from=DIR.
Expected loss: not known; nobody has run these recipes here.
Source: config/ds_block*.sh and config_block*.json of THUDM/GLM. Batches: arXiv 2103.10360 for large
  (1024); 16 rows x 8 x its 64 GPUs for roberta; THUDM/GLM#81 asks about 256 x 21 and 256 x 8 for
  10b and its second stage, and the answer does not object; published for no other: our choice.
  Steps are the scripts', but for roberta (250k, the paper) and 10b_chinese (72k, then 8k; #81); how
  long the second stage of 10b was, we do not know. doc, 410m, 515m: half of the rows with [gMASK]
  spans of 50 to 100 % are the paper's, the schedule is that of large, as theirs was not published.
  Rows of large_chinese, 2b and 10b have [dBLOCK] noise (10 %), 2 % of them (_longer: 50 %) are cut
  into short texts, and 5 % of those of 10b_longer have single spans, as published.
Not expressible yet: dropout on attention; fp16, as we train in bfloat16.
"""

from typing import NamedTuple

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset


class Recipe(NamedTuple):
    learning_rate: float
    batch_size: int
    steps: int
    decay_steps: int
    warmup_steps: int
    final_ratio: float
    schedule: str = "cosine"
    shares: tuple[float, float, float] = (1.0, 0.0, 0.0)  # of rows: [MASK], [sMASK], [gMASK]


_LARGE = Recipe(2e-4, 1024, 200_000, 160_000, 8_000, 0.05)
_DOC = _LARGE._replace(shares=(0.5, 0.0, 0.5))
_THREE, _MORE_BLANKS = (0.4, 0.3, 0.3), (0.5, 0.3, 0.2)
# 5 % of the published batches are single spans and thereby [MASK], the others as in _THREE.
_SINGLE = 0.05
_THREE_AND_SINGLE = (_SINGLE + (1 - _SINGLE) * 0.4, (1 - _SINGLE) * 0.3, (1 - _SINGLE) * 0.3)

VARIANTS = {
    "base": Recipe(4e-4, 1024, 150_000, 120_000, 6_000, 0.05),
    "large": _LARGE,
    "doc": _DOC,
    "410m": _DOC,
    "515m": _DOC,
    "roberta": Recipe(4e-4, 8192, 250_000, 500_000, 30_000, 0.025, "linear"),
    "large_chinese": Recipe(4e-4, 1024, 250_000, 200_000, 8_000, 0.1, shares=_THREE),
    "2b": Recipe(1e-4, 2048, 250_000, 175_000, 7_000, 0.1, shares=_THREE),
    "10b": Recipe(1e-4, 5376, 250_000, 175_000, 7_000, 0.1, shares=_MORE_BLANKS),
    "10b_longer": Recipe(3e-5, 2048, 50_000, 50_000, 250, 0.1, "linear", _THREE_AND_SINGLE),
    "10b_chinese": Recipe(1e-4, 5376, 72_000, 120_000, 4_800, 0.1, shares=_MORE_BLANKS),
    "10b_chinese_longer": Recipe(3e-5, 2048, 8_000, 20_000, 500, 0.1, shares=_MORE_BLANKS),
}

# Where the batch does not fit at once; docs/pods.md has what was compiled.
MESH_RULES = {
    "10b": ("NVIDIA H200 x 8: accumulation_steps=3",),
    "10b_longer": ("NVIDIA H200 x 8: accumulation_steps=2",),
}


def get_config(variant: str = "large") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"configs/glm_2021.py has no variant {variant!r}; known: {known}")
    recipe, size = VARIANTS[variant], variant.removesuffix("_longer")
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset(f"glm_{size}"))
    c.data.seq_length = 1024 if variant.endswith("_longer") else 512
    c.data.num_workers = 4
    o = c.objective
    o.token_weight, o.sentence_weight, o.document_weight = recipe.shares
    o.document_min_ratio = 0.5 if size in ("doc", "410m", "515m") else 0.25
    if size in ("large_chinese", "2b", "10b", "10b_chinese"):
        o.block_mask_prob = 0.1
        o.short_sequence_prob = 0.5 if variant.endswith("_longer") else 0.02
    if variant == "10b_longer":
        o.single_span_prob = _SINGLE / o.token_weight
    c.optimizer.learning_rate = recipe.learning_rate
    c.optimizer.schedule = recipe.schedule
    c.optimizer.warmup_steps = recipe.warmup_steps
    c.optimizer.decay_steps = recipe.decay_steps
    c.optimizer.final_ratio = recipe.final_ratio
    c.optimizer.weight_decay = 0.01 if size in ("roberta", "large_chinese") else 0.1
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.mesh_rules = MESH_RULES.get(variant.replace("_chinese", ""), ())
    c.training.batch_size, c.training.steps = recipe.batch_size, recipe.steps
    c.training.log_every = 50
    c.training.eval_every = 1000
    c.training.eval_rows = 4096
    c.checkpoint.every = 1000
    c.checkpoint.keep_every = 20_000
    if size in ("2b", "10b", "10b_chinese"):
        c.model.remat = "full"
        c.optimizer.b2, c.optimizer.eps = 0.95, 1e-8
    return c
