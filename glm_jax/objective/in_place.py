"""Objectives without a Part B: every slot holds a token of the text or a mask in its place.

Positions are plain and block positions 0. All return fields [S], segments 1..P for the pieces, and
objective and source 0 until `infill.pack` sets them.
"""

import numpy as np

from glm_jax.batch import Batch
from glm_jax.objective.spans import Pieces


def causal(tokens: np.ndarray, pieces: Pieces) -> Batch:
    """Causal language modelling: every token predicts the next of its piece.

    Args:
      tokens: int32 [S], the row's window.
    """
    return _continued(tokens, pieces, np.ones_like(pieces.start))


def prefix(rng: np.random.Generator, tokens: np.ndarray, pieces: Pieces) -> Batch:
    """Prefix language modelling (UniLM, arXiv 1905.03197; T5, arXiv 1910.10683, section 3.2.3).

    Each piece is cut at a uniformly drawn place. What stands before it is seen by all of the piece,
    the rest is causal and predicted.

    Args:
      tokens: int32 [S], the row's window.
    """
    size = pieces.end - pieces.start
    return _continued(tokens, pieces, rng.integers(1, np.maximum(size, 2)))


def masked(
    rng: np.random.Generator,
    tokens: np.ndarray,
    pieces: Pieces,
    *,
    mask_ratio: float,
    mask_id: int,
) -> Batch:
    """Masked language modelling (BERT, arXiv 1810.04805): masks in place of single tokens.

    `mask_ratio` of the row's text, rounded, at least one token of it, is replaced by `mask_id` and
    predicted where it stood; all slots see all of their piece. BERT's random and kept tokens are
    not drawn: GLM's own `--masked-lm` always masks.

    Args:
      tokens: int32 [S], the row's window.
    """
    row = _visible(tokens, pieces)
    slot, piece = np.arange(len(tokens)), row.segment - 1
    is_text = (pieces.text_start[piece] <= slot) & (slot < pieces.text_end[piece])
    places = np.flatnonzero(is_text)
    count = min(max(round(mask_ratio * len(places)), 1), len(places))
    chosen = rng.choice(places, count, replace=False)
    row.weights[chosen] = 1.0
    return row._replace(tokens=np.where(row.weights > 0, np.int32(mask_id), tokens))


def _continued(tokens: np.ndarray, pieces: Pieces, prefix_length: np.ndarray) -> Batch:
    """Each piece generated from its first `prefix_length` >= 1 tokens, int64 [P]."""
    row = _visible(tokens, pieces)
    slot = np.arange(len(tokens), dtype=np.int32)
    prefix_end = (pieces.start + prefix_length).astype(np.int32)[row.segment - 1]
    predicts = (slot >= prefix_end - 1) & (slot < row.kv_end - 1)
    return row._replace(
        targets=np.where(predicts, np.append(tokens[1:], tokens[-1]), tokens),
        weights=predicts.astype(np.float32),
        kv_end=np.maximum(slot + 1, prefix_end),
    )


def _visible(tokens: np.ndarray, pieces: Pieces) -> Batch:
    """Every slot sees all of its piece, and nothing is predicted."""
    size = pieces.end - pieces.start

    def per_slot(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.astype(np.int32), size)

    start, zeros = per_slot(pieces.start), np.zeros_like(tokens)
    return Batch(
        tokens=tokens,
        targets=tokens,
        weights=np.zeros(len(tokens), np.float32),
        position=np.arange(len(tokens), dtype=np.int32) - start,
        block_position=zeros,
        kv_start=start,
        kv_end=per_slot(pieces.end),
        segment=per_slot(np.arange(len(size)) + 1),
        objective=zeros,
        source=zeros,
    )
