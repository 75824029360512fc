"""Names, shapes and parallel axes of our parameters: the left-hand side of every table here."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.model.glm import abstract_params

STACKED = "layers/"
"""Parameters under this prefix have a leading axis of `num_layers`."""

_SPLIT_AXES = ("heads", "kv_heads", "mlp", "vocab")
"""What tensor-parallel checkpoints divide among their ranks; no parameter has two of them."""


class Parameter(NamedTuple):
    """Shape of a parameter, and which of its axes tensor parallelism divides (None: none)."""

    shape: tuple[int, ...]
    split_axis: int | None


@functools.cache
def table(config: ModelConfig) -> dict[str, Parameter]:
    """Flattened name -> every parameter of a model."""
    shapes, axes = map(flatten, abstract_params(config))
    return {name: Parameter(leaf.shape, _split_axis(axes[name])) for name, leaf in shapes.items()}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Flattened name -> shape of every parameter of a model."""
    return {name: parameter.shape for name, parameter in table(config).items()}


def rank_shapes(config: ModelConfig, num_ranks: int) -> dict[str, tuple[int, ...]]:
    """Flattened name -> shape of the part of one of `num_ranks` tensor-parallel ranks.

    Raises:
      UserError: a size that does not divide.
    """
    result = {}
    for name, (shape, axis) in table(config).items():
        if axis is not None and num_ranks > 1:
            if shape[axis] % num_ranks:
                raise UserError(f"{name} {shape} does not divide over {num_ranks} ranks")
            shape = (*shape[:axis], shape[axis] // num_ranks, *shape[axis + 1 :])
        result[name] = shape
    return result


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': x}} -> {'a/b': x}."""
    result = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}/")
        else:
            result[f"{prefix}{key}"] = value
    return result


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _split_axis(axes: tuple[str, ...]) -> int | None:
    return next((i for i, axis in enumerate(axes) if axis in _SPLIT_AXES), None)
