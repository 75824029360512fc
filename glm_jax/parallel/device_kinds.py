"""What accelerators can do at most, as their vendors state it.

TPUs: the pages of each generation at cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x); the
links of a v4 from arXiv 2304.01433, table 4. NVIDIA: the data sheets of A100, H100, H200 and HGX
B200, the SXM parts, dense bf16 without sparsity. A JAX device is a chip, but on tpu7x it is one of
a chip's two halves. Both vendors state links as the sum of both directions; here it is half of it.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """What one JAX device can do at most.

    Attributes:
      peak_flops: FLOP/s of bfloat16 matrix products with float32 sums.
      hbm_bytes: size of its memory.
      hbm_bandwidth: bytes/s of its memory.
      link_bandwidth: bytes/s it can send over its fast links (ICI, NVLink), all links together.
    """

    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float


_V4 = DeviceKind(275e12, 32 * _GIB, 1228e9, 300e9)
_V5E = DeviceKind(197e12, 16 * _GIB, 819e9, 200e9)
_V5P = DeviceKind(459e12, 95 * _GIB, 2765e9, 600e9)
_V6E = DeviceKind(918e12, 32 * _GIB, 1638e9, 400e9)
_HALF_TPU7X = DeviceKind(2307e12 / 2, 192 * _GIB / 2, 7370e9 / 2, 600e9 / 2)
_A100_40 = DeviceKind(312e12, 40 * _GIB, 1555e9, 300e9)
_A100_80 = DeviceKind(312e12, 80 * _GIB, 2039e9, 300e9)
_H100 = DeviceKind(989.4e12, 80 * _GIB, 3350e9, 450e9)
_H200 = DeviceKind(989.4e12, 141 * _GIB, 4800e9, 450e9)
_B200 = DeviceKind(2250e12, 180 * _GIB, 8000e9, 900e9)

_KINDS = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _HALF_TPU7X,
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100-SXM4-80GB": _A100_80,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H200,
    "NVIDIA B200": _B200,
}


def device_kind(name: str) -> DeviceKind | None:
    """The figures of a device by `jax.Device.device_kind`; None where they are not known."""
    return _KINDS.get(name)
