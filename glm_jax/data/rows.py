"""From a row index to a packed row: a pure function of (config, seed, index).

Rows number 0, 1, 2 .. without end, through all stages of a run. Within a stage a fixed cycle of
rows says which source and objective a row has (`glm_jax.data.mixture`), and where it stands in its
stream is arithmetic (`glm_jax.data.lanes`). Every stage goes on in each stream where the stage
before it ended, streams are read from end to end and then again, and nothing is stored.
"""

import bisect
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.data.generators import generators
from glm_jax.data.mixture import Kind, Mixture, packs_documents
from glm_jax.data.shards import SPLITS
from glm_jax.data.sources import TokenStream
from glm_jax.objective.samples import SampleBuilder
from glm_jax.stages import BatchGrid
from glm_jax.tokenizer import SpecialTokens

_FEISTEL_ROUNDS = 4
_UINT64 = (1 << 64) - 1


class StageRows(NamedTuple):
    """The rows of one stage.

    Attributes:
      first_row: index of the first of them.
      num_rows: None for the last stage, which has no end.
      together: rows that shuffling leaves together, as they are read together.
      shuffled: how many rows are shuffled among each other; 0: none.
    """

    name: str
    first_row: int
    num_rows: int | None
    mixture: Mixture
    together: int
    shuffled: int

    def position(self, index: int, seed: int, number: int) -> int:
        """The position in the stage that row `index` has, see `_shuffled`."""
        position = index - self.first_row
        if not self.shuffled:
            return position
        key = (seed,) if number == 0 else (seed, number)
        run, place = divmod(position, self.together)
        runs = None if self.num_rows is None else self.num_rows // self.together
        if runs is not None and run >= runs:
            return position  # of the last run, which is shorter
        among = -(-min(self.mixture.pass_rows, self.shuffled) // self.together)
        return _shuffled(run, among, runs, key) * self.together + place


class Rows:
    """The rows of one split by index.

    `len(rows)` is one pass of the first stage: the rows in which every source is read from end to
    end at least once. Larger indices are valid; they go on through the streams and blank other
    spans. Training rows are shuffled among `data.shuffle_rows` of a stage, or all of a pass;
    validation rows are not, and have no stages.
    """

    def __init__(
        self,
        config: Config,
        streams: Mapping[str, TokenStream],
        special: SpecialTokens,
        is_sentence_end: np.ndarray,
        split: str,
    ):
        """Lays out the stages.

        Args:
          streams: the configured sources in sorted order, see `open_sources`.
          is_sentence_end: bool [vocab_size], see `spans.sentence_ends`.
          split: a name from SPLITS.

        Raises:
          UserError: a kind of row is too rare (see `Mixture`); see also `SampleBuilder`.
        """
        self._seed, self._split = config.seed, split
        self.streams = dict(streams)
        self.stages: list[StageRows] = []
        starts = dict.fromkeys(streams, 0)
        for name, stage_config, first_row, end in _ranges(config, split):
            num_rows = None if end is None else end - first_row
            builder = SampleBuilder(stage_config, special, is_sentence_end)
            mixture = Mixture(builder, streams, starts, num_rows)
            together = _together(stage_config, mixture)
            shuffled = config.data.shuffle_rows if split == "train" and config.data.shuffle else 0
            self.stages.append(StageRows(name, first_row, num_rows, mixture, together, shuffled))
            if num_rows is not None:
                taken = mixture.taken(num_rows)
                starts = {source: start + taken.get(source, 0) for source, start in starts.items()}

    def __len__(self) -> int:
        return self.stages[0].mixture.pass_rows

    def __getitem__(self, index: int) -> Batch:
        """Builds row `index` >= 0: fields [T] as numpy arrays.

        Raises:
          UserError: the source cannot be read.
        """
        return Batch(*(field[0] for field in self.build([index])))

    def build(self, indices: Sequence[int]) -> Batch:
        """Builds rows of one stage, each as if alone: fields [len(indices), T].

        Raises:
          UserError: the source cannot be read.
        """
        stages, positions = zip(*map(self._locate, indices), strict=True)
        if stages[0] is not stages[-1]:
            raise ValueError(f"rows {indices[0]} and {indices[-1]} are of two stages")
        numbers = [stages[0].first_row + position for position in positions]
        rngs = generators([self._seed, SPLITS.index(self._split)], numbers)
        return stages[0].mixture.build(rngs, positions)

    def window(self, index: int) -> np.ndarray:
        """The stream tokens that row `index` is built from: int32 [S].

        Raises:
          UserError: the source cannot be read.
        """
        stage, position = self._locate(index)
        return stage.mixture.window(position).tokens

    def origin(self, index: int) -> tuple[str, int]:
        """Source of row `index`, and the number of the document that it begins with.

        Raises:
          UserError: the source cannot be read.
        """
        stage, position = self._locate(index)
        source = stage.mixture.kind(position).source
        offset = stage.mixture.window(position).offset
        return source, self.streams[source].document_at(offset)

    def origins(self, rows: range) -> list[str]:
        """Where rows come from, for people: `row 7: en, document 12`.

        Raises:
          UserError: a source cannot be read.
        """
        named = ((index, *self.origin(index)) for index in rows)
        return [f"row {index}: {source}, document {number}" for index, source, number in named]

    def taken(self, row: int) -> dict[str, int]:
        """Tokens of each source that all rows before `row` take."""
        taken = dict.fromkeys(self.streams, 0)
        for stage in self.stages:
            if stage.first_row < row:
                rows = row - stage.first_row
                if stage.num_rows is not None:
                    rows = min(rows, stage.num_rows)
                for source, tokens in stage.mixture.taken(rows).items():
                    taken[source] += tokens
        return taken

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the rows of the first stage."""
        return self.stages[0].mixture.kinds

    def _locate(self, index: int) -> tuple[StageRows, int]:
        number = bisect.bisect_right(self.stages, index, key=lambda stage: stage.first_row) - 1
        stage = self.stages[number]
        return stage, stage.position(index, self._seed, number)


def _ranges(config: Config, split: str):
    """Name, config, first row and end of each stage; only training has more than one."""
    if split != "train":
        return [("validation", config, 0, None)]
    grid = BatchGrid(config)
    return [
        (stage.name, stage.config, *grid.rows_of_stage(number))
        for number, stage in enumerate(grid.stages)
    ]


def _together(config: Config, mixture: Mixture) -> int:
    packed = [lane for lane in mixture.lanes.values() if packs_documents(config.data, lane.stream)]
    return max(1, config.data.packing_rows * len(packed))


def _shuffled(index: int, among: int, size: int | None, key: tuple[int, ...]) -> int:
    """Entry `index` of 0 .. size - 1, of which each `among` are permuted; the last may be fewer."""
    number, place = divmod(index, among)
    first = number * among
    here = among if size is None else min(among, size - first)
    return first + permute(place, here, (*key, number))


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
