"""From spans to arrays: autoregressive blank infilling with 2D positions (GLM 2021)."""

from collections.abc import Sequence

import numpy as np

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.config import ModelConfig
from glm_jax.objective.ragged import runs, stable_order, sums_before
from glm_jax.objective.row_slots import RowSlots
from glm_jax.objective.spans import Blanks, Pieces
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
    start = np.concatenate(([0], piece_end[:-1]))
    pieces = Pieces(start, piece_end, start, piece_end, np.zeros_like(start))
    length = len(tokens) + len(blanks.start) + int(blanks.eop.sum())
    return build_rows(
        tokens, pieces, blanks, length=length, mask_id=mask_id, special=special, model=model
    )


def build_rows(
    tokens: np.ndarray,
    pieces: Pieces,
    blanks: Blanks,
    *,
    length: int,
    mask_id: int,
    special: SpecialTokens,
    model: ModelConfig = _GLM_2021,
) -> Batch:
    """The samples of many windows at once: a row for each, of one segment for each of its pieces.

    Args:
      tokens: int32 [S], the windows of the R rows one after the other.
      pieces: of all rows; they cover all tokens.
      blanks: spans that do not overlap and lie inside one piece each.
      length: T, slots of a row; those that are left are padding.
      mask_id: the mask token of every blank.
      model: as for `build`.

    Returns:
      Fields [R * T]; ranges relative to the row, segments 1.. in each row.

    Raises:
      ValueError: a span is empty, outside the text, or overlaps another; or a row needs more than T
        slots.
    """
    piece = np.searchsorted(pieces.end, blanks.start, side="right")
    by_piece = stable_order(piece)
    piece, start, end, eop = (x[by_piece] for x in (piece, *blanks))
    hidden = end - start - 1  # of a blank's tokens, all but one leave no slot in Part A
    block = end - start + eop  # slots of `sop s1 .. sk`, as many as of `s1 .. sk eop`

    in_text = np.argsort(start)
    _check(start[in_text], end[in_text], len(tokens))

    context = pieces.size - _sums(hidden, piece, pieces)
    rows = RowSlots(pieces.row, context + _sums(block, piece, pieces), length)
    context_end = rows.start + context
    part_b = runs(context_end[piece] + sums_before(block, piece), block)
    block_end = np.cumsum(block)

    # Slots of Part A, in order, take the corrupted text; those of Part B the answers.
    in_context = np.ones(length * (int(pieces.row[-1]) + 1), bool)
    in_context[part_b] = in_context[rows.padding] = False
    targets = np.full(len(in_context), special.pad, np.int32)
    targets[in_context] = _corrupted(tokens, start, hidden, mask_id)
    answers = np.append(tokens, np.int32(special.eop))[runs(start, block)]
    answers[block_end[eop] - 1] = special.eop
    inputs = targets.copy()
    targets[part_b] = answers
    answers = np.roll(answers, 1)
    answers[block_end - block] = special.sop
    inputs[part_b] = answers

    slot, kv_start = rows.slots(), rows.fill(rows.in_row(rows.start))
    position = slot - kv_start
    if not model.answers_in_slots(mask_id == special.gmask):
        place = start - pieces.start[piece]
        place[in_text] -= sums_before(hidden[in_text], piece[in_text])
        position[part_b] = np.repeat(place, block)
    block_position = np.zeros_like(slot)
    block_position[part_b] = runs(np.ones_like(block), block) if model.block_positions else 1
    weights = np.zeros(len(slot), np.float32)
    weights[part_b] = 1.0
    if model.context == "causal":
        kv_end = slot + 1
    else:
        kv_end = rows.fill(rows.in_row(context_end))
        kv_end[part_b] = slot[part_b] + 1
    position[rows.padding] = kv_end[rows.padding] = 0
    return Batch(
        tokens=inputs,
        targets=targets,
        weights=weights,
        position=position,
        block_position=block_position,
        kv_start=kv_start,
        kv_end=kv_end,
        segment=rows.fill(rows.numbers()),
        objective=np.broadcast_to(np.int32(0), slot.shape),
        source=np.broadcast_to(np.int32(0), slot.shape),
    )


def _check(start: np.ndarray, end: np.ndarray, length: int) -> None:
    """Raises ValueError unless spans, in the order of the text, are ranges that do not overlap."""
    limits = np.append(start[1:], length)
    if len(start) and (start[0] < 0 or (start >= end).any() or (end > limits).any()):
        spans = list(zip(start.tolist(), end.tolist(), strict=True))
        raise ValueError(f"spans are empty, overlap or leave a text of {length} tokens: {spans}")


def _sums(values: np.ndarray, piece: np.ndarray, pieces: Pieces) -> np.ndarray:
    """Sum of the `values` of the blanks of each piece: int64 [P]."""
    return np.bincount(piece, values, len(pieces.start)).astype(np.int64)


def _corrupted(
    tokens: np.ndarray, start: np.ndarray, hidden: np.ndarray, mask_id: int
) -> np.ndarray:
    """The text with one mask token for each blank, of whose tokens `hidden` follow the first."""
    in_context = np.ones(len(tokens), bool)
    in_context[runs(start + 1, hidden)] = False
    masked = tokens.copy()
    masked[start] = mask_id
    return masked[in_context]


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
