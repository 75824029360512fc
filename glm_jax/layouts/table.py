"""What a checkpoint layout is: one row per parameter, read in both directions.

A row says where inside a tensor of theirs a parameter of ours lies, as a numpy view in our shape.
Import reads through the view and export writes through the same view, so the two directions cannot
disagree.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters

_NAMES_SHOWN = 10


class Rule(Protocol):
    """How one parameter of ours, of shape `ours` (without the layer axis), lies in theirs."""

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the whole tensor of theirs."""

    def view(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        """The part of a C-contiguous `theirs` that is our parameter: a view of shape `ours`."""


@dataclasses.dataclass(frozen=True)
class Same:
    """Embeddings and norms: the tensor is the parameter."""

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        return ours

    def view(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        return theirs


@dataclasses.dataclass(frozen=True)
class Fused:
    """One of several equal blocks that share the output rows of a linear layer.

    Attributes:
      index: which block.
      axis: where the block axis stands among the output axes: 0 for blocks one after the other
        ([Q; K; V]), 1 for blocks interleaved within each head ([q_0; k_0; v_0; q_1; ...]).
      blocks: how many.
    """

    index: int
    axis: int
    blocks: int = 3


@dataclasses.dataclass(frozen=True)
class Linear:
    """A torch.nn.Linear: theirs is [rows, columns] = [out, in], ours is [*in, *out].

    A bias is a kernel without input axes: theirs is [out].

    Attributes:
      inputs: number of leading input axes of ours.
      fused: set when other parameters share the rows of the tensor.
    """

    inputs: int
    fused: Fused | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        blocks = self.fused.blocks if self.fused else 1
        rows = blocks * math.prod(ours[self.inputs :])
        return (rows, math.prod(ours[: self.inputs])) if self.inputs else (rows,)

    def view(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        inputs, outputs = ours[: self.inputs], ours[self.inputs :]
        if self.fused is None:
            block = theirs.reshape(*outputs, *inputs)
        else:
            axis = self.fused.axis
            split = (*outputs[:axis], self.fused.blocks, *outputs[axis:])
            block = theirs.reshape(*split, *inputs)[(slice(None),) * axis + (self.fused.index,)]
        return np.moveaxis(block, range(len(outputs)), range(-len(outputs), 0))


class Row(NamedTuple):
    """One parameter: our flattened name, their name ({i} is the layer), and how it lies there."""

    ours: str
    theirs: str
    rule: Rule


class Slot(NamedTuple):
    """A row applied to one layer of one model."""

    ours: str
    layer: int | None
    shape: tuple[int, ...]  # of ours, without the layer axis
    rule: Rule

    def of(self, array: np.ndarray) -> np.ndarray:
        """This slot's part of our (stacked) array."""
        return array if self.layer is None else array[self.layer]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of checkpoints.

    Attributes:
      name: what `--layout` calls it.
      rows: the table.
      requires: fields of ModelConfig that the family fixes.
      prefix: optional prefix of their names, accepted on import and not written.
      ignored: suffixes of tensors that hold nothing learned.
    """

    name: str
    rows: tuple[Row, ...]
    requires: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    ignored: tuple[str, ...] = ()

    def tensors(self, config: ModelConfig) -> dict[str, list[Slot]]:
        """Their name -> the slots of ours in it, for every tensor of a model, in table order.

        Raises:
          UserError: the family cannot hold this model.
        """
        self._check_fits(config)
        shapes = parameters.shapes(config)
        missing = shapes.keys() - {row.ours for row in self.rows}
        if missing:
            raise UserError(f"layout {self.name} has no place for {_listed(sorted(missing))}")
        single = [row for row in self.rows if row.ours in shapes and "{i}" not in row.theirs]
        stacked = [row for row in self.rows if row.ours in shapes and "{i}" in row.theirs]
        result: dict[str, list[Slot]] = {}
        for row in single:
            slot = Slot(row.ours, None, shapes[row.ours], row.rule)
            result.setdefault(row.theirs, []).append(slot)
        for layer in range(config.num_layers):
            for row in stacked:
                slot = Slot(row.ours, layer, shapes[row.ours][1:], row.rule)
                result.setdefault(row.theirs.format(i=layer), []).append(slot)
        return result

    def _check_fits(self, config: ModelConfig) -> None:
        for field, value in self.requires.items():
            if getattr(config, field) != value:
                raise UserError(
                    f"layout {self.name} needs model.{field} = {value!r}, "
                    f"got {getattr(config, field)!r}"
                )


def their_shape(slots: list[Slot]) -> tuple[int, ...]:
    """Shape of the tensor of theirs that holds `slots`."""
    return slots[0].rule.shape(slots[0].shape)


def to_ours(
    layout: Layout, tensors: Mapping[str, np.ndarray], config: ModelConfig
) -> dict[str, np.ndarray]:
    """Reads a checkpoint of `layout`, one tensor at a time.

    Returns:
      Flattened name -> array of dtype `config.param_dtype`; per-layer parameters are stacked.

    Raises:
      UserError: tensors are missing, left over or of the wrong shape, or the family cannot hold
        this model.
    """
    wanted = layout.tensors(config)
    stored = _match_names(layout, tensors, wanted)
    dtype = np.dtype(config.param_dtype)
    ours = {name: np.empty(shape, dtype) for name, shape in parameters.shapes(config).items()}
    for name, slots in wanted.items():
        theirs = tensors[stored[name]]
        if theirs.shape != their_shape(slots):
            raise UserError(
                f"layout {layout.name}: tensor {stored[name]} has shape {theirs.shape}, "
                f"the model needs {their_shape(slots)}"
            )
        for slot in slots:
            slot.of(ours[slot.ours])[...] = slot.rule.view(theirs, slot.shape)
    return ours


def to_theirs(
    layout: Layout, ours: Mapping[str, np.ndarray], config: ModelConfig, dtype: np.dtype | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a checkpoint of `layout`, one at a time, in table order.

    Args:
      ours: flattened name -> array, per-layer parameters stacked.
      dtype: what to cast to; None keeps the dtype of our parameters.

    Raises:
      UserError: parameters are missing, left over or of the wrong shape, or the family cannot
        hold this model.
    """
    wanted = layout.tensors(config)
    _check_ours(ours, config)
    for name, slots in wanted.items():
        theirs = np.empty(their_shape(slots), dtype or ours[slots[0].ours].dtype)
        for slot in slots:
            slot.rule.view(theirs, slot.shape)[...] = slot.of(ours[slot.ours])
        yield name, theirs


def _match_names(layout: Layout, stored: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Wanted name -> stored name."""
    found, unexpected = {}, []
    wanted = set(wanted)
    for name in stored:
        bare = name.removeprefix(layout.prefix)
        if bare in wanted and bare not in found:
            found[bare] = name
        elif not name.endswith(layout.ignored):
            unexpected.append(name)
    missing = sorted(wanted - found.keys())
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", sorted(unexpected)))
        if names
    ]
    if problems:
        raise UserError(f"checkpoint is not layout {layout.name}: {'; '.join(problems)}")
    return found


def _check_ours(ours: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    shapes = parameters.shapes(config)
    different = sorted(shapes.keys() ^ ours.keys())
    if different:
        raise UserError(f"parameters do not match the config: {_listed(different)}")
    for name, shape in shapes.items():
        if tuple(ours[name].shape) != shape:
            raise UserError(
                f"parameter {name} has shape {tuple(ours[name].shape)}, the config needs {shape}"
            )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
