"""The TPU kernels step by step on CPU; and compiled ahead of time where libtpu is installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from range_cases import assert_same, inputs, prefix_rows, reference, with_gradients

from glm_jax.errors import UserError
from glm_jax.ops.block_bounds import compute_bounds
from glm_jax.ops.range_attention import block_bounds, range_attention
from glm_jax.ops.range_attention_tpu import tpu_attention
from glm_jax.planning.topologies import described_devices


def interpreted(block_q, block_k):
    def attend(q, k, v, start, end):
        bounds = compute_bounds(start, end, k.shape[1], block_q=block_q, block_k=block_k)
        return tpu_attention(q, k, v, start, end, bounds, interpret=True)

    return with_gradients(attend)


@pytest.mark.parametrize(
    ("length", "segment", "heads", "kv_heads", "block_q", "block_k"),
    [
        (37, 13, 4, 2, 8, 8),
        pytest.param(37, 37, 2, 1, 8, 16, marks=pytest.mark.slow),
        pytest.param(40, 6, 2, 2, 16, 8, marks=pytest.mark.slow),
        pytest.param(150, 60, 4, 1, 128, 128, marks=pytest.mark.slow),
    ],
)
def test_kernels_are_reference(length, segment, heads, kv_heads, block_q, block_k):
    start, end = prefix_rows(2, length, segment)
    start[0, :3], end[0, :3] = 5, 2  # empty
    with jax.enable_x64(True):
        arrays = inputs(2, length, heads, kv_heads, 8)
        actual = interpreted(block_q, block_k)(*arrays, start, end)
        assert_same(actual, reference(*arrays, start, end), 1e-12)


@functools.cache
def small_kernels():
    return interpreted(4, 8)


def test_full_tiles_need_no_compare_and_unseen_tiles_are_not_read():
    length, seen = 32, slice(8, 24)
    start, end = np.zeros((2, 1, length), np.int32)
    start[:, seen], end[:, seen] = 8, 24
    q, k, v, d_out = inputs(1, length, 2, 1, 8, dtype=np.float32)
    expected = small_kernels()(q, k, v, d_out, start, end)
    assert_same(expected, reference(q, k, v, d_out, start, end), 1e-5)
    hidden = np.ones(length, bool)
    hidden[seen] = False
    poisoned = [jnp.where(hidden[:, None, None], np.nan, x) for x in (q, k, v)]
    assert_same(small_kernels()(*poisoned, d_out, start, end), expected, 0)


def test_nothing_visible_gives_zeros():
    arrays = inputs(1, 32, 2, 1, 8, dtype=np.float32)
    nothing = np.zeros((1, 32), np.int32)
    assert not any(np.any(x) for x in jax.tree.leaves(small_kernels()(*arrays, nothing, nothing)))


def test_head_size_that_does_not_fit_is_one_line():
    q, k, v, _ = inputs(1, 4, 1, 1, 320, dtype=np.float32)
    ranges = np.zeros((1, 4), np.int32)
    bounds = compute_bounds(ranges, ranges, 4, block_q=4, block_k=4)
    with pytest.raises(UserError, match="head size up to 256, not 320"):
        tpu_attention(q, k, v, ranges, ranges, bounds)


@pytest.mark.aot
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("block", [256, 512])
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:4x4x4", "v6e:8x8"])
def test_compiles_ahead_of_time(topology, block, dim):
    devices = described_devices(topology)
    mesh = Mesh(np.asarray(devices).reshape(1, -1, 2), ("data", "fsdp", "model"))
    batch, length, heads, kv_heads = mesh.shape["fsdp"], 2048, 8, 4

    def loss(q, k, v, start, end):
        bounds = compute_bounds(start, end, length, block_q=block, block_k=block)
        return range_attention(q, k, v, start, end, bounds=bounds, mesh=mesh).sum()

    def abstract(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *spec))
        return jax.ShapeDtypeStruct((batch, length, *shape), dtype, sharding=sharding)

    q = abstract((heads, dim), jnp.bfloat16, None, "model")
    k = abstract((kv_heads, dim), jnp.bfloat16, None, "model")
    ranges = abstract((), jnp.int32)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, ranges, ranges).compile()
    assert compiled.as_text().count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.aot
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("length", [100, 700])
def test_default_blocks_compile_for_any_length(length):
    devices = described_devices("v5e:4x4")
    mesh = Mesh(np.asarray(devices[:1]), ("data",))

    def attend(q, k, start, end):
        bounds = block_bounds(start, end, length, mesh=mesh)
        return range_attention(q, k, k, start, end, bounds=bounds, mesh=mesh)

    sharding = NamedSharding(mesh, PartitionSpec())
    q, k = (
        jax.ShapeDtypeStruct((2, length, heads, 80), jnp.float32, sharding=sharding)
        for heads in (4, 1)
    )
    ranges = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=sharding)
    assert "tpu_custom_call" in jax.jit(attend).lower(q, k, ranges, ranges).compile().as_text()
