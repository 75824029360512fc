"""Requests that ask how a text goes on: `[CLS] text mask`, then Part B."""

import numpy as np

from glm_jax.config import ObjectiveConfig
from glm_jax.errors import UserError
from glm_jax.model.scoring import Request
from glm_jax.tokenizer import SpecialTokens

CONTROL_SYMBOLS = 2  # at most, beside a text: [CLS] and the mask; an eos is one more


def document_mask(objective: ObjectiveConfig, special: SpecialTokens) -> int:
    """Id of the mask token that stands for the rest of a text.

    [gMASK], or [MASK] for a model that was never trained on document blanks, as in GLM 2021, whose
    `--task-mask` models have [gMASK] and whose others do everything with [MASK].
    """
    return special.gmask if objective.document_weight > 0 else special.mask


def continuation(
    context: np.ndarray,
    answers: list[np.ndarray],
    mask_id: int,
    special: SpecialTokens,
    *,
    given: int = 0,
    eos: bool = False,
) -> Request:
    """`[CLS] context mask` or, with `eos`, `[CLS] context mask eos`; the answers go on from it.

    A family without [CLS] begins with the context.

    Args:
      context: int32 [n], tokens of the text so far; n may be 0.
      answers, given: see `Request`.
    """
    tail = [mask_id, special.eos] if eos else [mask_id]
    part_a = np.concatenate([special.start, context, tail]).astype(np.int32)
    return Request(part_a, len(special.start) + len(context), answers, given)


def fit_left(
    context: np.ndarray, answer_length: int, slots: int, *, eos: bool = False
) -> np.ndarray:
    """The end of `context` that leaves room for an answer in a row of `slots`.

    Args:
      eos: see `continuation`.

    Raises:
      UserError: not even the answer fits.
    """
    control = CONTROL_SYMBOLS + eos
    room = slots - control - answer_length
    if room < 0:
        raise UserError(
            f"an answer of {answer_length} tokens does not fit a row of {slots} with its "
            f"{control} control symbols"
        )
    return context[max(len(context) - room, 0) :]


def check_row(context: np.ndarray, answer_length: int, slots: int) -> None:
    """Refuses what a row of training could not hold, whatever positions the model has.

    Args:
      context: int32 [n], Part A with its control symbols.
      answer_length: tokens of Part B, as `Request.answers` count them.

    Raises:
      UserError: context and answer are longer than a row of `slots`.
    """
    if len(context) + answer_length > slots:
        raise UserError(
            f"a context of {len(context)} tokens and an answer of {answer_length} do not fit a row "
            f"of {slots} (the longest row of training)"
        )
