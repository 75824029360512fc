"""From spans to arrays: autoregressive blank infilling with 2D positions (GLM 2021)."""

from collections.abc import Sequence

import numpy as np

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.config import ModelConfig
from glm_jax.objective.spans import Blanks
from glm_jax.tokenizer import SpecialTokens

_GLM_2021 = ModelConfig()


def build(
    tokens: np.ndarray,
    spans: Sequence[tuple[int, int]],
    *,
    mask_id: int,
    special: SpecialTokens,
    model: ModelConfig = _GLM_2021,
) -> Batch:
    """One sample: every span becomes one mask token and is generated in Part B.

    Args:
      tokens: int32 [n], the text.
      spans: half-open ranges of `tokens` that do not overlap, in the order of Part B.
      mask_id: `special.mask`, `special.smask` or `special.gmask`.
      model: says what positions answers have, and what Part A sees.

    Returns:
      Fields [n + 2 * len(spans)]; ranges relative to the sample, segment 1, objective and source 0
      until `pack` sets them.

    Raises:
      ValueError: a span is empty, outside the text, or overlaps another.
    """
    ranges = np.array(spans, np.int64).reshape(-1, 2)
    blanks = Blanks(ranges[:, 0], ranges[:, 1], np.ones(len(ranges), bool))
    end = np.array([len(tokens)])
    return build_pieces(tokens, end, blanks, mask_id=mask_id, special=special, model=model)


def build_prefix_split(
    tokens: np.ndarray,
    cut: int,
    *,
    mask_id: int,
    special: SpecialTokens,
    model: ModelConfig = _GLM_2021,
) -> Batch:
    """One sample that generates `tokens[cut:]` from `tokens[:cut]`, without an eop.

    Args:
      tokens: int32 [n], the text.
      cut: tokens of the prefix, 0 <= cut < n.
      mask_id: `special.gmask` for the published document objective.
      model: as for `build`.

    Returns:
      Fields [n + 1], as `build`.
    """
    end = np.array([len(tokens)])
    blanks = Blanks(np.array([cut]), end, np.array([False]))
    return build_pieces(tokens, end, blanks, mask_id=mask_id, special=special, model=model)


def build_pieces(
    tokens: np.ndarray,
    piece_end: np.ndarray,
    blanks: Blanks,
    *,
    mask_id: int,
    special: SpecialTokens,
    model: ModelConfig = _GLM_2021,
) -> Batch:
    """Samples for all pieces of a window at once, one segment each, Part A then Part B.

    Args:
      tokens: int32 [S], the pieces one after the other.
      piece_end: int64 [P], one past the last token of each piece; the last entry is S.
      blanks: spans that do not overlap and lie inside one piece each.
      mask_id: the mask token of every blank.
      model: as for `build`.

    Returns:
      Fields [S + number of blanks + number of blanks with eop]; segments 1..P.

    Raises:
      ValueError: a span is empty, outside the text, or overlaps another.
    """
    context, context_before = _corrupt(tokens, blanks, mask_id)
    piece_context_end = context_before[piece_end]
    piece_context_start = np.concatenate(([0], piece_context_end[:-1]))

    blank_piece = np.searchsorted(piece_end, blanks.start, side="right")
    by_piece = np.argsort(blank_piece, kind="stable")
    blank_piece, start, end, eop = (
        x[by_piece] for x in (blank_piece, blanks.start, blanks.end, blanks.eop)
    )
    mask_position = context_before[start] - piece_context_start[blank_piece]

    # A row is a list of runs: for each piece its Part A, then a block `sop s1 .. sk` per blank.
    # Every field is constant or counts up along a run.
    pieces, blocks = np.arange(len(piece_end)), np.arange(len(start))
    context_run = pieces + np.searchsorted(blank_piece, pieces)
    block_run = blocks + blank_piece + 1

    def per_run(of_pieces, of_blocks) -> np.ndarray:
        values = np.empty(len(pieces) + len(blocks), np.int32)
        values[context_run] = of_pieces
        values[block_run] = of_blocks
        return values

    size = per_run(piece_context_end - piece_context_start, end - start + eop)
    run_end = np.cumsum(size, dtype=np.int32)
    run_start = run_end - size
    piece_slot = run_start[context_run]

    def per_slot(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, size)

    slot = np.arange(run_end[-1], dtype=np.int32)
    is_target = per_slot(per_run(0, 1))
    within = slot - per_slot(run_start)

    # Inputs and targets are read from Part A followed by the uncorrupted text; a block's input is
    # one behind its target, so its first slot reads a token that `sop` replaces.
    source = np.concatenate((context, tokens, [special.eop]), dtype=np.int32)
    read = within + per_slot(per_run(piece_context_start, len(context) + start - 1))
    inputs, targets = source[read], source[read + is_target]
    inputs[run_start[block_run]] = special.sop
    targets[run_end[block_run[eop]] - 1] = special.eop

    kv_start = per_slot(per_run(piece_slot, piece_slot[blank_piece]))
    has_mask_position = is_target & (not model.answers_in_slots(mask_id == special.gmask))
    is_causal = is_target | (model.context == "causal")
    return Batch(
        tokens=inputs,
        targets=targets,
        weights=is_target.astype(np.float32),
        position=np.where(has_mask_position, per_slot(per_run(0, mask_position)), slot - kv_start),
        block_position=is_target * (within + 1 if model.block_positions else np.int32(1)),
        kv_start=kv_start,
        kv_end=np.where(is_causal, slot + 1, per_slot(run_end)),
        segment=per_slot(per_run(pieces + 1, blank_piece + 1)),
        objective=np.zeros_like(slot),
        source=np.zeros_like(slot),
    )


def _corrupt(tokens: np.ndarray, blanks: Blanks, mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The text with a mask token for each blank, and how many tokens of it lie before each of S+1.

    The second array turns places in the text into places in the corrupted text.
    """
    in_context = ~_covered(len(tokens), blanks)
    in_context[blanks.start] = True
    masked = tokens.copy()
    masked[blanks.start] = mask_id
    return masked[in_context], np.concatenate(([0], np.cumsum(in_context)))


def _covered(length: int, blanks: Blanks) -> np.ndarray:
    """Which of `length` tokens a blank covers: bool [length]."""
    by_start = np.argsort(blanks.start)
    start, end = blanks.start[by_start], blanks.end[by_start]
    limits = np.concatenate((start[1:], [length]))
    if len(start) and (start[0] < 0 or (start >= end).any() or (end > limits).any()):
        spans = list(zip(start.tolist(), end.tolist(), strict=True))
        raise ValueError(f"spans are empty, overlap or leave a text of {length} tokens: {spans}")
    change = np.zeros(length + 1, np.int8)
    change[start] += 1
    change[end] -= 1
    return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def pack(
    samples: Sequence[Batch], length: int, *, objective: str, source: int, special: SpecialTokens
) -> Batch:
    """One row of `length` slots: the samples one after the other, then padding.

    Args:
      samples: results of the `build` functions; none sees another.
      objective: a name from OBJECTIVES.
      source: index of the source, constant along the row.

    Raises:
      ValueError: the samples need more than `length` slots.
    """
    used = sum(len(sample.tokens) for sample in samples)
    if used > length:
        raise ValueError(f"samples of {used} slots do not fit a row of {length}")
    row = _padding(length, OBJECTIVES.index(objective), source, special.pad)
    slot, segment = 0, 0
    for sample in samples:
        here = slice(slot, slot + len(sample.tokens))
        for name in ("tokens", "targets", "weights", "position", "block_position"):
            getattr(row, name)[here] = getattr(sample, name)
        row.kv_start[here] = sample.kv_start + slot
        row.kv_end[here] = sample.kv_end + slot
        row.segment[here] = sample.segment + segment
        slot = here.stop
        segment += int(sample.segment[-1])
    return row


def _padding(length: int, objective: int, source: int, pad: int) -> Batch:
    def full(value: int) -> np.ndarray:
        return np.full(length, value, np.int32)

    return Batch(
        tokens=full(pad),
        targets=full(pad),
        weights=np.zeros(length, np.float32),
        position=full(0),
        block_position=full(0),
        kv_start=full(0),
        kv_end=full(0),
        segment=full(0),
        objective=full(objective),
        source=full(source),
    )
