"""Devices that this machine need not have, described to the compiler."""

import contextlib
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from glm_jax.errors import UserError

_TPUS = {"v4": "2x2x1", "v5e": "4x4", "v5p": "4x4x4", "v6e": "8x8"}
_LONGEST_FLAT_SIDE = 16
_KNOWN = ", ".join([*(f"{name}:{chips}" for name, chips in _TPUS.items()), "h200:8", "cpu:4"])
_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def described_devices(name: str, num_slices: int = 1) -> list[jax.Device]:
    """Devices to compile for; nothing can be placed on them or run.

    Args:
      name: a generation of TPUs with the chips along each side of its torus, as v5e:4x4 or
        v5p:4x4x4, or h200 with the GPUs of one machine, as h200:8, or cpu with virtual devices of
        this process, as cpu:4.
      num_slices: such slices of TPUs, at least 1, joined by the data centre's network.

    Raises:
      UserError: no such devices, or the package that compiles for them is not installed.
    """
    generation, _, size = name.partition(":")
    if generation in _TPUS and _is_torus(generation, size):
        return _tpus(name, generation, num_slices)
    if generation == "h200" and re.fullmatch(r"[1-8]", size):
        _check_is_one(name, num_slices)
        return _gpus(int(size))
    if generation == "cpu" and re.fullmatch(r"[1-9]\d*", size):
        _check_is_one(name, num_slices)
        return _cpus(int(size))
    raise UserError(f"topology {name} is not known; known, with other numbers too: {_KNOWN}")


def _is_torus(generation: str, size: str) -> bool:
    """Whether chips of this generation are joined to that: v5e and v6e have no third side."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        return False
    sides = [int(side) for side in size.split("x")]
    if len(sides) != _TPUS[generation].count("x") + 1:
        return False
    return len(sides) == 3 or max(sides) <= _LONGEST_FLAT_SIDE


def _check_is_one(name: str, num_slices: int) -> None:
    if num_slices != 1:
        raise UserError(f"--num_slices={num_slices}: {name} has no slices, TPUs do")


def _cpus(count: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # jax has counted its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"topology cpu:{count}: this process has {len(devices)} of them already")
    return devices[:count]


def _tpus(name: str, generation: str, num_slices: int) -> list[jax.Device]:
    if not importlib.util.find_spec("libtpu"):
        raise UserError(f"compiling for {name} needs libtpu: pip install 'jax[tpu]'")
    # No chip is opened, so there is no metadata server to ask for its place in a pod, and no need
    # to keep other processes out.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"num_slices": num_slices}
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # a device for a chip, not for each of its halves
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name}: {str(error).splitlines()[0]}") from error


def _gpus(count: int) -> list[jax.Device]:
    if not any(importlib.util.find_spec(plugin) for plugin in _CUDA_PLUGINS):
        raise UserError(f"compiling for h200:{count} needs JAX for CUDA: pip install 'jax[cuda13]'")
    return topologies.get_topology_desc(
        "h200", "cuda", target_config=_H200, topology=f"1x1x{count}"
    ).devices


# What the compiler asks of a GPU (the fields of XLA's GpuTargetConfigProto), for an H200 SXM: sizes
# and limits as CUDA reports them, memory and its bandwidth from NVIDIA's data sheet.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
dnn_version_info { major: 9 minor: 23 }
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
"""
