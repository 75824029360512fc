"""What a checkpoint layout is: one row per parameter, read in both directions.

A row says where inside a tensor of theirs a parameter of ours lies, as a numpy view in our shape.
Import reads through the view and export writes through the same view, so the two directions cannot
disagree.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters

_NAMES_SHOWN = 10


class Dims(NamedTuple):
    """Sizes that say where the blocks of a fused tensor lie; per rank for tensor-parallel files."""

    heads: int
    kv_heads: int
    head_dim: int
    mlp: int

    def rows(self, axis: str) -> int:
        """Output rows of a projection onto "heads", "kv_heads" or "mlp"."""
        size = getattr(self, axis)
        return size if axis == "mlp" else size * self.head_dim


class Rule(Protocol):
    """How one parameter of ours, of shape `ours` (without the layer axis), lies in theirs."""

    def shape(self, ours: tuple[int, ...], dims: Dims) -> tuple[int, ...]:
        """Shape of the whole tensor of theirs."""

    def view(self, theirs: np.ndarray, ours: tuple[int, ...], dims: Dims) -> np.ndarray:
        """The part of a C-contiguous `theirs` that is our parameter: a view of shape `ours`."""


@dataclasses.dataclass(frozen=True)
class Same:
    """Embeddings and norms: the tensor is the parameter."""

    def shape(self, ours: tuple[int, ...], dims: Dims) -> tuple[int, ...]:
        return ours

    def view(self, theirs: np.ndarray, ours: tuple[int, ...], dims: Dims) -> np.ndarray:
        return theirs


@dataclasses.dataclass(frozen=True)
class Block:
    """One of several blocks of output rows, one after the other.

    Attributes:
      index: which block.
      axes: what each block projects onto, such as ("heads", "kv_heads", "kv_heads").
    """

    index: int
    axes: tuple[str, ...]

    def num_rows(self, dims: Dims) -> int:
        return sum(map(dims.rows, self.axes))

    def of(self, theirs: np.ndarray, outputs: tuple[int, ...], dims: Dims) -> np.ndarray:
        start = sum(map(dims.rows, self.axes[: self.index]))
        block = theirs[start : start + dims.rows(self.axes[self.index])]
        return block.reshape(*outputs, *theirs.shape[1:])


@dataclasses.dataclass(frozen=True)
class PerHead:
    """Query, key or value rows that alternate head by head: [q_0; k_0; v_0; q_1; ..]."""

    index: int

    def num_rows(self, dims: Dims) -> int:
        return 3 * dims.rows("heads")

    def of(self, theirs: np.ndarray, outputs: tuple[int, ...], dims: Dims) -> np.ndarray:
        heads, head_dim = outputs
        return theirs.reshape(heads, 3, head_dim, *theirs.shape[1:])[:, self.index]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A torch.nn.Linear: theirs is [rows, columns] = [out, in], ours is [*in, *out].

    A bias is a kernel without input axes: theirs is [out].

    Attributes:
      inputs: number of leading input axes of ours.
      fused: set when other parameters share the rows of the tensor.
    """

    inputs: int
    fused: Block | PerHead | None = None

    def shape(self, ours: tuple[int, ...], dims: Dims) -> tuple[int, ...]:
        outputs, inputs = math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs])
        rows = self.fused.num_rows(dims) if self.fused else outputs
        return (rows, inputs) if self.inputs else (rows,)

    def view(self, theirs: np.ndarray, ours: tuple[int, ...], dims: Dims) -> np.ndarray:
        inputs, outputs = ours[: self.inputs], ours[self.inputs :]
        theirs = theirs.reshape(theirs.shape[0], *inputs)
        if self.fused is None:
            block = theirs.reshape(*outputs, *inputs)
        else:
            block = self.fused.of(theirs, outputs, dims)
        return np.moveaxis(block, range(len(outputs)), range(-len(outputs), 0))


class Row(NamedTuple):
    """One parameter: our flattened name, their name ({i} is the layer), and how it lies there."""

    ours: str
    theirs: str
    rule: Rule

    @property
    def is_stacked(self) -> bool:
        return "{i}" in self.theirs


def projection(ours: str, theirs: str, inputs: int = 1, fused: Any = None) -> tuple[Row, Row]:
    """The kernel and the bias of a linear layer; a model without the bias leaves its row out."""
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", Linear(inputs, fused)),
        Row(f"{ours}/bias", f"{theirs}.bias", Linear(0, fused)),
    )


def norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """The scale and the bias of a norm; RMSNorm leaves the bias out."""
    return Row(f"{ours}/scale", f"{theirs}.weight", Same()), Row(
        f"{ours}/bias", f"{theirs}.bias", Same()
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of checkpoints.

    Attributes:
      name: what `--layout` calls it.
      rows: the table.
      read_config: their config.json (None if there is none) and the shapes of their tensors -> the
        model; raises UserError for what this program does not compute.
      write_config: the model -> what config.json says of its architecture.
      requires: field or property of ModelConfig -> the values that the family can hold.
      serves: the same for fields that the weights do not show: how the published code uses them.
      check_code: raises UserError for a model that the published code computes otherwise.
      prefix: optional prefix of their names, accepted on import and not written.
      ignored: suffixes of tensors that hold nothing learned.
      token_ids: key of config.json -> the field of SpecialTokens it holds.
    """

    name: str
    rows: tuple[Row, ...]
    read_config: Callable[[Mapping | None, Mapping[str, tuple[int, ...]]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    requires: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    serves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check_code: Callable[[ModelConfig], None] = lambda config: None
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    token_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def check_fits(self, config: ModelConfig) -> None:
        """Raises: UserError: the family cannot hold this model; the message says why."""
        for field, values in self.requires.items():
            value = getattr(config, field)
            if value not in values:
                allowed = " or ".join(map(repr, values))
                raise UserError(
                    f"layout {self.name} needs model.{field} = {allowed}, got {value!r}"
                )
        missing = parameters.shapes(config).keys() - {row.ours for row in self.rows}
        if missing:
            raise UserError(f"layout {self.name} has no place for {listed(missing)}")

    def tensor_shapes(self, config: ModelConfig, num_ranks: int = 1) -> dict[str, tuple[int, ...]]:
        """Their name -> shape of every tensor, in table order, layer by layer.

        Args:
          num_ranks: tensor-parallel files; the shapes are those of one of them.
        """
        shapes = parameters.rank_shapes(config, num_ranks)
        dims = rank_dims(config, num_ranks)
        rows = [row for row in self.rows if row.ours in shapes]
        result = {
            row.theirs: row.rule.shape(shapes[row.ours], dims) for row in rows if not row.is_stacked
        }
        for layer in range(config.num_layers):
            for row in rows:
                if row.is_stacked:
                    shape = row.rule.shape(shapes[row.ours][1:], dims)
                    result[row.theirs.format(i=layer)] = shape
        return result

    def tied_head(self, config: ModelConfig) -> list[str]:
        """Their name of the head that a model with tied embeddings need not store, or nothing."""
        return [r.theirs for r in self.rows if r.ours == "head/kernel" and config.tie_embeddings]

    def match(
        self, stored: Iterable[str], wanted: Iterable[str], optional: Iterable[str] = ()
    ) -> dict[str, str]:
        """Wanted name -> stored name; those of `optional` where they are stored.

        Raises:
          UserError: names are missing or left over; the message lists them.
        """
        found, unexpected = {}, []
        wanted, optional = set(wanted), set(optional)
        for name in stored:
            bare = name.removeprefix(self.prefix)
            if bare in wanted | optional and bare not in found:
                found[bare] = name
            elif not name.endswith(self.ignored):
                unexpected.append(name)
        problems = [
            f"{what} {listed(names)}"
            for what, names in (("missing", wanted - found.keys()), ("unexpected", unexpected))
            if names
        ]
        if problems:
            raise UserError(f"checkpoint is not layout {self.name}: {'; '.join(problems)}")
        return found


def rank_dims(config: ModelConfig, num_ranks: int = 1) -> Dims:
    """Sizes of one of `num_ranks` tensor-parallel parts of a model."""
    return Dims(
        config.num_heads // num_ranks,
        config.kv_heads // num_ranks,
        config.head_dim,
        config.mlp_dim // num_ranks,
    )


def listed(names: Iterable[str]) -> str:
    """The first few names, sorted, and how many more there are."""
    names = sorted(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
