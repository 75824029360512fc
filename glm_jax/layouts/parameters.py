"""Names and shapes of our parameters, the left-hand side of every table in this package."""

from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig

STACKED = "layers/"
"""Parameters under this prefix have a leading axis of `num_layers`."""


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Flattened name -> shape of every parameter of a model, in the order of the forward pass."""
    depth, width, mlp = config.num_layers, config.hidden_dim, config.mlp_dim
    heads, head_dim = config.num_heads, config.head_dim
    positions = config.max_positions + 1
    result = {"token_embedding/embedding": (config.vocab_size, width)}
    if config.position == "learned_2d":
        result["position_embedding/embedding"] = (positions, width)
        result["block_position_embedding/embedding"] = (positions, width)
    result["layers/attention_norm/scale"] = (depth, width)
    result["layers/attention_norm/bias"] = (depth, width)
    for name in ("query", "key", "value"):
        result[f"layers/attention/{name}/kernel"] = (depth, width, heads, head_dim)
        result[f"layers/attention/{name}/bias"] = (depth, heads, head_dim)
    result["layers/attention/out/kernel"] = (depth, heads, head_dim, width)
    result["layers/attention/out/bias"] = (depth, width)
    result["layers/mlp_norm/scale"] = (depth, width)
    result["layers/mlp_norm/bias"] = (depth, width)
    result["layers/mlp/up/kernel"] = (depth, width, mlp)
    result["layers/mlp/up/bias"] = (depth, mlp)
    result["layers/mlp/down/kernel"] = (depth, mlp, width)
    result["layers/mlp/down/bias"] = (depth, width)
    result["final_norm/scale"] = (width,)
    result["final_norm/bias"] = (width,)
    if not config.tie_embeddings:
        result["head/kernel"] = (width, config.vocab_size)
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
