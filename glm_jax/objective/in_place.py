"""Objectives without a Part B: every slot holds a token of the text or a mask in its place.

Positions are plain and block positions 0. All take the windows of R rows one after the other and
return fields [R * T]: in each row segments 1.. for the pieces, ranges relative to the row, padding,
and objective and source 0.
"""

import numpy as np

from glm_jax.batch import Batch
from glm_jax.objective.ragged import Generators, draw, group_sizes, integers, parts, runs
from glm_jax.objective.row_slots import RowSlots
from glm_jax.objective.spans import Pieces
from glm_jax.tokenizer import SpecialTokens


def causal(tokens: np.ndarray, pieces: Pieces, *, length: int, special: SpecialTokens) -> Batch:
    """Causal language modelling: every token predicts the next of its piece.

    Args:
      tokens: int32 [S], the windows of the rows.
      length: T, slots of a row.
    """
    return _continued(tokens, pieces, np.ones_like(pieces.start), length, special)


def prefix(
    rngs: Generators, tokens: np.ndarray, pieces: Pieces, *, length: int, special: SpecialTokens
) -> Batch:
    """Prefix language modelling (UniLM, arXiv 1905.03197; T5, arXiv 1910.10683, section 3.2.3).

    Each piece is cut at a uniformly drawn place. What stands before it is seen by all of the piece,
    the rest is causal and predicted.

    Args:
      tokens: int32 [S], the windows of the rows.
      length: T, slots of a row.
    """
    count = group_sizes(pieces.row, len(rngs))
    prefix_length = integers(rngs, np.ones_like(pieces.start), np.maximum(pieces.size, 2), count)
    return _continued(tokens, pieces, prefix_length, length, special)


def masked(
    rngs: Generators,
    tokens: np.ndarray,
    pieces: Pieces,
    *,
    mask_ratio: float,
    length: int,
    special: SpecialTokens,
) -> Batch:
    """Masked language modelling (BERT, arXiv 1810.04805): masks in place of single tokens.

    `mask_ratio` of each row's text, rounded, at least one token of it, is replaced by a [MASK] and
    predicted where it stood; all slots see all of their piece. BERT's random and kept tokens are
    not drawn: GLM's own `--masked-lm` always masks.

    Args:
      tokens: int32 [S], the windows of the rows.
      length: T, slots of a row.
    """
    slots = RowSlots(pieces.row, pieces.size, length)
    rows = _visible(tokens, pieces, slots, special)
    text = slots.start + pieces.text_start - pieces.start
    places = runs(text, pieces.room)

    def choose(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
        count = min(max(round(mask_ratio * len(places)), 1), len(places))
        return rng.choice(places, count, replace=False)

    chosen = draw(choose, rngs, parts(places, pieces.row_sums(pieces.room)))
    rows.weights[chosen] = 1.0
    masked_tokens = rows.tokens.copy()
    masked_tokens[chosen] = special.mask
    return rows._replace(tokens=masked_tokens)


def _continued(
    tokens: np.ndarray,
    pieces: Pieces,
    prefix_length: np.ndarray,
    length: int,
    special: SpecialTokens,
) -> Batch:
    """Each piece generated from its first `prefix_length` >= 1 tokens, int64 [P]."""
    slots = RowSlots(pieces.row, pieces.size, length)
    rows = _visible(tokens, pieces, slots, special)
    slot = slots.slots()
    prefix_end = slots.fill(slots.in_row(slots.start) + prefix_length)
    predicts = (slot >= prefix_end - 1) & (slot < rows.kv_end - 1)
    kv_end = np.maximum(slot + 1, prefix_end)
    kv_end[slots.padding] = 0
    return rows._replace(
        targets=np.where(predicts, np.roll(rows.tokens, -1), rows.tokens),
        weights=predicts.astype(np.float32),
        kv_end=kv_end,
    )


def _visible(tokens: np.ndarray, pieces: Pieces, slots: RowSlots, special: SpecialTokens) -> Batch:
    """Every slot sees all of its piece, and nothing is predicted."""
    kv_start = slots.fill(slots.in_row(slots.start))
    position = slots.slots() - kv_start
    position[slots.padding] = 0
    tokens, zeros = slots.place(tokens, special.pad), np.broadcast_to(np.int32(0), kv_start.shape)
    return Batch(
        tokens=tokens,
        targets=tokens,
        weights=np.zeros(len(tokens), np.float32),
        position=position,
        block_position=zeros,
        kv_start=kv_start,
        kv_end=slots.fill(slots.in_row(slots.start) + pieces.size),
        segment=slots.fill(slots.numbers()),
        objective=zeros,
        source=zeros,
    )
