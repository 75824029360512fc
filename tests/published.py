"""The files of numbers that published code computed, as the tests read them."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors and the published config of a file."""
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


def part(tensors: dict, prefix: str) -> dict:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def mlp_dim(config: dict) -> int:
    inner = config.get("inner_hidden_size", config.get("ffn_hidden_size"))
    return inner or 4 * config["hidden_size"]


def model_rows(tensors: dict) -> tuple:
    """Tokens, both positions and ranges: a bidirectional part, causal from there."""
    tokens, ids = tensors["input_ids"], tensors.get("position_ids")
    end = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32) + 1, tokens.shape)
    if "sep" in tensors:
        end = np.maximum(tensors["sep"][:, None], end).astype(np.int32)
    position = end - 1 if ids is None else ids if ids.ndim == 2 else ids[:, 0]
    block_position = ids[:, 1] if ids is not None and ids.ndim == 3 else np.zeros_like(position)
    return tokens, position, block_position, np.zeros_like(end), end
