"""Copies that differ by one bit are found, and named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.config import MeshConfig
from glm_jax.errors import RestartError
from glm_jax.parallel.hosts import ALONE
from glm_jax.parallel.replicas import Replicas
from glm_jax.parallel.sharding import make_sharding

pytestmark = pytest.mark.multidevice


@pytest.fixture
def sharding():
    return make_sharding(MeshConfig(data=2, fsdp=2), jax.devices())


@pytest.fixture
def tree(sharding):
    """Arrays of which two devices each, or all, hold copies, and one of which there are none."""
    values = {
        "halves": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4),
        "whole": np.array([1.5, -2.0, 3.0]).astype(jnp.bfloat16),
        "step": np.int32(4),
        "parts": np.arange(8, dtype=np.float32),
    }
    specs = {"halves": P(None, "fsdp"), "whole": P(), "step": P(), "parts": P(("data", "fsdp"))}
    return {
        name: jax.device_put(value, NamedSharding(sharding.mesh, specs[name]))
        for name, value in values.items()
    }


def replicas(sharding, tree) -> Replicas:
    return Replicas(sharding, tree, jax.tree.map(lambda x: x.sharding, tree))


def with_a_flipped_bit(array: jax.Array, device: int, byte: int, bit: int) -> jax.Array:
    """The array with a bit of the copy of one device flipped."""
    parts = []
    for shard in array.addressable_shards:
        part = np.array(shard.data)
        if shard.device.id == device:
            part.reshape(-1).view(np.uint8)[byte] ^= 1 << bit
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def test_equal_copies_pass(sharding, tree):
    replicas(sharding, tree).check(tree, ALONE)


@pytest.mark.parametrize("name", ["halves", "whole", "step"])
def test_every_single_bit_counts(sharding, tree, name):
    check = replicas(sharding, tree)
    size = tree[name].addressable_shards[3].data.nbytes
    for byte in range(0, size, 3):
        for bit in (0, 7):
            broken = tree | {name: with_a_flipped_bit(tree[name], 3, byte, bit)}
            with pytest.raises(RestartError, match=rf"^copies of {name} \(device 3 of process 0"):
                check.check(broken, ALONE)


def test_more_arrays_are_counted(sharding, tree):
    broken = dict(tree)
    for name in ("halves", "whole"):
        broken[name] = with_a_flipped_bit(tree[name], 1, 0, 0)
    with pytest.raises(RestartError, match="of halves .* and of 1 other arrays are not the same"):
        replicas(sharding, tree).check(broken, ALONE)


def test_what_has_no_copy_cannot_differ(sharding, tree):
    broken = tree | {"parts": with_a_flipped_bit(tree["parts"], 3, 0, 0)}
    replicas(sharding, tree).check(broken, ALONE)
