"""The smallest useful GLM: about a million parameters, to see that everything works.

What: three layers, 128 wide, rows of 128; [MASK], [sMASK] and [gMASK] rows.
Cost: five to ten minutes on two CPU cores.
Command: python -m glm_jax.train --config=configs/glm_tiny.py --config.data.dir=DATA --workdir=RUN
Variants: the default has learned 2D positions (GLM 2021); `:chatglm` has 2D rotary positions and
  the DeepNorm residual (ChatGLM-6B); `:almanac` is the quickstart, [MASK] rows only; `:text` is for
  half an hour on real text of tens of megabytes, rows of 256, Muon.
Expected: `:almanac` ends at a validation loss of about 0.29 (0.17 in English, 0.48 in Chinese).
"""

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.model.presets import preset

VARIANTS = {"": "glm_tiny", "chatglm": "chatglm_tiny", "almanac": "glm_tiny", "text": "glm_tiny"}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(filter(None, VARIANTS))
        raise UserError(f"configs/glm_tiny.py has no variant {variant!r}; known: {known}")
    c = ml_collections.ConfigDict(config.default_dict())
    c.model = config.to_dict(preset(VARIANTS[variant]))
    c.data.seq_length = 128
    c.objective.token_weight = 0.5
    c.objective.sentence_weight = 0.25
    c.objective.document_weight = 0.25
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup_steps = 200
    c.training.steps = 3000
    c.training.batch_size = 8
    c.training.log_every = 100
    c.training.eval_every = 500
    c.training.eval_rows = 256
    c.checkpoint.every = 500
    if variant == "almanac":
        _learn_facts(c)
    if variant == "text":
        _learn_text(c)
    return c


def _learn_facts(c: ml_collections.ConfigDict) -> None:
    """English needs more tokens to say the same; blanks are short answers, and many.

    Eight short rows have heavy-tailed gradient norms: a limit in standard deviations would skip
    healthy steps. Steps that are not finite are still skipped.
    """
    c.bad_steps.sigma = 0.0
    c.data.sources = {
        name: config.to_dict(config.SourceConfig(weight=weight))
        for name, weight in (("en", 1.5), ("zh", 1.0))
    }
    c.objective.sentence_weight = 0.0
    c.objective.document_weight = 0.0
    c.data.packing = "documents"  # a statement that is cut says less
    c.objective.mask_ratio = 0.2
    c.optimizer.name = "muon"
    c.optimizer.final_ratio = 0.02
    c.optimizer.weight_decay = 0.01
    c.training.steps = 3500


def _learn_text(c: ml_collections.ConfigDict) -> None:
    """Long spans, so that documents can be scored; a steep schedule, as there is one run to do."""
    c.data.seq_length = 256
    c.model.max_positions = 256
    c.objective.token_weight = 0.3
    c.objective.sentence_weight = 0.2
    c.objective.document_weight = 0.5
    c.optimizer.name = "muon"
    c.optimizer.final_ratio = 0.02
    c.training.steps = 3000
    c.logging.samples = (
        "The old man opened the [MASK] and looked out.",
        "这本书很[MASK]，我非常喜欢。",
        "He was born in London and [gMASK]",
        "手机的电池[gMASK]",
    )
