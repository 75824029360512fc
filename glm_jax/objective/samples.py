"""From windows of the stream to rows of samples, for every objective."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from glm_jax.batch import IN_PLACE, OBJECTIVES, Batch
from glm_jax.config import Config, ObjectiveConfig
from glm_jax.errors import UserError
from glm_jax.objective import in_place, infill, instruction, noise, spans
from glm_jax.objective.one_stream import one_stream
from glm_jax.objective.ragged import Generators
from glm_jax.tokenizer import SpecialTokens

_BUDGET_MARGIN = 2.0  # standard deviations of the number of blanks that a budget row has room for
_SHORTEST_TEXT = 32  # of a row that is cut into short ones, as published


@dataclasses.dataclass(frozen=True)
class SampleBuilder:
    """Builds rows of samples.

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
        rngs: Generators,
        windows: Sequence[np.ndarray],
        objective: str,
        max_blanks: Sequence[int],
        ends: Sequence[np.ndarray] = (),
    ) -> Batch:
        """The samples of all pieces of each window, in a row each: padded, source 0.

        Args:
          rngs: one generator for each of R rows; no row depends on the others.
          windows: int32 [S], one for each row; S may differ.
          objective: a name from OBJECTIVES.
          max_blanks: K of each row, see `reserved_blanks`.
          ends: int64 of each row, places in its window at which pieces end, as they do after every
            eos; none if it is empty.

        Returns:
          Fields [R, T].

        Raises:
          ValueError: a row needs more than T = `data.seq_length` slots.
        """
        tokens, sizes = np.concatenate(windows), np.array([len(window) for window in windows])
        row_end = np.cumsum(sizes)
        cuts = [own + end - size for own, end, size in zip(ends, row_end, sizes, strict=False)]
        if objective != "instruction":
            cuts.append(self._cuts(rngs, sizes, objective))
        pieces = spans.split_pieces(tokens, self.special, np.concatenate(cuts), row_end)
        if objective == "instruction":
            flat = instruction.build(
                tokens, pieces, self.special, self.config.model, self.config.data.seq_length
            )
        elif objective in IN_PLACE:
            flat = self._in_place(rngs, tokens, pieces, objective)
        else:
            flat = self._infilled(rngs, tokens, pieces, objective, np.array(max_blanks))
        length = self.config.data.seq_length
        rows = Batch(*(field.reshape(-1, length) for field in flat))
        number = np.int32(OBJECTIVES.index(objective))
        rows = rows._replace(objective=np.broadcast_to(number, rows.segment.shape))
        if objective == "t5":
            rows = one_stream(rows, self.special)
        self._add_noise(rngs, rows, sizes.tolist(), objective)
        return rows

    def _cuts(self, rngs: Generators, sizes: np.ndarray, objective: str) -> np.ndarray:
        """Where windows are cut beside the ends of documents: int64, counted over all windows.

        Token rows are cut into equal samples (GLM-130B: four of 512 slots). For short sequences
        GLM 2021 draws one length for a batch and takes windows of it from every sample; here the
        row is cut into texts of one drawn length, so that none of its tokens is lost.
        """
        samples = 1
        if objective == "token" and self.config.objective.sample_length:
            samples = self.config.data.seq_length // self.config.objective.sample_length
        probability = self.config.objective.short_sequence_prob
        cuts = [np.empty(0, np.int64)]
        for rng, length, end in zip(rngs, sizes.tolist(), np.cumsum(sizes).tolist(), strict=True):
            if samples > 1:
                cuts.append(np.arange(1, samples) * length // samples + end - length)
            if probability > 0 and rng.random() < probability:
                every = rng.integers(_SHORTEST_TEXT, max(length // samples, _SHORTEST_TEXT + 1))
                cuts.append(np.arange(every, length, every) + end - length)
        return np.concatenate(cuts)

    def _in_place(
        self, rngs: Generators, tokens: np.ndarray, pieces: spans.Pieces, objective: str
    ) -> Batch:
        options = {"length": self.config.data.seq_length, "special": self.special}
        if objective == "causal":
            return in_place.causal(tokens, pieces, **options)
        if objective == "prefix":
            return in_place.prefix(rngs, tokens, pieces, **options)
        ratio = self.config.objective.mask_ratio
        return in_place.masked(rngs, tokens, pieces, mask_ratio=ratio, **options)

    def _infilled(
        self,
        rngs: Generators,
        tokens: np.ndarray,
        pieces: spans.Pieces,
        objective: str,
        max_blanks: np.ndarray,
    ) -> Batch:
        return infill.build_rows(
            tokens,
            pieces,
            self._choose_blanks(rngs, tokens, pieces, objective, max_blanks),
            length=self.config.data.seq_length,
            mask_id=_mask_id(objective, self.special),
            special=self.special,
            model=self.config.model,
        )

    def _choose_blanks(
        self,
        rngs: Generators,
        tokens: np.ndarray,
        pieces: spans.Pieces,
        objective: str,
        max_blanks: np.ndarray,
    ) -> spans.Blanks:
        config = self.config.objective
        if objective == "token":
            return self._token_blanks(rngs, pieces, max_blanks)
        if objective == "t5":
            in_order = dataclasses.replace(config, shuffle_spans=False)
            return spans.token_spans(rngs, pieces, max_blanks, in_order)
        if objective == "sentence":
            return spans.sentence_spans(
                rngs, tokens, pieces, self.is_sentence_end, max_blanks, config
            )
        return spans.document_spans(rngs, pieces, max_blanks, config)

    def _token_blanks(
        self, rngs: Generators, pieces: spans.Pieces, max_blanks: np.ndarray
    ) -> spans.Blanks:
        """Those of rows with one span per piece, then those of the others."""
        config = self.config.objective
        if config.single_span_prob == 0:
            return spans.token_spans(rngs, pieces, max_blanks, config)
        is_single = np.array([rng.random() < config.single_span_prob for rng in rngs])
        parts = []
        for chosen, choose in ((is_single, spans.single_spans), (~is_single, spans.token_spans)):
            if chosen.any():
                own = list(itertools.compress(rngs, chosen))
                parts.append(choose(own, pieces.of_rows(chosen), max_blanks[chosen], config))
        return spans.Blanks(*map(np.concatenate, zip(*parts, strict=True)))

    def _add_noise(
        self, rngs: Generators, rows: Batch, sizes: Sequence[int], objective: str
    ) -> None:
        """What the options change in finished rows [R, T], in place.

        Args:
          sizes: tokens of the window of each row.
        """
        config = self.config.objective
        block_mask_prob = config.block_mask_prob if objective == "token" else 0.0
        context_mask_ratio = config.context_mask_ratio if objective == "token" else 0.0
        if not (block_mask_prob or context_mask_ratio or config.random_position):
            return
        for rng, size, *row in zip(rngs, sizes, *rows, strict=True):
            used = np.count_nonzero(Batch(*row).segment)
            samples = noised = Batch(*(field[:used] for field in row))
            if block_mask_prob > 0:
                noised = noise.noise_in_answers(rng, noised, block_mask_prob, self.special)
            if context_mask_ratio > 0:
                count = int(context_mask_ratio * size)
                noised = noise.noise_near_blanks(rng, noised, count, self.special)
            if config.random_position:
                noised = noise.shift_positions(rng, noised, self.config.model.max_positions)
            samples.tokens[:], samples.position[:] = noised.tokens, noised.position


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
