"""What to blank: token, sentence and document spans over the pieces of rows.

A row is a window of the token stream; a piece is the part of one document that lies in it, or less
where a row is cut into shorter texts. No span crosses a piece, and no blank covers `[CLS]`.

Many rows are done at once, their windows one after the other, as NumPy is quick on large arrays
only. Each row draws from a generator of its own, so that it does not depend on its company. Spans
come back by row and, within a piece, in the order of Part B.
"""

import bisect
import functools
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.config import ObjectiveConfig
from glm_jax.objective.ragged import (
    Generators,
    draw,
    group_sizes,
    integers,
    ranks,
    shuffled,
    sorted_within,
    stable_order,
    sums_before,
)
from glm_jax.tokenizer import SpecialTokens

SENTENCE_MARKS = ".?!;:。？！；…\n"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Pieces(NamedTuple):
    """The pieces of rows as int64 arrays [P]: half-open ranges of the tokens of all windows.

    Attributes:
      start: first token of the piece.
      end: one past its last token.
      text_start: first token that may be blanked: `start`, or one later where a `[CLS]` is.
      text_end: one past the last that may be blanked: `end`, or one earlier where an eos is.
      row: the row it belongs to, ascending from 0; every row has a piece.
    """

    start: np.ndarray
    end: np.ndarray
    text_start: np.ndarray
    text_end: np.ndarray
    row: np.ndarray

    @property
    def size(self) -> np.ndarray:
        return self.end - self.start

    @property
    def room(self) -> np.ndarray:
        """Tokens that may be blanked."""
        return self.text_end - self.text_start

    def row_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of int64 `values` [P] over the pieces of each row: int64 [R]."""
        return np.add.reduceat(values, np.flatnonzero(np.diff(self.row, prepend=-1)))

    def of_rows(self, chosen: np.ndarray) -> "Pieces":
        """The pieces of the rows that bool [R] `chosen` names, which are numbered anew."""
        pieces = Pieces(*(field[chosen[self.row]] for field in self))
        return pieces._replace(row=(np.cumsum(chosen) - 1)[pieces.row])


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
    tokens: np.ndarray,
    special: SpecialTokens,
    cuts: Sequence[int] | np.ndarray = (),
    row_end: np.ndarray | None = None,
) -> Pieces:
    """Splits windows of the token stream after every eos.

    Args:
      tokens: int32 [S], the windows of the rows one after the other.
      cuts: further places to split at, 0 < cut < S.
      row_end: int64 [R], one past the last token of each row, none of which is empty; None if all
        tokens are one row.
    """
    row_end = np.array([len(tokens)]) if row_end is None else row_end
    is_last = tokens == special.eos
    is_last[row_end - 1] = True
    is_last[np.asarray(cuts, np.int64) - 1] = True
    end = np.flatnonzero(is_last) + 1
    start = np.concatenate(([0], end[:-1]))
    text_end = end - (tokens[end - 1] == special.eos)
    # A piece that is nothing but an eos, or an empty document, has no text: start == end.
    text_start = np.minimum(start + np.isin(tokens[start], special.start), text_end)
    return Pieces(start, end, text_start, text_end, np.searchsorted(row_end, start, side="right"))


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


def draw_lengths(rngs: Generators, counts: np.ndarray, config: ObjectiveConfig) -> np.ndarray:
    """Draws `counts` [R] span lengths: int64 [sum of counts], each in 1..max_span_length."""
    cumulative = _cumulative_lengths(config.span_length_mean, config.max_span_length)
    uniform = draw(np.random.Generator.random, rngs, counts.tolist())
    return np.searchsorted(cumulative, uniform, side="right") + 1


@functools.cache
def _cumulative_lengths(mean: float, longest: int) -> np.ndarray:
    # The last entry is 1 up to rounding; without it no draw can fall past the longest length.
    return np.cumsum(length_probabilities(mean, longest))[:-1]


def token_spans(
    rngs: Generators, pieces: Pieces, max_blanks: np.ndarray, config: ObjectiveConfig
) -> Blanks:
    """Short spans at random places, at least one visible token between any two of a piece.

    Lengths are drawn for the row, dealt to its pieces, and placed in each piece uniformly (the
    published gap method). A length that fits nowhere is shortened to the largest that does; a blank
    for which no room is left is left out.

    Args:
      max_blanks: int64 [R], K of each row: exactly so many are tried with `span_sampling="fixed"`,
        at most so many with `"budget"`.
    """
    if config.span_sampling == "budget":
        lengths, row = draw_to_budget(rngs, pieces, max_blanks, config)
    else:
        lengths = draw_lengths(rngs, max_blanks, config)
        row = np.repeat(np.arange(len(rngs)), max_blanks)
    lengths, piece = _deal(rngs, lengths, row, pieces)
    start = _place(rngs, lengths, piece, pieces)
    return _in_part_b_order(rngs, start, start + lengths, pieces.row[piece], config)


def draw_to_budget(
    rngs: Generators, pieces: Pieces, max_blanks: np.ndarray, config: ObjectiveConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Span lengths of rows until `mask_ratio` of their row is masked (GLM 2021), and their rows.

    Args:
      max_blanks: int64 [R], most lengths of each row, also where they fall short of that.
    """
    lengths = draw_lengths(rngs, max_blanks, config)
    row = np.repeat(np.arange(len(rngs)), max_blanks)
    is_drawn = _within_budget(lengths, row, pieces, config)
    return lengths[is_drawn], row[is_drawn]


def _within_budget(
    sizes: np.ndarray, row: np.ndarray, pieces: Pieces, config: ObjectiveConfig
) -> np.ndarray:
    """Which of the spans of rows are drawn until `mask_ratio` of their row is masked: bool.

    The last one overshoots; the published budget is `int(mask_ratio * len(text))`.
    """
    budget = (config.mask_ratio * pieces.row_sums(pieces.size)).astype(np.int64)
    return sums_before(sizes, row) < np.maximum(budget, 1)[row]


def single_spans(
    rngs: Generators, pieces: Pieces, max_blanks: np.ndarray, config: ObjectiveConfig
) -> Blanks:
    """One short span per piece (GLM 2021's `single_span_prob`); it is shortened where it must be.

    Args:
      max_blanks: int64 [R], most blanks of each row. Where it has more pieces, the shortest stay
        context.
    """
    piece = _longest(pieces.room >= 2, pieces.room, pieces, max_blanks)
    drawn = draw_lengths(rngs, group_sizes(pieces.row[piece], len(rngs)), config)
    lengths = np.minimum(drawn, pieces.room[piece] - 1)
    start = _place(rngs, lengths, piece, pieces)
    return _in_part_b_order(rngs, start, start + lengths, pieces.row[piece], config)


def _longest(
    may: np.ndarray, size: np.ndarray, pieces: Pieces, max_count: np.ndarray
) -> np.ndarray:
    """The `max_count` pieces of each row with the largest `size` [P] of those that `may`."""
    chosen = np.flatnonzero(may)
    longest_first = chosen[np.lexsort((-size[chosen], pieces.row[chosen]))]
    row = pieces.row[longest_first]
    return np.sort(longest_first[ranks(row) < max_count[row]])


def _deal(
    rngs: Generators, lengths: np.ndarray, row: np.ndarray, pieces: Pieces
) -> tuple[np.ndarray, np.ndarray]:
    """Deals span lengths [k] of rows to pieces of theirs; returns both sorted by piece.

    Spans of a piece keep sum(lengths) + count <= room. Each piece gets one if there are enough;
    the rest fall on pieces in proportion to their room.
    """
    holders = np.flatnonzero(pieces.room >= 2)
    held = group_sizes(pieces.row[holders], len(rngs))
    lengths, row = lengths[held[row] > 0], row[held[row] > 0]
    count = group_sizes(row, len(rngs))

    # A piece has as many tickets as tokens that may be blanked; those of a row follow each other.
    tickets = np.cumsum(pieces.room[holders])
    first_holder = np.cumsum(held) - held
    ticket_limits = np.append(0, tickets)
    first_ticket = ticket_limits[first_holder]
    row_tickets = np.maximum(ticket_limits[first_holder + held] - first_ticket, 1)
    ticket = draw(_below, rngs, row_tickets.tolist(), count.tolist()) + first_ticket[row]
    number = np.searchsorted(tickets, ticket, side="right")
    rank = ranks(row)
    is_first = (count >= held)[row] & (rank < held[row])
    piece = holders[np.where(is_first, first_holder[row] + rank, number)]
    order = stable_order(piece)
    lengths, piece = lengths[order], piece[order]
    fits = sums_before(lengths + 1, piece) + lengths + 1 <= pieces.room[piece]
    if fits.all():
        return lengths, piece
    return _deal_again(rngs, lengths, piece, fits, pieces)


def _below(rng: np.random.Generator, high: int, count: int) -> np.ndarray:
    return rng.integers(0, high, count)


def _deal_again(
    rngs: Generators, lengths: np.ndarray, piece: np.ndarray, fits: np.ndarray, pieces: Pieces
) -> tuple[np.ndarray, np.ndarray]:
    """Deals the lengths that overfilled their piece to where there is room left, one by one."""
    free = pieces.room - _filled(lengths[fits], piece[fits], pieces)
    piece_end = np.searchsorted(pieces.row, np.arange(len(rngs)), side="right")
    dealt, dealt_to = [], []
    row, left = pieces.row[piece[~fits]], lengths[~fits]
    for number in np.unique(row).tolist():
        first = piece_end[number - 1] if number else 0
        row_free = free[first : piece_end[number]].tolist()
        for drawn in left[row == number].tolist():
            length = min(drawn, max(row_free) - 1)
            if length < 1:
                break
            chosen = _draw_holder(rngs[number], row_free, length)
            row_free[chosen] -= length + 1
            dealt.append(length)
            dealt_to.append(first + chosen)
    lengths = np.append(lengths[fits], np.array(dealt, np.int64))
    piece = np.append(piece[fits], np.array(dealt_to, np.int64))
    order = stable_order(piece)
    return lengths[order], piece[order]


def _draw_holder(rng: np.random.Generator, free: list[int], length: int) -> int:
    """A piece with more than `length` free tokens, drawn in proportion to them."""
    holders = [piece for piece, tokens in enumerate(free) if tokens > length]
    tickets = list(itertools.accumulate(free[piece] for piece in holders))
    return holders[bisect.bisect_right(tickets, int(rng.integers(tickets[-1])))]


def _filled(lengths: np.ndarray, piece: np.ndarray, pieces: Pieces) -> np.ndarray:
    """Tokens of each piece that its spans and the gaps behind them take: int64 [P]."""
    return np.bincount(piece, lengths + 1, len(pieces.start)).astype(np.int64)


def _place(rngs: Generators, lengths: np.ndarray, piece: np.ndarray, pieces: Pieces) -> np.ndarray:
    """First tokens [k] of spans dealt to pieces (sorted by piece), with a gap after each.

    GLM 2021: a text of n tokens with k spans has slack m = n - sum(lengths) - k + 1; span i starts
    at p_i + sum_{j<i} (length_j + 1) for k sorted draws p_i from 0..m.
    """
    slack = (pieces.room - _filled(lengths, piece, pieces))[piece] + 1
    count = group_sizes(pieces.row[piece], len(rngs))
    shift = integers(rngs, np.zeros_like(slack), slack + 1, count)
    shift = sorted_within(shift, piece)
    return pieces.text_start[piece] + shift + sums_before(lengths + 1, piece)


def sentence_spans(
    rngs: Generators,
    tokens: np.ndarray,
    pieces: Pieces,
    is_sentence_end: np.ndarray,
    max_blanks: np.ndarray,
    config: ObjectiveConfig,
) -> Blanks:
    """Whole sentences in random order until `mask_ratio` of a row's tokens or K blanks.

    The pieces take turns, so that few of them are left without a target. A sentence runs to a token
    that ends one, or to the end of its piece's text. Two blanks may be adjacent. The published
    sampler also masked the `[CLS]` of packed documents and never the tail of one; neither is
    copied.

    Args:
      tokens: int32 [S], the windows of the rows.
      is_sentence_end: bool [vocab_size], see `sentence_ends`.
      max_blanks: int64 [R], most blanks of each row.
    """
    start, end, piece = _sentences(tokens, pieces, is_sentence_end)
    count = group_sizes(pieces.row[piece], len(rngs))
    order = shuffled(rngs, count)
    chosen = _in_turns(order, piece, pieces.row[piece])
    row = pieces.row[piece[chosen]]
    is_enough = _within_budget((end - start)[chosen], row, pieces, config)
    chosen = np.sort(chosen[is_enough & (ranks(row) < max_blanks[row])])
    return _in_part_b_order(rngs, start[chosen], end[chosen], pieces.row[piece[chosen]], config)


def _in_turns(order: np.ndarray, group: np.ndarray, row: np.ndarray) -> np.ndarray:
    """`order` [n], changed so that in a row the k-th of each group comes before any k+1-th."""
    by_group = stable_order(group[order])
    turn = np.empty_like(order)
    turn[by_group] = ranks(group[order][by_group])
    return order[np.lexsort((turn, row[order]))]


def _sentences(
    tokens: np.ndarray, pieces: Pieces, is_sentence_end: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First tokens of the sentences, ends, and the pieces they lie in."""
    is_last = is_sentence_end[tokens]
    is_last[pieces.text_end[pieces.text_end > 0] - 1] = True
    end = np.flatnonzero(is_last) + 1
    piece = np.searchsorted(pieces.end, end)
    before = np.concatenate(([0], end[:-1]))
    start = np.maximum(before, pieces.text_start[piece])
    is_text = (start < end) & (end <= pieces.text_end[piece])
    return start[is_text], end[is_text], piece[is_text]


def document_spans(
    rngs: Generators, pieces: Pieces, max_blanks: np.ndarray, config: ObjectiveConfig
) -> Blanks:
    """One long span per piece: a prefix split, or a blank inside the text.

    With probability `document_infill_prob` the span lies anywhere in the text of its piece, leaves
    at least one token of it visible, and ends in eop. Otherwise the piece is split: its last tokens
    with the eos, at most all but two, are generated from what stands before them, without eop. The
    length is uniform from `document_min_ratio` of the piece up (GLM 2021 draws it per batch).

    Args:
      max_blanks: int64 [R], most blanks of each row. Where it has more pieces, the shortest stay
        context.
    """
    size, room = pieces.size, pieces.room
    piece = _longest((size >= 3) & (room >= 2), size, pieces, max_blanks)
    count = group_sizes(pieces.row[piece], len(rngs))
    size, room = size[piece], room[piece]
    infill = draw(np.random.Generator.random, rngs, count.tolist()) < config.document_infill_prob

    longest = np.where(infill, room - 1, size - 2)
    shortest = np.clip((config.document_min_ratio * size).astype(np.int64), 1, longest)
    length = integers(rngs, shortest, longest + 1, count)
    slack = np.maximum(room - length, 0)
    shift = integers(rngs, np.zeros_like(slack), slack + 1, count)
    start = np.where(infill, pieces.text_start[piece] + shift, pieces.end[piece] - length)
    return Blanks(start, start + length, infill)


def _in_part_b_order(
    rngs: Generators, start: np.ndarray, end: np.ndarray, row: np.ndarray, config: ObjectiveConfig
) -> Blanks:
    if config.shuffle_spans:
        order = shuffled(rngs, group_sizes(row, len(rngs)))
        start, end = start[order], end[order]
    return Blanks(start, end, np.ones(len(start), bool))
