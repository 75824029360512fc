"""Checkpoint layouts: parameters of ours to and from the tensors of published models."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import chatglm, glm_2021, glm_jax, parameters, table
from glm_jax.layouts.io import TensorFiles

LAYOUTS = {layout.name: layout for layout in (glm_2021.LAYOUT, chatglm.LAYOUT, glm_jax.LAYOUT)}


def load_params(
    layout: str, tensors: Mapping[str, np.ndarray] | str | Path, model_config: ModelConfig
) -> dict[str, Any]:
    """Reads a checkpoint of a published layout as our parameters.

    Args:
      layout: a name from LAYOUTS.
      tensors: name -> array, or the path of a .safetensors file or of a folder of them.
      model_config: the model the tensors belong to; nothing is guessed from the file.

    Returns:
      Nested dict of arrays of dtype `model_config.param_dtype`.

    Raises:
      UserError: unknown layout; tensors missing, left over or of the wrong shape.
    """
    if not isinstance(tensors, Mapping):
        tensors = TensorFiles(tensors)
    return parameters.unflatten(table.to_ours(_layout(layout), tensors, model_config))


def export_tensors(
    layout: str, params: Mapping[str, Any], model_config: ModelConfig, dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (their name, array) for our parameters (nested dict), one tensor at a time.

    Args:
      dtype: numpy dtype to cast to; None keeps that of the parameters.

    Raises:
      UserError: unknown layout, a model the layout cannot hold, or parameters that are not those
        of `model_config`.
    """
    dtype = None if dtype is None else np.dtype(dtype)
    return table.to_theirs(_layout(layout), parameters.flatten(params), model_config, dtype)


def tensor_shapes(layout: str, model_config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Their name -> shape, in the order of `export_tensors`, without any weights."""
    slots = _layout(layout).tensors(model_config)
    return {name: table.their_shape(slots[name]) for name in slots}


def _layout(name: str) -> table.Layout:
    if name not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]
