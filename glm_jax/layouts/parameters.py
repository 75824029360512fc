"""Names and shapes of our parameters, the left-hand side of every table in this package."""

from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.model.glm import abstract_params

STACKED = "layers/"
"""Parameters under this prefix have a leading axis of `num_layers`."""


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Flattened name -> shape of every parameter of a model."""
    return {name: leaf.shape for name, leaf in flatten(abstract_params(config)[0]).items()}


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
