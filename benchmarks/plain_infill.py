"""Rows of blank infilling in plain Python, to measure `glm_jax.objective` against.

The same rules as there (what is blanked, and what arrays a row has), written with lists and loops,
token by token where the published GLM code goes token by token. Only the random numbers differ:
they come from `random.Random`, as in the published code.
"""

import bisect
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.config import ObjectiveConfig
from glm_jax.objective.spans import length_probabilities
from glm_jax.tokenizer import SpecialTokens


class Piece(NamedTuple):
    start: int
    end: int
    text_start: int
    text_end: int


class Span(NamedTuple):
    start: int
    end: int
    eop: bool = True


class PlainRows:
    """Builds one row after the other."""

    def __init__(
        self,
        config: ObjectiveConfig,
        special: SpecialTokens,
        is_sentence_end: np.ndarray,
        length: int,
    ):
        self.config = config
        self.special = special
        self.is_sentence_end = is_sentence_end.tolist()
        self.length = length
        longest = config.max_span_length
        self.span_lengths = range(1, longest + 1)
        self.span_weights = length_probabilities(config.span_length_mean, longest).tolist()

    def row(self, rng: random.Random, window: np.ndarray, objective: str, max_blanks: int) -> Batch:
        """A row of T slots from a window (int32 [S]) as NumPy arrays."""
        tokens = window.tolist()
        pieces = self.split_pieces(tokens)
        spans = self.spans(rng, tokens, pieces, objective, max_blanks)
        return self.arrays(tokens, pieces, spans, objective)

    def spans(
        self,
        rng: random.Random,
        tokens: list[int],
        pieces: list[Piece],
        objective: str,
        max_blanks: int,
    ) -> list[Span]:
        """What is blanked, in the order of Part B."""
        if objective == "token":
            return self.token_spans(rng, pieces, max_blanks)
        if objective == "sentence":
            return self.sentence_spans(rng, tokens, pieces, max_blanks)
        return self.document_spans(rng, pieces, max_blanks)

    def mask_id(self, objective: str) -> int:
        other = {"sentence": self.special.smask, "document": self.special.gmask}
        return other.get(objective, self.special.mask)

    def split_pieces(self, tokens: list[int]) -> list[Piece]:
        pieces, start = [], 0
        for place, token in enumerate(tokens):
            if token == self.special.eos or place == len(tokens) - 1:
                text_end = place if token == self.special.eos else place + 1
                text_start = start + (tokens[start] in self.special.start)
                pieces.append(Piece(start, place + 1, min(text_start, text_end), text_end))
                start = place + 1
        return pieces

    def token_spans(self, rng: random.Random, pieces: list[Piece], max_blanks: int) -> list[Span]:
        drawn = rng.choices(self.span_lengths, self.span_weights, k=max_blanks)
        free = [piece.text_end - piece.text_start for piece in pieces]
        holders = [i for i, room in enumerate(free) if room >= 2]
        if not holders:
            return []
        chosen = rng.choices(holders, [free[i] for i in holders], k=max_blanks)
        if max_blanks >= len(holders):
            chosen[: len(holders)] = holders
        dealt = [[] for _ in pieces]
        left = []
        for piece, span in zip(chosen, drawn, strict=True):
            if free[piece] > span:
                free[piece] -= span + 1
                dealt[piece].append(span)
            else:
                left.append(span)
        for span in left:
            span = min(span, max(free) - 1)
            if span < 1:
                break
            piece = rng.choices(range(len(free)), [f if f > span else 0 for f in free])[0]
            free[piece] -= span + 1
            dealt[piece].append(span)
        spans = []
        for piece, lengths, slack in zip(pieces, dealt, free, strict=True):
            offset = piece.text_start
            shifts = sorted(rng.randrange(slack + 2) for _ in lengths)
            for span, shift in zip(lengths, shifts, strict=True):
                spans.append(Span(offset + shift, offset + shift + span))
                offset += span + 1
        rng.shuffle(spans)
        return spans

    def sentence_spans(
        self, rng: random.Random, tokens: list[int], pieces: list[Piece], max_blanks: int
    ) -> list[Span]:
        by_piece = []
        for piece in pieces:
            sentences, start = [], piece.text_start
            for place in range(piece.text_start, piece.text_end):
                if self.is_sentence_end[tokens[place]] or place == piece.text_end - 1:
                    sentences.append(Span(start, place + 1))
                    start = place + 1
            rng.shuffle(sentences)
            by_piece.append(sentences)
        turns = [
            (turn, rng.random(), span)
            for sentences in by_piece
            for turn, span in enumerate(sentences)
        ]
        turns.sort()
        budget = int(self.config.mask_ratio * len(tokens))
        spans, masked = [], 0
        for _, _, span in turns[:max_blanks]:
            spans.append(span)
            masked += span.end - span.start
            if masked >= budget:
                break
        rng.shuffle(spans)
        return spans

    def document_spans(
        self, rng: random.Random, pieces: list[Piece], max_blanks: int
    ) -> list[Span]:
        long_enough = [p for p in pieces if p.end - p.start >= 3 and p.text_end - p.text_start >= 2]
        longest = sorted(long_enough, key=lambda p: p.start - p.end)[:max_blanks]
        spans = []
        for piece in sorted(longest):
            size, room = piece.end - piece.start, piece.text_end - piece.text_start
            infill = rng.random() < self.config.document_infill_prob
            most = room - 1 if infill else size - 2
            least = min(max(int(self.config.document_min_ratio * size), 1), most)
            length = rng.randint(least, most)
            if infill:
                start = piece.text_start + rng.randint(0, room - length)
                spans.append(Span(start, start + length))
            else:
                spans.append(Span(piece.end - length, piece.end, eop=False))
        return spans

    def arrays(
        self, tokens: list[int], pieces: Sequence[Piece], spans: Sequence[Span], objective: str
    ) -> Batch:
        """The row of given spans, which follow in Part B in their order."""
        special, mask = self.special, self.mask_id(objective)
        piece_ends = [piece.end for piece in pieces]
        spans_of = [[] for _ in pieces]
        for span in spans:
            spans_of[bisect.bisect_right(piece_ends, span.start)].append(span)
        inputs, targets, weights = [], [], []
        positions, block_positions = [], []
        kv_starts, kv_ends, segments = [], [], []
        for number, (piece, own) in enumerate(zip(pieces, spans_of, strict=True), start=1):
            first, at, mask_positions = len(inputs), piece.start, {}
            for span in sorted(own):
                inputs.extend(tokens[at : span.start])
                mask_positions[span.start] = len(inputs) - first
                inputs.append(mask)
                at = span.end
            inputs.extend(tokens[at : piece.end])
            context = len(inputs) - first
            targets.extend(inputs[first:])
            weights.extend([0.0] * context)
            positions.extend(range(context))
            block_positions.extend([0] * context)
            kv_ends.extend([first + context] * context)
            for span in own:
                text = tokens[span.start : span.end]
                if span.eop:
                    inputs.extend([special.sop, *text])
                    targets.extend([*text, special.eop])
                else:
                    inputs.extend([special.sop, *text[:-1]])
                    targets.extend(text)
                size = len(text) + span.eop
                weights.extend([1.0] * size)
                positions.extend([mask_positions[span.start]] * size)
                block_positions.extend(range(1, size + 1))
                kv_ends.extend(range(len(kv_ends) + 1, len(kv_ends) + 1 + size))
            kv_starts.extend([first] * (len(inputs) - first))
            segments.extend([number] * (len(inputs) - first))
        padding = self.length - len(inputs)
        return Batch(
            tokens=np.array(inputs + [special.pad] * padding, np.int32),
            targets=np.array(targets + [special.pad] * padding, np.int32),
            weights=np.array(weights + [0.0] * padding, np.float32),
            position=np.array(positions + [0] * padding, np.int32),
            block_position=np.array(block_positions + [0] * padding, np.int32),
            kv_start=np.array(kv_starts + [0] * padding, np.int32),
            kv_end=np.array(kv_ends + [0] * padding, np.int32),
            segment=np.array(segments + [0] * padding, np.int32),
            objective=np.full(self.length, OBJECTIVES.index(objective), np.int32),
            source=np.zeros(self.length, np.int32),
        )
