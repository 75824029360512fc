"""What a session runs on: the part of its first line that the report compares between sessions."""

import math
from typing import Any

import jax

from glm_jax.parallel.sharding import Sharding
from glm_jax.training.speed import Machine
from glm_jax.versions import versions


def surroundings(
    params: dict, sharding: Sharding, machine: Machine, num_processes: int
) -> dict[str, Any]:
    """Versions, devices with the peak of one in TFLOP/s or None, mesh and parameter count."""
    peak = machine.peak_flops
    return {
        "versions": versions(),
        "device": machine.device,
        "num_devices": machine.num_devices,
        "num_processes": num_processes,
        "peak_tflops": peak and peak / 1e12,
        "mesh": mesh_shape(sharding),
        "num_params": count_params(params),
    }


def count_params(params: dict) -> int:
    """Elements of all arrays, abstract or not."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def mesh_shape(sharding: Sharding) -> str:
    """As in `data=2 x fsdp=4`."""
    return " x ".join(f"{axis}={size}" for axis, size in sharding.mesh.shape.items())
