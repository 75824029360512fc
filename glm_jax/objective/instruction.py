"""Prompts with their answers: the multi-task instruction rows of GLM-130B (arXiv 2210.02414, 2.3).

An example stands in the stream as `[CLS] prompt [MASK] answer eos`, without the `[CLS]` in a family
that has none. It becomes Part A `[CLS] prompt [MASK]` and Part B `sop answer`, which predicts
`answer eop`.
"""

import dataclasses

import numpy as np

from glm_jax.batch import Batch
from glm_jax.config import ModelConfig
from glm_jax.objective.infill import build_rows
from glm_jax.objective.spans import Blanks, Pieces
from glm_jax.tokenizer import SpecialTokens

_PROMPT_SHARE = 4  # of the room, one in so many tokens is the prompt's, as published


def shorten(example: np.ndarray, room: int, special: SpecialTokens) -> np.ndarray:
    """An example of at most `room` tokens.

    The prompt loses its beginning, but keeps a quarter of the room or all it has; then the answer
    loses its end, and with it the eos that would make it predict its eop.

    Args:
      example: int32 [n].
      room: at least `MIN_ROOM`, or nothing is left.
    """
    if len(example) <= room:
        return example
    if room < MIN_ROOM:
        return example[:0]
    mask = int(np.flatnonzero(example == special.mask)[0])
    prompt, answer = example[len(special.start) : mask], example[mask + 1 :]  # with its eos
    free = room - len(special.start) - 1
    kept = max(free - len(answer), min(len(prompt), room // _PROMPT_SHARE))
    parts = (special.start, prompt[len(prompt) - kept :], [special.mask], answer[: free - kept])
    return np.concatenate(parts).astype(np.int32)


MIN_ROOM = 16
"""A shorter rest of a row holds no shortened example."""


def build(
    tokens: np.ndarray, pieces: Pieces, special: SpecialTokens, model: ModelConfig, length: int
) -> Batch:
    """Rows of examples, as `infill.build_rows` returns them.

    GLM-130B counts the positions of an answer on from its prompt, which is `span_position` slot.

    Args:
      tokens: int32 [S], the examples of all rows one after the other.
      pieces: one for each example.
      length: T, slots of a row.
    """
    if model.span_position == "mixed":
        model = dataclasses.replace(model, span_position="slot")
    is_mask = tokens == special.mask
    is_eos = tokens == special.eos
    is_text = ~is_mask & ~is_eos
    text_before = np.concatenate(([0], np.cumsum(is_text)))
    start, end = text_before[pieces.start], text_before[pieces.end]
    blanks = Blanks(text_before[np.flatnonzero(is_mask)], end, is_eos[pieces.end - 1])
    return build_rows(
        tokens[is_text],
        Pieces(start, end, start, end, pieces.row),
        blanks,
        length=length,
        mask_id=special.mask,
        special=special,
        model=model,
    )
