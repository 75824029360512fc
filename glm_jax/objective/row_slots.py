"""Where the pieces of rows lie in arrays that hold the rows one after the other with padding."""

import numpy as np

from glm_jax.objective.ragged import ranks, runs, sums_before


class RowSlots:
    """Rows of `length` slots: the pieces of each from its first slot on, then padding.

    Attributes:
      start: int64 [P], first slot of each piece, counted over all R rows.
      padding: int64 [..], the slots that no piece takes.
    """

    def __init__(self, row: np.ndarray, size: np.ndarray, length: int):
        """Lays out the rows.

        Args:
          row: int64 [P], the row of each piece, ascending; every row has a piece.
          size: int64 [P], slots that each piece takes.

        Raises:
          ValueError: the pieces of a row need more than `length` slots.
        """
        pieces = np.bincount(row)
        rows = np.arange(len(pieces))
        used = np.add.reduceat(size, np.cumsum(pieces) - pieces)
        if used.max() > length:
            raise ValueError(f"samples of {used.max()} slots do not fit a row of {length}")
        self._row, self._length, self._rows = row, length, len(rows)
        self.start = row * length + sums_before(size, row)
        self.padding = runs(rows * length + used, length - used)
        # Fields are constant along a piece, and along the padding behind the pieces of a row.
        self._of_pieces = np.arange(len(row)) + row
        self._sizes = np.empty(len(row) + len(rows), np.int64)
        self._sizes[self._of_pieces] = size
        self._sizes[np.cumsum(pieces) + rows] = length - used

    def fill(self, values: np.ndarray) -> np.ndarray:
        """`values` [P] along the pieces, 0 in padding: int32 [R * length]."""
        of_runs = np.zeros(len(self._sizes), np.int32)
        of_runs[self._of_pieces] = values
        return np.repeat(of_runs, self._sizes)

    def place(self, tokens: np.ndarray, pad: int) -> np.ndarray:
        """The tokens of the pieces [sum of sizes] in their slots, then `pad`: [R * length]."""
        if not len(self.padding):
            return tokens
        is_token = np.ones(self._rows * self._length, bool)
        is_token[self.padding] = False
        placed = np.full(len(is_token), pad, np.int32)
        placed[is_token] = tokens
        return placed

    def slots(self) -> np.ndarray:
        """The number of each slot in its row: int32 [R * length]."""
        return np.tile(np.arange(self._length, dtype=np.int32), self._rows)

    def in_row(self, slots: np.ndarray) -> np.ndarray:
        """Slots counted over all rows -> in a row, for a slot of every piece [P]."""
        return slots - self._row * self._length

    def numbers(self) -> np.ndarray:
        """Number of each piece in its row, from 1: int64 [P]."""
        return ranks(self._row) + 1
