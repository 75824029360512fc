"""From a window of the stream to its samples, for every objective."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from glm_jax.batch import IN_PLACE, Batch
from glm_jax.config import Config, ObjectiveConfig
from glm_jax.objective import in_place, infill, spans
from glm_jax.tokenizer import SpecialTokens

_BUDGET_MARGIN = 2.0  # standard deviations of the number of blanks that a budget row has room for


@dataclasses.dataclass(frozen=True)
class SampleBuilder:
    """Builds the samples of a window.

    Attributes:
      is_sentence_end: bool [vocab_size], see `spans.sentence_ends`.
    """

    config: Config
    special: SpecialTokens
    is_sentence_end: np.ndarray

    def build(
        self, rng: np.random.Generator, tokens: np.ndarray, objective: str, max_blanks: int
    ) -> Batch:
        """The samples of all pieces of a window, one after the other.

        Args:
          tokens: int32 [S], the row's window.
          objective: a name from OBJECTIVES.
          max_blanks: K, see `reserved_blanks`.

        Returns:
          Fields of at most S + 2 K slots, as `infill.build_pieces` returns them.
        """
        pieces = spans.split_pieces(tokens, self.special)
        if objective == "causal":
            return in_place.causal(tokens, pieces)
        if objective == "prefix":
            return in_place.prefix(rng, tokens, pieces)
        if objective == "masked":
            ratio = self.config.objective.mask_ratio
            return in_place.masked(rng, tokens, pieces, mask_ratio=ratio, mask_id=self.special.mask)
        return infill.build_pieces(
            tokens,
            pieces.end,
            self._choose_blanks(rng, tokens, pieces, objective, max_blanks),
            mask_id=_mask_id(objective, self.special),
            special=self.special,
            model=self.config.model,
        )

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
            return spans.token_spans(rng, pieces, max_blanks, config)
        if objective == "sentence":
            return spans.sentence_spans(
                rng, tokens, pieces, self.is_sentence_end, max_blanks, config
            )
        return spans.document_spans(rng, pieces, max_blanks, config)


def _mask_id(objective: str, special: SpecialTokens) -> int:
    return {"token": special.mask, "sentence": special.smask, "document": special.gmask}[objective]


def reserved_blanks(
    objective: str, config: ObjectiveConfig, length: int, document_tokens: float
) -> int:
    """Blanks K that a row of `length` slots has room for; the other `length - 2 K` are text.

    Token rows with fixed sampling use all of them, so that the row is full and `mask_ratio` of its
    text is masked on average. Other rows of blanks fill what they do not use with padding; rows
    without blanks are all text.

    Args:
      document_tokens: mean length of a document of the source, with its `[CLS]` and eos.
    """
    if objective in IN_PLACE:
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
        return tokens / document_tokens + 1  # pieces that a window at a random place has

    needed: Callable[[int], float] = {
        "token": fixed if config.span_sampling == "fixed" else budget,
        "sentence": sentence,
        "document": document,
    }[objective]
    return next(k for k in itertools.count(1) if k >= needed(length - 2 * k))
