"""From a window of the stream to its samples, for every objective."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from glm_jax.batch import IN_PLACE, Batch
from glm_jax.config import Config, ObjectiveConfig
from glm_jax.errors import UserError
from glm_jax.objective import in_place, infill, instruction, noise, spans
from glm_jax.objective.one_stream import one_stream
from glm_jax.tokenizer import SpecialTokens

_BUDGET_MARGIN = 2.0  # standard deviations of the number of blanks that a budget row has room for
_NO_ENDS = np.zeros(0, np.int64)
_SHORTEST_TEXT = 32  # of a row that is cut into short ones, as published


@dataclasses.dataclass(frozen=True)
class SampleBuilder:
    """Builds the samples of a window.

    Attributes:
      is_sentence_end: bool [vocab_size], see `spans.sentence_ends`.
    """

    config: Config
    special: SpecialTokens
    is_sentence_end: np.ndarray

    def __post_init__(self):
        """Raises UserError for noise that the tokenizer has no token for."""
        for name in ("block_mask_prob", "context_mask_ratio"):
            value = getattr(self.config.objective, name)
            if value > 0 and self.special.dblock is None:
                raise UserError(
                    f"config.objective.{name} {value} needs a tokenizer with a [dBLOCK] token"
                )

    def build(
        self,
        rng: np.random.Generator,
        tokens: np.ndarray,
        objective: str,
        max_blanks: int,
        ends: np.ndarray = _NO_ENDS,
    ) -> Batch:
        """The samples of all pieces of a window, one after the other.

        Args:
          tokens: int32 [S], the row's window.
          objective: a name from OBJECTIVES.
          max_blanks: K, see `reserved_blanks`.
          ends: int64, places < S at which pieces end beside the ends of documents.

        Returns:
          Fields of at most S + 2 K slots, as `infill.build_pieces` returns them.
        """
        if objective == "instruction":
            pieces = spans.split_pieces(tokens, self.special, ends)
            samples = instruction.build(tokens, pieces, self.special, self.config.model)
            return self._shifted(rng, samples)
        cuts = self._cuts(rng, len(tokens), objective)
        if len(ends):
            cuts = np.union1d(cuts, ends)
        pieces = spans.split_pieces(tokens, self.special, cuts)
        if objective in IN_PLACE:
            samples = self._in_place(rng, tokens, pieces, objective)
        else:
            samples = self._infilled(rng, tokens, pieces, objective, max_blanks)
        if objective == "t5":
            samples = one_stream(samples, self.special)
        if objective == "token":
            samples = self._with_noise(rng, samples, len(tokens))
        return self._shifted(rng, samples)

    def _cuts(self, rng: np.random.Generator, length: int, objective: str) -> np.ndarray:
        """Where a window is cut beside the ends of its documents: int64, ascending.

        Token rows are cut into equal samples (GLM-130B: four of 512 slots). For short sequences
        GLM 2021 draws one length for a batch and takes windows of it from every sample; here the
        row is cut into texts of one drawn length, so that none of its tokens is lost.
        """
        samples = 1
        if objective == "token" and self.config.objective.sample_length:
            samples = self.config.data.seq_length // self.config.objective.sample_length
        cuts = np.arange(1, samples) * length // samples
        probability = self.config.objective.short_sequence_prob
        if probability == 0 or rng.random() >= probability:
            return cuts
        every = rng.integers(_SHORTEST_TEXT, max(length // samples, _SHORTEST_TEXT + 1))
        return np.union1d(cuts, np.arange(every, length, every))

    def _in_place(
        self, rng: np.random.Generator, tokens: np.ndarray, pieces: spans.Pieces, objective: str
    ) -> Batch:
        if objective == "causal":
            return in_place.causal(tokens, pieces)
        if objective == "prefix":
            return in_place.prefix(rng, tokens, pieces)
        ratio = self.config.objective.mask_ratio
        return in_place.masked(rng, tokens, pieces, mask_ratio=ratio, mask_id=self.special.mask)

    def _infilled(
        self,
        rng: np.random.Generator,
        tokens: np.ndarray,
        pieces: spans.Pieces,
        objective: str,
        max_blanks: int,
    ) -> Batch:
        return infill.build_pieces(
            tokens,
            pieces.end,
            self._choose_blanks(rng, tokens, pieces, objective, max_blanks),
            mask_id=_mask_id(objective, self.special),
            special=self.special,
            model=self.config.model,
        )

    def _with_noise(self, rng: np.random.Generator, samples: Batch, text_length: int) -> Batch:
        config = self.config.objective
        if config.block_mask_prob > 0:
            samples = noise.noise_in_answers(rng, samples, config.block_mask_prob, self.special)
        if config.context_mask_ratio > 0:
            count = int(config.context_mask_ratio * text_length)
            samples = noise.noise_near_blanks(rng, samples, count, self.special)
        return samples

    def _shifted(self, rng: np.random.Generator, samples: Batch) -> Batch:
        if not self.config.objective.random_position:
            return samples
        return noise.shift_positions(rng, samples, self.config.model.max_positions)

    def _choose_blanks(
        self,
        rng: np.random.Generator,
        tokens: np.ndarray,
        pieces: spans.Pieces,
        objective: str,
        max_blanks: int,
    ) -> spans.Blanks:
        config = self.config.objective
        if objective == "token":
            if config.single_span_prob > 0 and rng.random() < config.single_span_prob:
                return spans.single_spans(rng, pieces, max_blanks, config)
            return spans.token_spans(rng, pieces, max_blanks, config)
        if objective == "t5":
            in_order = dataclasses.replace(config, shuffle_spans=False)
            return spans.token_spans(rng, pieces, max_blanks, in_order)
        if objective == "sentence":
            return spans.sentence_spans(
                rng, tokens, pieces, self.is_sentence_end, max_blanks, config
            )
        return spans.document_spans(rng, pieces, max_blanks, config)


def _mask_id(objective: str, special: SpecialTokens) -> int:
    other = {"sentence": special.smask, "document": special.gmask}
    return other.get(objective, special.mask)


def reserved_blanks(
    objective: str, config: ObjectiveConfig, length: int, document_tokens: float
) -> int:
    """Blanks K that a row of `length` slots has room for; the other `length - 2 K` are text.

    Token and t5 rows with fixed sampling use all of them, so that the row is full and `mask_ratio`
    of its text is masked on average. Other rows of blanks fill what they do not use with padding;
    rows without blanks are all text.

    Args:
      document_tokens: mean length of a document of the source, with its `[CLS]` and eos.
    """
    if objective in IN_PLACE or objective == "instruction":
        return 0
    mean, variance = spans.length_moments(config.span_length_mean, config.max_span_length)

    def fixed(tokens: int) -> float:
        return config.mask_ratio * tokens / mean - 0.5  # rounds to the nearest

    def budget(tokens: int) -> float:
        # Spans drawn until a sum: the renewal count has variance sum * variance / mean^3.
        masked = config.mask_ratio * tokens
        return masked / mean + _BUDGET_MARGIN * math.sqrt(masked * variance / mean**3)

    def sentence(tokens: int) -> float:
        return config.mask_ratio * tokens / config.tokens_per_sentence_blank + 1

    def document(tokens: int) -> float:
        pieces = tokens / document_tokens + 1  # that a window at a random place has
        if config.short_sequence_prob > 0:
            # The mean of tokens / length over the lengths of short texts.
            pieces += math.log(max(tokens / _SHORTEST_TEXT, 1.0))
        return pieces

    token = fixed if config.span_sampling == "fixed" else budget
    needed: Callable[[int], float] = {
        "token": token,
        "t5": token,
        "sentence": sentence,
        "document": document,
    }[objective]
    return next(k for k in itertools.count(1) if k >= needed(length - 2 * k))
