"""What to blank: token, sentence and document spans over the pieces of a row.

A row is a window of the token stream; a piece is the part of one document that lies in it, or less
where a row is cut into shorter texts. No span crosses a piece, and no blank covers `[CLS]`. Spans
come back in the order of Part B.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.config import ObjectiveConfig
from glm_jax.tokenizer import SpecialTokens

SENTENCE_MARKS = ".?!;:。？！；…\n"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Pieces(NamedTuple):
    """The pieces of a row as int64 arrays [P] of half-open ranges of its tokens.

    Attributes:
      start: first token of the piece.
      end: one past its last token.
      text_start: first token that may be blanked: `start`, or one later where a `[CLS]` is.
      text_end: one past the last that may be blanked: `end`, or one earlier where an eos is.
    """

    start: np.ndarray
    end: np.ndarray
    text_start: np.ndarray
    text_end: np.ndarray


class Blanks(NamedTuple):
    """Spans to blank, in the order in which they follow in Part B.

    Attributes:
      start: int64 [K], first token of the span.
      end: int64 [K], one past its last token.
      eop: bool [K], whether the span ends in an eop target. False only for a prefix split, whose
        span reaches the end of its piece.
    """

    start: np.ndarray
    end: np.ndarray
    eop: np.ndarray


def split_pieces(
    tokens: np.ndarray, special: SpecialTokens, cuts: Sequence[int] | np.ndarray = ()
) -> Pieces:
    """Splits a window of the token stream (int32 [S], S > 0) after every eos.

    Args:
      cuts: further places to split at, 0 < cut < S.
    """
    inner_ends = np.flatnonzero(tokens[:-1] == special.eos) + 1
    if len(cuts):
        inner_ends = np.union1d(inner_ends, cuts)
    start = np.concatenate(([0], inner_ends))
    end = np.concatenate((inner_ends, [len(tokens)]))
    text_end = end - (tokens[end - 1] == special.eos)
    # A piece that is nothing but an eos, or an empty document, has no text: start == end.
    text_start = np.minimum(start + np.isin(tokens[start], special.start), text_end)
    return Pieces(start, end, text_start, text_end)


def sentence_ends(pieces: Sequence[str]) -> np.ndarray:
    """Which entries of a vocabulary end a sentence: bool [vocab_size].

    A token ends a sentence if its string holds one of SENTENCE_MARKS (the published set of the
    sentence objective). SentencePiece spells bytes as `<0x0A>`; those count as their character.
    """

    def text(piece: str) -> str:
        byte = _BYTE_PIECE.fullmatch(piece)
        return chr(int(byte[1], 16)) if byte else piece

    marks = set(SENTENCE_MARKS)
    return np.array([not marks.isdisjoint(text(piece)) for piece in pieces])


@functools.cache
def length_probabilities(mean: float, longest: int) -> np.ndarray:
    """Probabilities [longest] of the lengths 1..longest: a Poisson without its other values.

    `mean` is the lambda of the Poisson; the mean of the lengths is higher (3.157 for lambda 3).
    """
    lengths = np.arange(1, longest + 1)
    log_factorials = np.cumsum(np.log(lengths))
    log_weights = lengths * math.log(mean) - log_factorials
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def length_moments(mean: float, longest: int) -> tuple[float, float]:
    """Mean and variance of the span lengths of `length_probabilities`."""
    probabilities = length_probabilities(mean, longest)
    lengths = np.arange(1, longest + 1)
    first = float(probabilities @ lengths)
    return first, float(probabilities @ lengths**2) - first**2


def draw_lengths(rng: np.random.Generator, count: int, config: ObjectiveConfig) -> np.ndarray:
    """Draws `count` span lengths: int64 [count], each in 1..max_span_length."""
    cumulative = _cumulative_lengths(config.span_length_mean, config.max_span_length)
    return np.searchsorted(cumulative, rng.random(count), side="right") + 1


@functools.cache
def _cumulative_lengths(mean: float, longest: int) -> np.ndarray:
    # The last entry is 1 up to rounding; without it no draw can fall past the longest length.
    return np.cumsum(length_probabilities(mean, longest))[:-1]


def draw_lengths_to_budget(
    rng: np.random.Generator, budget: int, max_count: int, config: ObjectiveConfig
) -> np.ndarray:
    """Draws span lengths until their sum reaches `budget`; the last one overshoots (GLM 2021).

    Args:
      budget: tokens to mask; the published code takes `int(mask_ratio * len(text))`.
      max_count: most lengths to return, also where they fall short of the budget.

    Returns:
      int64 [k], k <= max_count.
    """
    lengths = draw_lengths(rng, max_count, config)
    return lengths[: np.searchsorted(np.cumsum(lengths), budget) + 1]


def token_spans(
    rng: np.random.Generator, pieces: Pieces, max_blanks: int, config: ObjectiveConfig
) -> Blanks:
    """Short spans at random places, at least one visible token between any two of a piece.

    Lengths are drawn for the row, dealt to its pieces, and placed in each piece uniformly (the
    published gap method). A length that fits nowhere is shortened to the largest that does; a blank
    for which no room is left is left out.

    Args:
      max_blanks: K, blanks of the row: exactly so many are tried with `span_sampling="fixed"`, at
        most so many with `"budget"`.
    """
    if config.span_sampling == "fixed":
        lengths = draw_lengths(rng, max_blanks, config)
    else:
        budget = int(config.mask_ratio * (pieces.end[-1] - pieces.start[0]))
        lengths = draw_lengths_to_budget(rng, budget, max_blanks, config)
    lengths, piece = _deal(rng, lengths, pieces.text_end - pieces.text_start)
    start = _place(rng, lengths, piece, pieces)
    return _in_part_b_order(rng, start, start + lengths, config.shuffle_spans)


def single_spans(
    rng: np.random.Generator, pieces: Pieces, max_blanks: int, config: ObjectiveConfig
) -> Blanks:
    """One short span per piece (GLM 2021's `single_span_prob`); it is shortened where it must be.

    Args:
      max_blanks: K, most blanks of the row. Where it has more pieces, the shortest stay context.
    """
    room = pieces.text_end - pieces.text_start
    piece = _longest(np.flatnonzero(room >= 2), room, max_blanks)
    lengths = np.minimum(draw_lengths(rng, len(piece), config), room[piece] - 1)
    start = _place(rng, lengths, piece, pieces)
    return _in_part_b_order(rng, start, start + lengths, config.shuffle_spans)


def _longest(pieces: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """The `count` of `pieces` with the largest `size` [P], or all of them, in ascending order."""
    longest_first = pieces[np.argsort(-size[pieces], kind="stable")]
    return np.sort(longest_first[:count])


def _deal(
    rng: np.random.Generator, lengths: np.ndarray, room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Deals span lengths [k] to pieces with `room` [P] tokens; returns both sorted by piece.

    Spans of a piece keep sum(lengths) + count <= room. Each piece gets one if there are enough;
    the rest fall on pieces in proportion to their room.
    """
    holders = np.flatnonzero(room >= 2)
    if not holders.size:
        return lengths[:0], holders
    piece = holders[_weighted(rng, room[holders], len(lengths))]
    if len(lengths) >= holders.size:
        piece[: holders.size] = holders
    order = np.argsort(piece, kind="stable")
    lengths, piece = lengths[order], piece[order]
    fits = _sums_within(lengths + 1, piece) + lengths + 1 <= room[piece]
    if fits.all():
        return lengths, piece
    free = room - np.bincount(piece[fits], lengths[fits] + 1, len(room)).astype(room.dtype)
    moved = _deal_one_by_one(rng, lengths[~fits], free)
    lengths = np.concatenate((lengths[fits], moved[0]))
    piece = np.concatenate((piece[fits], moved[1]))
    order = np.argsort(piece, kind="stable")
    return lengths[order], piece[order]


def _deal_one_by_one(
    rng: np.random.Generator, lengths: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Deals the lengths that overfilled their piece to where there is `free` room left."""
    dealt, piece = [], []
    free = free.copy()
    for drawn in lengths:
        length = min(drawn, free.max() - 1)
        if length < 1:
            break
        holders = np.flatnonzero(free > length)
        chosen = holders[_weighted(rng, free[holders], 1)[0]]
        free[chosen] -= length + 1
        dealt.append(length)
        piece.append(chosen)
    return np.array(dealt, np.int64), np.array(piece, np.int64)


def _weighted(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` indices in proportion to positive integer `weights`."""
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative, rng.integers(0, cumulative[-1], count), side="right")


def _sums_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sum of the earlier `values` of the same group; `group` is sorted."""
    before = np.cumsum(values) - values
    return before - before[np.searchsorted(group, group)]


def _place(
    rng: np.random.Generator, lengths: np.ndarray, piece: np.ndarray, pieces: Pieces
) -> np.ndarray:
    """First tokens [k] of spans dealt to pieces (sorted by piece), with a gap after each.

    GLM 2021: a text of n tokens with k spans has slack m = n - sum(lengths) - k + 1; span i starts
    at p_i + sum_{j<i} (length_j + 1) for k sorted draws p_i from 0..m.
    """
    count = len(pieces.start)
    room = pieces.text_end - pieces.text_start
    filled = np.bincount(piece, lengths + 1, count).astype(np.int64)
    shift = rng.integers(0, room[piece] - filled[piece] + 2)
    shift = shift[np.lexsort((shift, piece))]
    return pieces.text_start[piece] + shift + _sums_within(lengths + 1, piece)


def sentence_spans(
    rng: np.random.Generator,
    tokens: np.ndarray,
    pieces: Pieces,
    is_sentence_end: np.ndarray,
    max_blanks: int,
    config: ObjectiveConfig,
) -> Blanks:
    """Whole sentences in random order until `int(mask_ratio * len(tokens))` tokens or K blanks.

    The pieces take turns, so that few of them are left without a target. A sentence runs to a token
    that ends one, or to the end of its piece's text. Two blanks may be adjacent. The published
    sampler also masked the `[CLS]` of packed documents and never the tail of one; neither is
    copied.

    Args:
      tokens: int32 [S], the row's window.
      is_sentence_end: bool [vocab_size], see `sentence_ends`.
      max_blanks: K, most blanks of the row.
    """
    start, end = _sentences(tokens, pieces, is_sentence_end)
    chosen = _in_turns(rng.permutation(len(start)), np.searchsorted(pieces.end, end))
    masked = np.cumsum((end - start)[chosen])
    enough = int(np.searchsorted(masked, int(config.mask_ratio * len(tokens)))) + 1
    chosen = np.sort(chosen[: min(enough, max_blanks)])
    return _in_part_b_order(rng, start[chosen], end[chosen], config.shuffle_spans)


def _in_turns(order: np.ndarray, group: np.ndarray) -> np.ndarray:
    """`order` [n], changed so that the k-th of each group comes before any group's k+1-th."""
    by_group = np.argsort(group[order], kind="stable")
    _, first = np.unique(group[order][by_group], return_index=True)
    size = np.diff(np.append(first, len(order)))
    turn = np.empty(len(order), np.int64)
    turn[by_group] = np.arange(len(order)) - np.repeat(first, size)
    return order[np.argsort(turn, kind="stable")]


def _sentences(
    tokens: np.ndarray, pieces: Pieces, is_sentence_end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    marked = np.flatnonzero(is_sentence_end[tokens]) + 1
    end = np.union1d(marked, pieces.text_end)
    piece = np.searchsorted(pieces.end, end)
    before = np.concatenate(([0], end[:-1]))
    start = np.maximum(before, pieces.text_start[piece])
    is_text = (start < end) & (end <= pieces.text_end[piece])
    return start[is_text], end[is_text]


def document_spans(
    rng: np.random.Generator, pieces: Pieces, max_blanks: int, config: ObjectiveConfig
) -> Blanks:
    """One long span per piece: a prefix split, or a blank inside the text.

    With probability `document_infill_prob` the span lies anywhere in the text of its piece, leaves
    at least one token of it visible, and ends in eop. Otherwise the piece is split: its last tokens
    with the eos, at most all but two, are generated from what stands before them, without eop. The
    length is uniform from `document_min_ratio` of the piece up (GLM 2021 draws it per batch).

    Args:
      max_blanks: K, most blanks of the row. Where it has more pieces, the shortest stay context.
    """
    size = pieces.end - pieces.start
    room = pieces.text_end - pieces.text_start
    piece = _longest(np.flatnonzero((size >= 3) & (room >= 2)), size, max_blanks)
    infill = rng.random(len(piece)) < config.document_infill_prob

    longest = np.where(infill, room[piece] - 1, size[piece] - 2)
    shortest = (config.document_min_ratio * size[piece]).astype(np.int64)
    shortest = np.clip(shortest, 1, longest)
    length = rng.integers(shortest, longest + 1)
    inside = pieces.text_start[piece] + rng.integers(0, np.maximum(room[piece] - length, 0) + 1)
    start = np.where(infill, inside, pieces.end[piece] - length)
    return Blanks(start, start + length, infill)


def _in_part_b_order(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, shuffle: bool
) -> Blanks:
    order = rng.permutation(len(start)) if shuffle else np.arange(len(start))
    return Blanks(start[order], end[order], np.ones(len(start), bool))
