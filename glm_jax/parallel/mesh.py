"""The device mesh: axes data, fsdp, context, model."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from glm_jax.config import MeshConfig
from glm_jax.errors import UserError

AXES = ("data", "fsdp", "context", "model")
"""The last is the one whose devices talk most, so it gets neighbours."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with the configured sizes; one size may be -1.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill_in([getattr(config, axis) for axis in AXES], len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    if len(devices) == jax.device_count():
        return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=devices)
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=axis_types)


def _fill_in(sizes: list[int], num_devices: int) -> tuple[int, ...]:
    named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"config.mesh sizes must be positive, one of them may be -1, got {named}")
    known = math.prod(size for size in sizes if size > 0)
    filled = tuple(num_devices // known if size == -1 else size for size in sizes)
    if math.prod(filled) != num_devices:
        raise UserError(f"config.mesh {named} does not fit {num_devices} devices")
    return filled
