"""The table of accelerators."""

import jax
import pytest

from glm_jax.parallel.device_kinds import device_kind

NAMES = [
    "TPU v4",
    "TPU v5 lite",
    "TPU v5",
    "TPU v5p",
    "TPU v6 lite",
    "TPU7x",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H200",
    "NVIDIA B200",
]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_in_flops_and_bytes(name):
    """A figure given in TFLOP/s, GB or Gbit/s would leave these ratios by a factor of 8 or more."""
    kind = device_kind(name)
    assert 150 < kind.peak_flops / kind.hbm_bandwidth < 700
    assert 10 < kind.hbm_bytes / 2**30 < 200
    assert 2 < kind.hbm_bandwidth / kind.link_bandwidth < 15


def test_the_names_of_a_generation_mean_the_same():
    assert device_kind("TPU v5 lite") == device_kind("TPU v5e") != device_kind("TPU v5")


def test_a_processor_has_no_figures():
    assert device_kind(jax.devices("cpu")[0].device_kind) is None
    assert device_kind("NVIDIA H100 PCIe") is None
