"""The device mesh: axes data, fsdp, context, model."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from glm_jax.config import MeshConfig
from glm_jax.errors import UserError

AXES = ("data", "fsdp", "context", "model")
"""The last is the one whose devices talk most, so it gets neighbours."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with the configured sizes; one size may be -1.

    Devices that are neighbours on a TPU's network are neighbours on the mesh. Slices of TPUs, which
    a slower network joins, are told apart by `data` alone.

    Args:
      devices: of this machine, or described ones (`glm_jax.planning.topologies`); None: all of this
        machine.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `data` is no multiple of the
        number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = fill_in([getattr(config, axis) for axis in AXES], len(devices))
    return Mesh(_arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(sizes: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    if len(devices) < jax.device_count() and devices[0] in jax.devices():
        return np.asarray(devices).reshape(sizes)  # a part of a torus is no torus
    if devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(sizes, devices)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % num_slices:
        raise UserError(f"config.mesh.data={sizes[0]} is no multiple of the {num_slices} slices")
    inner = (sizes[0] // num_slices, *sizes[1:])
    if num_slices == 1:
        return mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        inner, (num_slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )


def fill_in(sizes: list[int], num_devices: int) -> tuple[int, ...]:
    """Sizes of `AXES` with -1 replaced by what is left of the devices.

    Raises:
      UserError: they do not multiply to the number of devices.
    """
    named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"config.mesh sizes must be positive, one of them may be -1, got {named}")
    known = math.prod(size for size in sizes if size > 0)
    filled = tuple(num_devices // known if size == -1 else size for size in sizes)
    if math.prod(filled) != num_devices:
        raise UserError(f"config.mesh {named} does not fit {num_devices} devices")
    return filled
