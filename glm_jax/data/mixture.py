"""The rows of one stage: a fixed cycle that says which source and objective each row has."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from glm_jax.batch import OBJECTIVES, Batch, empty_rows
from glm_jax.config import Config, DataConfig
from glm_jax.data.lanes import ExampleLane, PackedLane, Window, WindowLane
from glm_jax.data.sources import TokenStream
from glm_jax.errors import UserError
from glm_jax.objective.ragged import Generators
from glm_jax.objective.samples import SampleBuilder, reserved_blanks

MAX_CYCLE = 20_000

_SHORT_CYCLE = 1000
_SLOTS_TOGETHER = 1 << 17
_SHARE_ERROR = 1e-3  # of a kind's share, relative, that is given up for a short cycle


@dataclasses.dataclass(frozen=True)
class Kind:
    """Rows of one source and one objective."""

    source: str
    objective: str
    rows: int  # in a cycle
    stream_tokens: int  # S, that a row has room for
    max_blanks: int  # K; S + 2 K = T, as a blank costs a mask token and a sop


class Mixture:
    """The rows of one stage by position, from 0.

    Attributes:
      kinds: of rows.
      pass_rows: rows in which every source is read from end to end at least once.
    """

    def __init__(
        self,
        builder: SampleBuilder,
        streams: Mapping[str, TokenStream],
        starts: Mapping[str, int],
        num_rows: int | None,
    ):
        """Lays out the cycle.

        Args:
          builder: for the config of the stage.
          streams: all configured sources in sorted order, see `open_sources`.
          starts: tokens that earlier stages took of each source.
          num_rows: rows of the stage, None where it has no end.

        Raises:
          UserError: a kind of row with less than half a row in MAX_CYCLE.
        """
        self._builder = builder
        self._source_names = list(streams)
        config = builder.config
        self.kinds = _kinds(config, streams)
        self._cycle = np.array(_interleave([kind.rows for kind in self.kinds]))
        self.lanes = {
            source: self._lane(streams[source], starts[source], num_rows)
            for source in dict.fromkeys(kind.source for kind in self.kinds)
        }
        last = [lane.rows_to_take(lane.stream.length) for lane in self.lanes.values()]
        self.pass_rows = 1 + max(cycle * len(self._cycle) + place for cycle, place in last)

    @property
    def cycle_rows(self) -> int:
        return len(self._cycle)

    def kind(self, position: int) -> Kind:
        return self.kinds[self._cycle[position % len(self._cycle)]]

    def window(self, position: int) -> Window:
        """What the row at a position is built from.

        Raises:
          UserError: the source cannot be read.
        """
        lane = self.lanes[self.kind(position).source]
        return lane.read(lane.rank(*divmod(position, len(self._cycle))))

    def build(self, rngs: Generators, positions: Sequence[int]) -> Batch:
        """The rows at the given positions, each as if alone: fields [len(positions), T].

        Args:
          rngs: a generator for each.

        Raises:
          UserError: the source cannot be read.
        """
        kinds = [self.kind(position) for position in positions]
        windows = [self.window(position) for position in positions]
        length = self._builder.config.data.seq_length
        rows = empty_rows(len(positions), length)
        for place, window in enumerate(windows):
            if not len(window.tokens):
                _pad(rows, place, self._builder.special.pad)
        for objective, here in _built_together(kinds, windows, length):
            part = self._builder.build(
                [rngs[place] for place in here],
                [windows[place].tokens for place in here],
                objective,
                [_blanks(kinds[place], len(windows[place].tokens)) for place in here],
                [windows[place].ends for place in here],
            )
            for field, values in zip(rows, part, strict=True):
                field[here] = values
        rows.source[:] = [[self._source_names.index(kind.source)] for kind in kinds]
        rows.objective[:] = [[OBJECTIVES.index(kind.objective)] for kind in kinds]
        return rows

    def taken(self, num_rows: int) -> dict[str, int]:
        """Tokens of each source that the first `num_rows` rows take."""
        place = divmod(num_rows, len(self._cycle))
        return {name: lane.taken(lane.rank(*place)) for name, lane in self.lanes.items()}

    def _lane(self, stream: TokenStream, start: int, num_rows: int | None) -> WindowLane:
        data = self._builder.config.data
        is_its_own = np.array([kind.source == stream.name for kind in self.kinds])
        places = np.flatnonzero(is_its_own[self._cycle])
        rooms = np.array([kind.stream_tokens for kind in self.kinds])[self._cycle[places]]
        lane = WindowLane(stream, start, places, rooms)
        if not packs_documents(data, stream):
            return lane
        packed = ExampleLane if stream.instructions else PackedLane
        return packed(
            stream,
            start,
            places,
            rooms,
            rows_together=data.packing_rows,
            fill=data.packing_fill,
            num_rows=num_rows and lane.rank(*divmod(num_rows, len(self._cycle))),
            special=self._builder.special,
        )


def _built_together(
    kinds: Sequence[Kind], windows: Sequence[Window], length: int
) -> Iterator[tuple[str, list[int]]]:
    """Splits rows that are not all padding into places that are built at once, by objective.

    NumPy is quick on arrays that are large, and slow again on those that leave the cache.
    """
    most = max(_SLOTS_TOGETHER // length, 1)
    places: dict[str, list[int]] = {}
    for place, (kind, window) in enumerate(zip(kinds, windows, strict=True)):
        if len(window.tokens):
            places.setdefault(kind.objective, []).append(place)
    for objective, here in places.items():
        for first in range(0, len(here), most):
            yield objective, here[first : first + most]


def _pad(rows: Batch, place: int, pad: int) -> None:
    for field in rows:
        field[place] = 0
    rows.tokens[place] = rows.targets[place] = pad


def packs_documents(data: DataConfig, stream: TokenStream) -> bool:
    """Whether rows of a source hold whole documents; those of prompts and answers always do."""
    packing = data.sources[stream.name].packing or data.packing
    return stream.instructions or packing == "documents"


def _blanks(kind: Kind, tokens: int) -> int:
    """Blanks of a row, fewer in proportion where it is not full."""
    if tokens == kind.stream_tokens:
        return kind.max_blanks
    return math.ceil(kind.max_blanks * tokens / kind.stream_tokens)


def _kinds(config: Config, streams: Mapping[str, TokenStream]) -> tuple[Kind, ...]:
    length = config.data.seq_length
    kinds = []
    for (source, objective), rows in _rows_in_cycle(_weights(config, streams)).items():
        stream = streams[source]
        blanks = reserved_blanks(
            objective, config.objective, length, stream.length / stream.documents
        )
        kinds.append(Kind(source, objective, rows, length - 2 * blanks, blanks))
    return tuple(kinds)


def _weights(config: Config, streams: Mapping[str, TokenStream]) -> dict[tuple[str, str], float]:
    """Relative shares of rows by source and objective; those without any are left out."""
    of_text = {name: weight for name, weight in config.objective.weights.items() if weight > 0}
    weights = {}
    for source, weight in source_weights(config.data, streams).items():
        objectives = {"instruction": 1.0} if streams[source].instructions else of_text
        for objective, share in objectives.items():
            weights[source, objective] = weight * share / sum(objectives.values())
    return weights


def source_weights(data: DataConfig, streams: Mapping[str, TokenStream]) -> dict[str, float]:
    """Relative shares of rows by source (`data.weighting`), of those that have any.

    `temperature` is the sampling of mT5 (arXiv 2010.11934): tokens to the power of 1 / temperature.
    """
    exponent = {"weight": 0.0, "tokens": 1.0, "temperature": 1 / data.temperature}[data.weighting]
    return {
        name: data.sources[name].weight * stream.length**exponent
        for name, stream in streams.items()
        if data.sources[name].weight > 0
    }


def _rows_in_cycle(weights: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], int]:
    """Rows of each kind in the shortest cycle that gives every kind its share, or a long one."""
    shares = np.array(list(weights.values())) / sum(weights.values())
    lengths = range(math.ceil((1 - _SHARE_ERROR) / shares.min()), _SHORT_CYCLE + 1)
    tried = (_rounded(shares, length) for length in lengths)
    short = (rows for rows in tried if _error(rows, shares) <= _SHARE_ERROR)
    rows = next(short, None) or _rounded(shares, MAX_CYCLE)
    for (source, objective), count, share in zip(weights, rows, shares, strict=True):
        if not count:
            raise UserError(
                f"config.data.sources.{source}: its {objective} rows are {share:.2g} of all; a "
                f"kind of row needs half of one in {MAX_CYCLE}"
            )
    divisor = math.gcd(*rows)
    return {kind: count // divisor for kind, count in zip(weights, rows, strict=True)}


def _error(rows: list[int], shares: np.ndarray) -> float:
    return float(np.max(np.abs(np.array(rows) / sum(rows) / shares - 1)))


def _rounded(shares: np.ndarray, length: int) -> list[int]:
    """Shares `length` rows by largest remainder."""
    exact = shares * length
    rows = np.floor(exact + 1e-9).astype(int)
    by_remainder = np.argsort(rows - exact, kind="stable")
    rows[by_remainder[: length - int(rows.sum())]] += 1
    return rows.tolist()


def _interleave(counts: list[int]) -> list[int]:
    """A cycle of sum(counts) entries in which kind c stands counts[c] times, evenly spread."""
    places = [
        ((rank + 0.5) / count, kind) for kind, count in enumerate(counts) for rank in range(count)
    ]
    return [kind for _, kind in sorted(places)]
