"""Gathers the parts of an array from devices, and sums arrays into parts, inside `jax.shard_map`.

On TPUs a group of all chips of a slice does it in two stages, along one side of the torus and then
across the others: the compiler writes a gather or scatter of such a group as an all-reduce, which
sends twice as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh


class _Stage(NamedTuple):
    """A collective over mesh axes, or over groups of positions on one of them."""

    names: str | tuple[str, ...]
    groups: list[list[int]] | None


def gather(part: jax.Array, mesh: Mesh, names: Sequence[str], axis: int) -> jax.Array:
    """The parts of all devices along the mesh axes `names`, side by side on `axis`."""
    for stage in reversed(_stages(mesh, names)):
        part = jax.lax.all_gather(
            part, stage.names, axis=axis, tiled=True, axis_index_groups=stage.groups
        )
    return part


def sum_parts(whole: jax.Array, mesh: Mesh, names: Sequence[str], axis: int) -> jax.Array:
    """This device's part on `axis` of the sum over all devices along `names`."""
    for stage in _stages(mesh, names):
        whole = jax.lax.psum_scatter(
            whole,
            stage.names,
            scatter_dimension=axis,
            tiled=True,
            axis_index_groups=stage.groups,
        )
    return whole


def _stages(mesh: Mesh, names: Sequence[str]) -> list[_Stage]:
    """Stages of a scatter; a gather takes them the other way round."""
    split = tuple(name for name in names if mesh.shape[name] > 1)
    if mesh.devices.flat[0].platform != "tpu":
        return [_Stage(split, None)] if split else []
    return [stage for name in split for stage in _torus_stages(mesh, name)]


def _torus_stages(mesh: Mesh, name: str) -> list[_Stage]:
    devices = _along(mesh, name)
    line = _first_line(devices)
    if len(devices) < _slice_size(mesh) or line in (1, len(devices)):
        return [_Stage(name, None)]
    lines = np.arange(len(devices)).reshape(-1, line)
    return [_Stage(name, lines.T.tolist()), _Stage(name, lines.tolist())]


def _along(mesh: Mesh, name: str) -> list[jax.Device]:
    """The devices of one group of a mesh axis, in their order."""
    axis = mesh.axis_names.index(name)
    return list(np.moveaxis(mesh.devices, axis, 0).reshape(mesh.shape[name], -1)[:, 0])


def _slice_size(mesh: Mesh) -> int:
    slices = {getattr(device, "slice_index", 0) for device in mesh.devices.flat}
    return mesh.devices.size // len(slices)


def _first_line(devices: Sequence[jax.Device]) -> int:
    """How many of them, from the first on, lie on one line of the torus; 1 if none divides them."""
    coords = np.array([device.coords for device in devices])
    across = coords[1] == coords[0]  # the sides of the torus that the line does not go along
    leaves = (coords[:, across] != coords[0, across]).any(axis=1)
    line = int(np.argmax(leaves)) or len(devices)
    return line if len(devices) % line == 0 else 1
