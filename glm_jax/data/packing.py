"""Whole documents into rows: best fit, decreasing, over a group of rows."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """Some tokens of a document, or all of it.

    Attributes:
      document: its number among those that were packed.
      start: first token of the part.
      size: tokens of the part.
    """

    document: int
    start: int
    size: int


def pack_documents(
    sizes: np.ndarray, rooms: Sequence[int], *, may_cut: bool = True
) -> list[list[Part]]:
    """Which parts of which documents each row holds, in the order of the documents.

    A document longer than a row fills rows of its own and leaves a rest. The longest rests and
    documents go into a row each, so that what room is not needed is spread over the rows; the
    others go, longest first, where they leave the least room. One that fits nowhere is cut into
    what room there is, so that no token is lost as long as the rows have room for all.

    Args:
      sizes: int64 [D], tokens of each document.
      rooms: tokens that each row can hold.
      may_cut: False: a document lies in one row. Where no row has room for it, its part is as long
        as the largest room left; where none is left at all, it is left out.
    """
    rows: list[list[Part]] = [[] for _ in rooms]
    free = _FreeRooms(rooms)
    wholes = [Part(document, 0, size) for document, size in enumerate(sizes.tolist())]
    if may_cut:
        wholes = [_fill_rows(part, free, rows) for part in wholes]
    wholes.sort(key=lambda part: -part.size)
    left = []
    for part in wholes:
        is_in = _open_row(part, free, rows) or _best_fit(part, free, rows)
        if part.size and not is_in:
            left.append(part)
    for part in left:
        while part.size and free.largest:
            part = _take(part, free, rows)
            if not may_cut:
                break
    return [sorted(row) for row in rows]


class _FreeRooms:
    """Rows by the room they have left."""

    def __init__(self, rooms: Sequence[int]):
        self._sorted = sorted((room, row) for row, room in enumerate(rooms))

    @property
    def largest(self) -> int:
        return self._sorted[-1][0]

    @property
    def emptiest(self) -> int:
        """The row with the most room."""
        return self._sorted[-1][1]

    def take_largest(self, most: int) -> tuple[int, int]:
        """Takes up to `most` tokens of the row with the most room: row, tokens."""
        room, row = self._sorted.pop()
        size = min(room, most)
        bisect.insort(self._sorted, (room - size, row))
        return row, size

    def take_tightest(self, size: int) -> int | None:
        """Takes `size` tokens of the row with the least room that has them."""
        place = bisect.bisect_left(self._sorted, (size, -1))
        if place == len(self._sorted):
            return None
        room, row = self._sorted.pop(place)
        bisect.insort(self._sorted, (room - size, row))
        return row


def _fill_rows(part: Part, free: _FreeRooms, rows: list[list[Part]]) -> Part:
    """Fills the emptiest rows with a document as long as it is longer than them; its rest."""
    while part.size > free.largest > 0:
        part = _take(part, free, rows)
    return part


def _take(part: Part, free: _FreeRooms, rows: list[list[Part]]) -> Part:
    row, size = free.take_largest(part.size)
    rows[row].append(part._replace(size=size))
    return part._replace(start=part.start + size, size=part.size - size)


def _open_row(part: Part, free: _FreeRooms, rows: list[list[Part]]) -> bool:
    """Puts a part into the largest row, if that is still empty and large enough."""
    if not part.size or part.size > free.largest or rows[free.emptiest]:
        return False
    _take(part, free, rows)
    return True


def _best_fit(part: Part, free: _FreeRooms, rows: list[list[Part]]) -> bool:
    row = free.take_tightest(part.size)
    if row is None:
        return False
    rows[row].append(part)
    return True
