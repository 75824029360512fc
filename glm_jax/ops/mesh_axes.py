"""Checks shared by the operations that run under `jax.shard_map`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from glm_jax.errors import UserError


def check_divisible(mesh: Mesh, axes: Sequence[str], size: int, what: str) -> None:
    """Raise UserError unless `size`, the number of `what`, splits evenly over the mesh `axes`."""
    missing = [axis for axis in axes if axis not in mesh.shape]
    if missing:
        raise UserError(f"mesh axis {missing[0]!r} is not one of {', '.join(mesh.axis_names)}")
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if size % shards:
        sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
        raise UserError(f"{what} {size} is not divisible by the mesh axes {sizes}")
