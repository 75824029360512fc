"""Where parameters come from when they are written somewhere else: arrays, or files of a layout.

Everything is read a part at a time: one layer of one parameter, or the slice that a device holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters
from glm_jax.layouts.stored_tensors import StoredTensors
from glm_jax.layouts.table import Dims, Layout, Row, listed, rank_dims

Index = tuple[slice, ...]


class ParamSource(Protocol):
    """The parameters of a model, by flattened name."""

    @property
    def config(self) -> ModelConfig: ...

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        """Copies `parameter[index]` into `out`, in the dtype of `out`.

        Raises:
          UserError: a value is NaN or infinite, in the source or in that dtype.
        """

    def dtype(self, name: str) -> np.dtype:
        """In what dtype a parameter is kept."""


class ArraySource:
    """Parameters as arrays, in memory or read when they are asked for."""

    def __init__(self, config: ModelConfig, flat: Mapping[str, Any]):
        """Takes flattened name -> array; a mapping with `shape(name)` is not read for its shapes.

        Raises:
          UserError: these are not the parameters of `config`.
        """
        self.config, self._flat = config, flat
        _check_arrays(flat, config)

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        copy_finite(out, np.asarray(self._flat[name])[index], f"parameter {name}")

    def dtype(self, name: str) -> np.dtype:
        return tensor_dtype(self._flat, name)


class LayoutSource:
    """Parameters in the tensors of a published layout, whole or in tensor-parallel parts."""

    def __init__(
        self,
        layout: Layout,
        config: ModelConfig,
        ranks: Sequence[Mapping[str, np.ndarray]],
    ):
        """Checks names and shapes; no tensor is read.

        Args:
          ranks: the tensors of each tensor-parallel rank; one entry for a whole checkpoint.

        Raises:
          UserError: tensors are missing, left over or of the wrong shape.
        """
        layout.check_fits(config)
        self.config = config
        shapes, head = layout.tensor_shapes(config, len(ranks)), layout.tied_head(config)
        self._ranks = [_Rank(tensors, layout.match(tensors, shapes, head)) for tensors in ranks]
        for rank in self._ranks:
            rank.check_tensors(layout.name, shapes)
        self._parameters = parameters.table(config)
        self._rows = {row.ours: row for row in layout.rows}
        for rank in self._ranks:
            rank.check_tied(self._rows["token_embedding/embedding"].theirs, head)
        self._rank_shapes = parameters.rank_shapes(config, len(ranks))
        self._dims = rank_dims(config, len(ranks))

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        row = self._rows[name]
        if not row.is_stacked:
            self._read_layer(row, None, index, out)
            return
        for n, layer in enumerate(range(*index[0].indices(self.config.num_layers))):
            self._read_layer(row, layer, index[1:], out[n])

    def dtype(self, name: str) -> np.dtype:
        rank, theirs = self._ranks[0], self._rows[name].theirs.format(i=0)
        return rank.dtype(theirs)

    def disagreements(self) -> Iterator[str]:
        """Tensors that every rank should hold alike and that differ; the first rank's is read."""
        for row in self._rows.values() if len(self._ranks) > 1 else ():
            if (
                row.ours not in self._parameters
                or self._parameters[row.ours].split_axis is not None
            ):
                continue
            for layer in range(self.config.num_layers) if row.is_stacked else (0,):
                name = row.theirs.format(i=layer)
                first, *others = (rank.tensor(name) for rank in self._ranks)
                if any(not np.array_equal(first, other) for other in others):
                    yield name

    def _read_layer(self, row: Row, layer: int | None, index: Index, out: np.ndarray) -> None:
        stacked = layer is not None
        axis = self._parameters[row.ours].split_axis
        axis = None if axis is None else axis - stacked
        shape = self._rank_shapes[row.ours][stacked:]
        name = row.theirs.format(i=layer)
        if axis is None or len(self._ranks) == 1:
            parts = [(0, index, ())]
        else:
            parts = _overlaps(index, axis, shape[axis], len(self._ranks))
        for rank, here, there in parts:
            view = self._ranks[rank].view(row, name, shape, self._dims)
            copy_finite(out[there], view[here], self._ranks[rank].where(name))
            self._ranks[rank].release(name)


class _Rank(NamedTuple):
    """The tensors of one file, or of all files of a whole checkpoint."""

    tensors: Mapping[str, np.ndarray]
    stored: Mapping[str, str]  # name in the table -> name in the file

    def check_tensors(self, layout: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if isinstance(self.tensors, StoredTensors):
                self.tensors.check_floating(self.stored[name])
            found = tensor_shape(self.tensors, self.stored[name])
            if found != shape:
                raise UserError(
                    f"layout {layout}: tensor {self.stored[name]} has shape {found}, the config "
                    f"needs {shape}"
                )

    def check_tied(self, table: str, heads: Sequence[str]) -> None:
        for head in heads:
            if head in self.stored and not np.array_equal(self.tensor(head), self.tensor(table)):
                raise UserError(
                    f"{self.where(head)} differs from {table}, and the config ties them "
                    "(tie_word_embeddings)"
                )

    def where(self, name: str) -> str:
        """Tensor and file, for messages."""
        if isinstance(self.tensors, StoredTensors):
            stored = self.stored[name]
            return f"{self.tensors.file(stored)}: tensor {stored}"
        return f"tensor {name}"

    def tensor(self, name: str) -> np.ndarray:
        if isinstance(self.tensors, StoredTensors):
            return self.tensors.floating(self.stored[name])
        return self.tensors[self.stored[name]]

    def dtype(self, name: str) -> np.dtype:
        return tensor_dtype(self.tensors, self.stored[name])

    def release(self, name: str) -> None:
        if isinstance(self.tensors, StoredTensors):
            self.tensors.release(self.stored[name])

    def view(self, row: Row, name: str, shape: tuple[int, ...], dims: Dims) -> np.ndarray:
        return row.rule.view(self.tensor(name), shape, dims)


def tensor_shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it where it lies in a file."""
    stored = getattr(tensors, "shape", None)
    return tuple(stored(name)) if stored else tuple(tensors[name].shape)


def tensor_dtype(tensors: Mapping[str, Any], name: str) -> np.dtype:
    """The dtype of a tensor, without reading it where it lies in a file."""
    stored = getattr(tensors, "dtype", None)
    return np.dtype(stored(name) if stored else tensors[name].dtype)


def copy_finite(out: np.ndarray, values: np.ndarray, where: str) -> None:
    """Copies and casts.

    Args:
      where: what this is, for messages.

    Raises:
      UserError: a value that is not finite, or not in the dtype of `out`.
    """
    with np.errstate(over="ignore"):
        out[...] = values
    if np.isfinite(out).all():
        return
    if np.isfinite(values).all():
        largest = np.abs(values).max()
        raise UserError(f"{where}: {largest:.3g} is beyond {out.dtype.name}")
    raise UserError(f"{where} holds NaN or infinite values")


def _overlaps(
    index: Index, axis: int, part: int, num_ranks: int
) -> Iterator[tuple[int, Index, Index]]:
    """For each rank whose part `index` touches: where in its part, and where in the result."""
    wanted = range(*index[axis].indices(part * num_ranks))
    for rank in range(num_ranks):
        first, last = max(wanted.start, rank * part), min(wanted.stop, (rank + 1) * part)
        if first < last:
            here = slice(first - rank * part, last - rank * part)
            there = slice(first - wanted.start, last - wanted.start)
            rest = (slice(None),) * axis
            yield rank, (*index[:axis], here, *index[axis + 1 :]), (*rest, there)


def _check_arrays(flat: Mapping[str, Any], config: ModelConfig) -> None:
    shapes = parameters.shapes(config)
    different = shapes.keys() ^ flat.keys()
    if different:
        raise UserError(f"parameters do not match the config: {listed(different)}")
    for name, shape in shapes.items():
        if tensor_shape(flat, name) != shape:
            raise UserError(
                f"parameter {name} has shape {tensor_shape(flat, name)}, the config needs {shape}"
            )
