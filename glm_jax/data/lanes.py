"""The rows of one source in one stage, by rank, and the tokens that each takes from the stream.

A row's place in the stream is arithmetic over the rows before it, so nothing is stored: `taken` of
a rank is how many tokens all earlier rows of the source took.
"""

import itertools
from typing import NamedTuple

import numpy as np

from glm_jax.data.packing import Part, pack_documents
from glm_jax.data.sources import TokenStream
from glm_jax.objective import instruction
from glm_jax.tokenizer import SpecialTokens

_CACHED_GROUPS = 2  # rows come one after the other, but for where a shuffled run of them ends
_LEAST_FILL, _FILL_STEP = 0.3, 0.02
_READ_ON = 1024  # tokens at a time, for the end of an example


class Window(NamedTuple):
    """What a row is built from.

    Attributes:
      tokens: int32 [S].
      ends: int64, one past the last token of each piece that does not end in an eos; or empty.
      offset: place in the stream of the first token.
    """

    tokens: np.ndarray
    ends: np.ndarray
    offset: int


class WindowLane:
    """Rows that are windows of the stream, one after the other."""

    def __init__(self, stream: TokenStream, start: int, places: np.ndarray, rooms: np.ndarray):
        """Lays out the rows.

        Args:
          start: tokens of the stream that earlier stages took.
          places: int64 [R], the source's places in a cycle, ascending.
          rooms: int64 [R], stream tokens that the row at each of these places has room for.
        """
        self.stream = stream
        self._start = start
        self._places = places
        self._room_before = np.concatenate(([0], np.cumsum(rooms)))

    def rank(self, cycle: int, place: int) -> int:
        """How many rows of the source come before a place of a cycle."""
        return cycle * len(self._places) + int(np.searchsorted(self._places, place))

    def taken(self, rank: int) -> int:
        """Tokens that the first `rank` rows take."""
        return self._room(rank)

    def rows_to_take(self, tokens: int) -> tuple[int, int]:
        """Cycle and place of the row with which at least `tokens` have been taken."""
        low, high = 0, 1
        while self.taken(high) < tokens:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.taken(middle) < tokens else (low, middle)
        cycle, place = divmod(low, len(self._places))
        return cycle, int(self._places[place])

    def read(self, rank: int) -> Window:
        """The tokens of a row.

        Raises:
          UserError: the source cannot be read.
        """
        begin, end = self.taken(rank), self.taken(rank + 1)
        offset = self._start + begin
        return Window(self.stream.read(offset, end - begin), np.zeros(0, np.int64), offset)

    def _room(self, rank: int) -> int:
        cycle, rest = divmod(rank, len(self._places))
        return cycle * int(self._room_before[-1]) + int(self._room_before[rest])


class PackedLane(WindowLane):
    """Rows that hold whole documents of a common window of the stream."""

    _may_cut = True

    def __init__(
        self,
        stream: TokenStream,
        start: int,
        places: np.ndarray,
        rooms: np.ndarray,
        *,
        rows_together: int,
        fill: float,
        num_rows: int | None,
        special: SpecialTokens,
    ):
        """Lays out groups of rows.

        Args:
          rows_together: rows of a group.
          fill: share of their room that is taken from the stream.
          num_rows: rows of the source in the stage, where it has an end.
        """
        super().__init__(stream, start, places, rooms)
        self._rows_together, self._fill, self.num_rows = rows_together, fill, num_rows
        self._special = special
        self._groups: dict[int, _Group] = {}

    def taken(self, rank: int) -> int:
        """Tokens that the groups of the first `rank` rows take, in proportion to the rows."""
        return int(self._fill * self._room(rank))

    def read(self, rank: int) -> Window:
        """The documents of a row, one after the other; see `WindowLane.read`."""
        number, row = divmod(rank, self._rows_together)
        group = self._group(number)
        parts = group.rows[row]
        tokens = [self._tokens_of(group, part) for part in parts]
        tokens = [piece for piece in tokens if len(piece)]
        if not tokens:
            return Window(np.zeros(0, np.int32), np.zeros(0, np.int64), group.offset)
        ends = np.cumsum([len(piece) for piece in tokens])
        offset = group.offset + int(group.starts[parts[0].document]) + parts[0].start
        return Window(np.concatenate(tokens), ends, offset)

    def whole_share(self) -> float:
        """Share of the documents of the first group that are whole in their row; 1 without any."""
        group = self._group(0)
        if not len(group.starts):
            return 1.0
        sizes = np.diff(np.append(group.starts, len(group.tokens)))
        is_in_one_row = np.zeros_like(group.is_whole)
        for part in itertools.chain(*group.rows):
            is_in_one_row[part.document] = part.size == sizes[part.document]
        return float((is_in_one_row & group.is_whole).mean())

    def _tokens_of(self, group: "_Group", part: Part) -> np.ndarray:
        start = group.starts[part.document] + part.start
        return group.tokens[start : start + part.size]

    def _group(self, number: int) -> "_Group":
        group = self._groups.get(number)
        if group is None:
            group = self._pack(number)
            # Another thread may read as well: the kept ones are replaced, never changed.
            kept = [*self._groups.items()][-_CACHED_GROUPS + 1 :]
            self._groups = dict([*kept, (number, group)])
        return group

    def _pack(self, number: int) -> "_Group":
        first = number * self._rows_together
        end = first + self._rows_together
        if self.num_rows is not None:
            end = min(end, self.num_rows)
        text = self._read_text(self._start + self.taken(first), self._start + self.taken(end))
        sizes = np.diff(np.append(text.starts, len(text.tokens)))
        rooms = [self._room(rank + 1) - self._room(rank) for rank in range(first, end)]
        rows = pack_documents(sizes, rooms, may_cut=self._may_cut)
        return _Group(*text, rows=_mixed(rows, rooms, text.offset))

    def _read_text(self, begin: int, end: int) -> "_Text":
        """The documents in a range of the stream; what reaches beyond its ends is cut."""
        tokens = self.stream.read(begin, end - begin)
        starts = np.append(0, np.flatnonzero(tokens[:-1] == self._special.eos) + 1)
        is_whole = np.ones(len(starts), bool)
        is_whole[0] = begin % self.stream.length == 0
        is_whole[-1] &= tokens[-1] == self._special.eos
        return _Text(begin, tokens, starts, is_whole)


class ExampleLane(PackedLane):
    """Rows of whole prompts with their answers, none of which is cut in two.

    An example belongs to the window of the stream that it begins in. Windows are as large as the
    first examples of the stream show that rows have room for. One that is longer than a row, or for
    which there is no room, is shortened (`instruction.shorten`).
    """

    _may_cut = False

    def __init__(self, *args, fill: float, **options):
        """As for `PackedLane`; `fill` is the most that is taken."""
        super().__init__(*args, fill=fill, **options)
        rooms = np.full(self._rows_together, self._room(1))
        examples = self._read_text(0, min(int(rooms.sum()), self.stream.length))
        sizes = np.minimum(np.diff(np.append(examples.starts, len(examples.tokens))), rooms[0])
        before = np.cumsum(sizes) / rooms.sum()
        while self._fill > _LEAST_FILL and not _all_fit(sizes[before <= self._fill], rooms):
            self._fill -= _FILL_STEP
        if self._fill < fill:
            self._fill -= _FILL_STEP  # for windows that fit less well than the first

    def _tokens_of(self, group: "_Group", part: Part) -> np.ndarray:
        end = np.append(group.starts, len(group.tokens))[part.document + 1]
        example = group.tokens[group.starts[part.document] : end]
        return instruction.shorten(example, part.size, self._special)

    def _read_text(self, begin: int, end: int) -> "_Text":
        before = self.stream.length - 1 if begin == 0 else begin - 1
        tokens = self.stream.read(before, end - begin + 1)
        while tokens[-1] != self._special.eos:
            more = self.stream.read(before + len(tokens), _READ_ON)
            stop = np.flatnonzero(more == self._special.eos)[:1] + 1
            tokens = np.concatenate((tokens, more[: stop[0]] if len(stop) else more))
        ends = np.flatnonzero(tokens == self._special.eos) + 1
        skipped, text = int(ends[0]), tokens[ends[0] :]
        starts = ends[:-1] - skipped
        return _Text(before + skipped, text, starts, np.ones(len(starts), bool))


def _all_fit(sizes: np.ndarray, rooms: np.ndarray) -> bool:
    rows = pack_documents(sizes, rooms.tolist(), may_cut=False)
    return sum(part.size for row in rows for part in row) == sizes.sum()


def _mixed(rows: list[list[Part]], rooms: list[int], key: int) -> list[list[Part]]:
    """The rows of each room in random order: packing sorts them by the length of documents."""
    mixed = list(rows)
    rng = np.random.default_rng(key)
    for room in sorted(set(rooms)):
        places = [place for place, other in enumerate(rooms) if other == room]
        for place, taken in zip(places, rng.permutation(places), strict=True):
            mixed[place] = rows[taken]
    return mixed


class _Text(NamedTuple):
    """Documents in stream order.

    Attributes:
      offset: place in the stream of the first token.
      tokens: int32 [N].
      starts: int64 [D], where each document starts.
      is_whole: bool [D], whether it does so, and ends, in this text.
    """

    offset: int
    tokens: np.ndarray
    starts: np.ndarray
    is_whole: np.ndarray


class _Group(NamedTuple):
    """The documents of a group, and which parts of them each row holds."""

    offset: int
    tokens: np.ndarray
    starts: np.ndarray
    is_whole: np.ndarray
    rows: list[list[Part]]
