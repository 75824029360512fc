"""Rows of a table that is split among the devices by its rows, its width or both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from glm_jax.parallel.sharding import BATCH_AXES, SEQUENCE_AXIS, WeightLayout


def embedding_lookup(
    table: jax.Array, index: jax.Array, dtype, layout: WeightLayout | None
) -> jax.Array:
    """table [V, D] at index int32 [B, T], as [B, T, D] of `dtype`.

    Every device looks its part of the width up, for the tokens of all devices that have the other
    parts, and they exchange results, which are less than a table. The gradient of a row is summed
    in the dtype of the table: in bfloat16 that of a frequent token would stop growing.

    An index past the table gives NaN, which a training step takes for a bad one.

    Args:
      layout: how the table lies; None if it is on one device.
    """
    if layout is None:
        return jnp.take(table, index, axis=0).astype(dtype)
    row_axes, width_axes = ([a for a in axes if layout.mesh.shape[a] > 1] for axes in layout.split)
    split_by = _token_axes(layout.mesh, index)
    sequence = [axis for axis, dimension in split_by.items() if dimension == 1]
    tokens = PartitionSpec(BATCH_AXES, tuple(sequence))
    exchanged = [axis for axis in (*width_axes, *row_axes) if axis in split_by]

    def look_up(table, index):
        for axis in exchanged:
            index = jax.lax.all_gather(index, axis, axis=split_by[axis], tiled=True)
        x = _own_rows(table, index, row_axes).astype(dtype)
        for axis in reversed(row_axes):
            if axis in split_by:
                x = jax.lax.psum_scatter(x, axis, scatter_dimension=split_by[axis], tiled=True)
            else:
                x = jax.lax.psum(x, axis)
        for axis in reversed(width_axes):
            if axis in split_by:
                x = jax.lax.all_to_all(x, axis, split_by[axis], 2, tiled=True)
            else:
                x = jax.lax.all_gather(x, axis, axis=2, tiled=True)
        return x

    return jax.shard_map(
        look_up,
        mesh=layout.mesh,
        in_specs=(PartitionSpec(*layout.split), tokens),
        out_specs=tokens,
        check_vma=False,
    )(table, index)


def _token_axes(mesh, index) -> dict[str, int]:
    """The mesh axes that split tokens, each with the dimension of `index` that it splits."""
    axes = dict.fromkeys(BATCH_AXES, 0)
    if index.shape[1] % mesh.shape[SEQUENCE_AXIS] == 0:  # not where single tokens are decoded
        axes[SEQUENCE_AXIS] = 1
    return axes


def _own_rows(table, index, row_axes):
    """Rows of this device's part of a table; zeros for those of others, NaN for those of none."""
    if not row_axes:
        return jnp.take(table, index, axis=0)
    devices = jax.lax.axis_size(tuple(row_axes))
    own = index - jax.lax.axis_index(tuple(row_axes)) * table.shape[0]
    is_own = (own >= 0) & (own < table.shape[0])
    of_others = jnp.where((index >= 0) & (index < devices * table.shape[0]), 0, jnp.nan)
    rows = jnp.take(table, own, axis=0, mode="clip")
    return jnp.where(is_own[..., None], rows, of_others[..., None].astype(table.dtype))
