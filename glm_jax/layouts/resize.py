"""Other vocabulary or position rows; nothing else about a model can change."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from glm_jax.errors import UserError
from glm_jax.layouts import parameters
from glm_jax.layouts.sources import Index, ParamSource

_VOCABULARY_TABLES = ("token_embedding/embedding", "head/kernel")
_POSITION_TABLES = ("position_embedding/embedding", "block_position_embedding/embedding")


class Resized:
    """The parameters of another model with more rows, or fewer vocabulary rows.

    New rows are drawn from N(0, init_std), as in a fresh model, and depend on their number alone.
    """

    def __init__(
        self,
        source: ParamSource,
        *,
        vocab_size: int = 0,
        max_positions: int = 0,
        copy_rows: Sequence[str] = (),
    ):
        """Either size may be 0: it stays.

        Args:
          copy_rows: "FROM:TO", vocabulary rows that take the values of others. The published
            conversion of GLM-10B-Chinese copies 50007 to 50009, its [gMASK] on the hub.

        Raises:
          UserError: the model has no learned positions, or more of them than asked for; a row that
            is not there.
        """
        old = source.config
        if max_positions and old.position != "learned_2d":
            raise UserError(f"a model with {old.position} positions has no tables to extend")
        if 0 < max_positions < old.max_positions:
            raise UserError(
                f"the position tables hold {old.max_positions} positions and cannot be cut to "
                f"{max_positions}"
            )
        self._source = source
        self.config = dataclasses.replace(
            old,
            vocab_size=vocab_size or old.vocab_size,
            max_positions=max_positions or old.max_positions,
        )
        self._copies = [
            _parse_copy(text, old.vocab_size, self.config.vocab_size) for text in copy_rows
        ]
        self._old = parameters.shapes(old)
        self._new = parameters.shapes(self.config)

    def describe(self) -> list[str]:
        """What is added and dropped, in words."""
        lines = []
        for name, shape in self._new.items():
            axis = _resized_axis(name)
            if axis is not None and shape[axis] != self._old[name][axis]:
                change = shape[axis] - self._old[name][axis]
                what = f"{change} new rows" if change > 0 else f"the last {-change} rows dropped"
                lines.append(f"{name}: {what} ({self._old[name][axis]} -> {shape[axis]})")
        return lines + [f"vocabulary row {a} copied to {b}" for a, b in self._copies]

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        axis = _resized_axis(name)
        if axis is None:
            self._source.read(name, index, out)
            return
        rows = range(*index[axis].indices(self._new[name][axis]))
        num_old = max(0, min(rows.stop, self._old[name][axis]) - rows.start)
        before, after = index[:axis], index[axis + 1 :]
        by_row = np.moveaxis(out, axis, 0)

        def read_old(first: int, target: np.ndarray) -> None:
            old = slice(first, first + len(target))
            self._source.read(name, (*before, old, *after), np.moveaxis(target, 0, axis))

        if num_old:
            read_old(rows.start, by_row[:num_old])
        for row, target in zip(rows[num_old:], by_row[num_old:], strict=True):
            target[...] = self._fresh_row(name, row)[after or before]
        for source, copy in self._copies if name in _VOCABULARY_TABLES else ():
            if copy in rows:
                read_old(source, by_row[copy - rows.start : copy - rows.start + 1])

    def dtype(self, name: str) -> np.dtype:
        return self._source.dtype(name)

    def _fresh_row(self, name: str, row: int) -> np.ndarray:
        rng = np.random.default_rng([zlib.crc32(name.encode()), row])
        return rng.normal(scale=self.config.init_std, size=self.config.hidden_dim)


def _resized_axis(name: str) -> int | None:
    if name == "head/kernel":
        return 1
    return 0 if name in (*_VOCABULARY_TABLES, *_POSITION_TABLES) else None


def _parse_copy(text: str, num_old: int, num_new: int) -> tuple[int, int]:
    source, colon, copy = text.partition(":")
    if not (colon and source.isdecimal() and copy.isdecimal()):
        raise UserError(f"a copied vocabulary row is FROM:TO, such as 50007:50009, got {text!r}")
    if int(source) >= num_old or int(copy) >= num_new:
        raise UserError(f"no vocabulary row to copy {text}: there are {num_old}, then {num_new}")
    return int(source), int(copy)
