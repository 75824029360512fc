"""Checkpoint layouts: parameters of ours to and from the tensors of published models."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.layouts import parameters
from glm_jax.layouts.families import LAYOUTS, find_layout
from glm_jax.layouts.sources import ArraySource, LayoutSource, ParamSource
from glm_jax.layouts.table import Layout, rank_dims
from glm_jax.layouts.tensor_writer import TensorWriter

__all__ = ["LAYOUTS", "export_tensors", "find_layout", "load_params", "write_weights"]


def load_params(
    layout: str, tensors: Mapping[str, np.ndarray], model_config: ModelConfig
) -> dict[str, Any]:
    """Reads a whole checkpoint of a published layout as our parameters.

    Args:
      layout: a name from LAYOUTS.
      tensors: name -> array.
      model_config: the model the tensors belong to; nothing is guessed from them.

    Returns:
      Nested dict of arrays of dtype `model_config.param_dtype`.

    Raises:
      UserError: unknown layout; tensors missing, left over, of the wrong shape or not finite.
    """
    return read_all(LayoutSource(find_layout(layout), model_config, [tensors]))


def read_all(source: ParamSource) -> dict[str, Any]:
    """All parameters of a source, as a nested dict of arrays of its config's `param_dtype`."""
    flat = {}
    for name, shape in parameters.shapes(source.config).items():
        flat[name] = np.empty(shape, np.dtype(source.config.param_dtype))
        source.read(name, (slice(None),) * len(shape), flat[name])
    return parameters.unflatten(flat)


def export_tensors(
    layout: str, params: Mapping[str, Any], model_config: ModelConfig, dtype: Any = None
) -> dict[str, np.ndarray]:
    """Their name -> array for our parameters (nested dict), all in memory.

    Args:
      dtype: numpy dtype to cast to; None keeps that of the parameters.

    Raises:
      UserError: unknown layout, a model the layout cannot hold, or parameters that are not those
        of `model_config`.
    """
    found, source = find_layout(layout), ArraySource(model_config, parameters.flatten(params))
    found.check_fits(model_config)
    dtype = np.dtype(dtype or source.dtype("token_embedding/embedding"))
    tensors = {k: np.empty(s, dtype) for k, s in found.tensor_shapes(model_config).items()}
    for name, view_of, index, part in _parts(found, model_config):
        source.read(name, index, view_of(tensors[part]))
    return tensors


def write_weights(
    layout: Layout, source: ParamSource, out: Path, dtype: np.dtype, max_shard_size: str
) -> list[str]:
    """Writes the safetensors files of a checkpoint, one layer of one parameter in memory.

    Args:
      out: an existing folder.
      max_shard_size: such as "5GB".

    Returns:
      Names of the files written, with an index and checksums.

    Raises:
      UserError: the layout cannot hold the model, a value is not finite, there is no space.
    """
    layout.check_fits(source.config)
    layout.check_code(source.config)
    writer = TensorWriter(out, layout.tensor_shapes(source.config), dtype, max_shard_size)
    for name, view_of, index, part in _parts(layout, source.config):
        source.read(name, index, view_of(writer.tensor(part)))
    return writer.finish()


def _parts(layout: Layout, config: ModelConfig) -> Iterator[tuple]:
    """For each parameter and layer: its name, its place in their tensor, its index, their name."""
    dims, rows = rank_dims(config), {row.ours: row for row in layout.rows}
    for name, shape in parameters.shapes(config).items():
        row = rows[name]
        if not row.is_stacked:
            view_of = _view(row, shape, dims)
            yield name, view_of, (slice(None),) * len(shape), row.theirs
            continue
        for layer in range(config.num_layers):
            index = (slice(layer, layer + 1), *(slice(None),) * (len(shape) - 1))
            view_of = _view(row, shape[1:], dims, stacked=True)
            yield name, view_of, index, row.theirs.format(i=layer)


def _view(row, shape, dims, *, stacked: bool = False):
    def view_of(tensor: np.ndarray) -> np.ndarray:
        view = row.rule.view(tensor, shape, dims)
        return view[None] if stacked else view

    return view_of
