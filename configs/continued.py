"""Continued pretraining of whatever model a folder holds: a hub checkpoint or an export of ours.

What: the architecture is read from the folder; its own context and positions are kept. Models that
  read a context in both directions learn all three kinds of blanks, causal ones [gMASK] rows alone.
Cost: that of the model (docs/recipes.md has the released ones).
Command: python -m glm_jax.train --config=configs/continued.py:FOLDER --config.data.dir=DATA
  --workdir=RUN, on data prepared with the tokenizer of the folder (tokenizers/convert.py).
Resuming: the same line; where FOLDER is gone, configs/continued.py:RUN has the run's own config.
Expected loss: not known; it depends on the model and the text.
Source: ours; learning rate and schedule as in configs/chatglm.py.
"""

import pathlib

import ml_collections

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.layouts.folder import open_checkpoint
from glm_jax.recipes import CAUSAL_OBJECTIVE, CONTINUED
from glm_jax.training.run_folder import load_config

_LONGEST_ROW = 2048
_WIDE = 2048  # from here on activations are recomputed


def get_config(folder: str = "") -> ml_collections.ConfigDict:
    if not folder:
        raise UserError("configs/continued.py needs a folder: --config=configs/continued.py:FOLDER")
    if (pathlib.Path(folder) / "checkpoints").is_dir():
        return ml_collections.ConfigDict(config.to_dict(load_config(pathlib.Path(folder))))
    model = open_checkpoint(folder, compare_checksums=False).config
    c = ml_collections.ConfigDict(config.default_dict())
    c.update(CONTINUED)
    c.init_from = folder
    c.model = config.to_dict(model)
    if model.hidden_dim >= _WIDE:
        c.model.remat = "full"
    c.objective.shuffle_spans = model.span_position != "slot"
    c.data.seq_length = min(_LONGEST_ROW, model.max_positions)
    if model.context == "causal":
        c.objective.update(CAUSAL_OBJECTIVE)
    else:
        c.objective.token_weight = 0.4
        c.objective.sentence_weight = 0.3
        c.objective.document_weight = 0.3
    return c
