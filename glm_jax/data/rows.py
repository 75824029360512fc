"""From a row index to a packed row: a pure function of (config, seed, index).

Rows number 0, 1, 2 .. without end. A fixed cycle of rows says which source and objective a row has;
every row of a kind takes the same number of tokens from its source. So the place of a row in its
stream is arithmetic, streams are read from end to end and then again, and nothing is stored.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping

import numpy as np

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.data.sources import SPLITS, TokenStream
from glm_jax.errors import UserError
from glm_jax.objective import infill
from glm_jax.objective.samples import SampleBuilder, reserved_blanks
from glm_jax.tokenizer import SpecialTokens

MAX_CYCLE = 1000

_FEISTEL_ROUNDS = 4
_UINT64 = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Kind:
    """Rows of one source and one objective."""

    source: str
    objective: str
    rows: int  # in a cycle
    stream_tokens: int  # S, taken from the source by each row
    max_blanks: int  # K; S + 2 K = T, as a blank costs a mask token and a sop


class Rows:
    """The rows of one split by index.

    `len(rows)` is one pass: the rows in which every source is read from end to end at least once.
    Larger indices are valid; they go on through the streams and blank other spans. The order of the
    training rows is shuffled within each pass, that of the validation rows is not.
    """

    def __init__(
        self,
        config: Config,
        streams: Mapping[str, TokenStream],
        special: SpecialTokens,
        is_sentence_end: np.ndarray,
        split: str,
    ):
        """Lays out the cycle.

        Args:
          streams: the configured sources in sorted order, see `open_sources`.
          is_sentence_end: bool [vocab_size], see `spans.sentence_ends`.
          split: a name from SPLITS.

        Raises:
          UserError: a source or objective whose weight is less than half a row in MAX_CYCLE, or a
            negative seed; see also `SampleBuilder`.
        """
        self._config = config
        self._streams = dict(streams)
        self._source_names = list(streams)
        self._special = special
        self._builder = SampleBuilder(config, special, is_sentence_end)
        self._split = split
        self.kinds = _kinds(config, streams)
        self._cycle = _interleave([kind.rows for kind in self.kinds])
        self._tokens_before, self._cycle_tokens = self._consumption()
        self._pass_rows = max(map(self._rows_to_read, self._source_names))

    def __len__(self) -> int:
        return self._pass_rows

    def __getitem__(self, index: int) -> Batch:
        """Builds row `index` >= 0: fields [T] as numpy arrays.

        Raises:
          UserError: the source cannot be read.
        """
        row = self._shuffled(index)
        kind, _ = self._locate(row)
        rng = np.random.default_rng([self._config.seed, SPLITS.index(self._split), row])
        samples = self._builder.build(rng, self.window(index), kind.objective, kind.max_blanks)
        return infill.pack(
            [samples],
            self._config.data.seq_length,
            objective=kind.objective,
            source=self._source_names.index(kind.source),
            special=self._special,
        )

    def window(self, index: int) -> np.ndarray:
        """The stream tokens that row `index` is built from: int32 [S].

        Raises:
          UserError: the source cannot be read.
        """
        kind, offset = self._locate(self._shuffled(index))
        return self._streams[kind.source].read(offset, kind.stream_tokens)

    def describe(self) -> str:
        """The kinds of rows as a table: share, stream tokens S and blanks K of each."""
        lines = [f"{'source':12} {'objective':10} {'share':>7} {'tokens':>7} {'blanks':>7}"]
        for kind in self.kinds:
            share = kind.rows / len(self._cycle)
            lines.append(
                f"{kind.source:12} {kind.objective:10} {share:7.1%} "
                f"{kind.stream_tokens:7} {kind.max_blanks:7}"
            )
        return "\n".join(lines)

    def _consumption(self) -> tuple[list[int], dict[str, int]]:
        """Tokens a row's source gave earlier in the cycle, by place; and in a whole cycle."""
        taken = dict.fromkeys(self._source_names, 0)
        before = []
        for kind in (self.kinds[i] for i in self._cycle):
            before.append(taken[kind.source])
            taken[kind.source] += kind.stream_tokens
        return before, taken

    def _locate(self, row: int) -> tuple[Kind, int]:
        cycle, place = divmod(row, len(self._cycle))
        kind = self.kinds[self._cycle[place]]
        return kind, cycle * self._cycle_tokens[kind.source] + self._tokens_before[place]

    def _rows_to_read(self, source: str) -> int:
        """Rows until the source has been read to its end."""
        cycles, missing = divmod(self._streams[source].length - 1, self._cycle_tokens[source])
        last = max(
            place
            for place, kind in enumerate(self._cycle)
            if self.kinds[kind].source == source and self._tokens_before[place] <= missing
        )
        return cycles * len(self._cycle) + last + 1

    def _shuffled(self, index: int) -> int:
        if self._split != "train" or not self._config.data.shuffle:
            return index
        number, place = divmod(index, self._pass_rows)
        return number * self._pass_rows + permute(
            place, self._pass_rows, (self._config.seed, number)
        )


def _kinds(config: Config, streams: Mapping[str, TokenStream]) -> tuple[Kind, ...]:
    weights = {
        (source, objective): config.data.sources[source].weight * weight
        for source, (objective, weight) in itertools.product(
            streams, config.objective.weights.items()
        )
        if weight > 0
    }
    length = config.data.seq_length
    kinds = []
    for (source, objective), rows in _rows_in_cycle(weights).items():
        stream = streams[source]
        blanks = reserved_blanks(
            objective, config.objective, length, stream.length / stream.documents
        )
        kinds.append(Kind(source, objective, rows, length - 2 * blanks, blanks))
    return tuple(kinds)


def _rows_in_cycle(weights: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], int]:
    """Shares `MAX_CYCLE` rows by weight (largest remainder), then shortens the cycle if it can."""
    scale = MAX_CYCLE / sum(weights.values())
    rows = {kind: math.floor(weight * scale) for kind, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda kind: rows[kind] - weights[kind] * scale)
    for kind in by_remainder[: MAX_CYCLE - sum(rows.values())]:
        rows[kind] += 1
    for (source, objective), count in rows.items():
        if not count:
            raise UserError(
                f"config.data.sources.{source}.weight times config.objective.{objective}_weight is "
                f"{weights[source, objective] * scale:.2g} of {MAX_CYCLE} rows; a kind of row "
                "needs one"
            )
    divisor = math.gcd(*rows.values())
    return {kind: count // divisor for kind, count in rows.items()}


def _interleave(counts: list[int]) -> list[int]:
    """A cycle of sum(counts) entries in which kind c stands counts[c] times, evenly spread."""
    places = [
        ((rank + 0.5) / count, kind) for kind, count in enumerate(counts) for rank in range(count)
    ]
    return [kind for _, kind in sorted(places)]


def permute(index: int, size: int, key: tuple[int, ...]) -> int:
    """Entry `index` of a pseudo-random permutation of range(size), without storing it.

    A Feistel network over the next even power of two; entries outside the range are walked on until
    one is inside.

    Args:
      key: non-negative integers that choose the permutation.
    """
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    round_keys = _round_keys(key)
    while True:
        left, right = index >> half, index & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        index = left << half | right
        if index < size:
            return index


@functools.lru_cache(maxsize=16)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence(key).generate_state(_FEISTEL_ROUNDS, np.uint64).tolist())


def _mix(value: int) -> int:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _UINT64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _UINT64
    return value ^ (value >> 31)
