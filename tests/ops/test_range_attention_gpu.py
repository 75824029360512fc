"""The Hopper kernels step by step on CPU; and compiled ahead of time where JAX has its CUDA part.

Both need jax 0.11.2 (Python 3.12), the second also `pip install "jax[cuda13]"`. No GPU is needed.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from range_attention_interpreter import interpreted
from range_cases import assert_same, inputs, prefix_rows, reference, with_gradients

from glm_jax.errors import UserError
from glm_jax.ops import range_attention as dispatch
from glm_jax.ops.block_bounds import compute_bounds
from glm_jax.ops.range_attention import block_bounds, range_attention, resolve_backend
from glm_jax.ops.range_attention_gpu import gpu_attention
from glm_jax.planning.topologies import described_devices


def step_by_step(block_q, block_k, *arrays):
    """Output and gradients by the kernels, interpreted."""

    def attend(q, k, v, start, end):
        bounds = compute_bounds(start, end, k.shape[1], block_q=block_q, block_k=block_k)
        return gpu_attention(q, k, v, start, end, bounds)

    with interpreted():
        return jax.block_until_ready(with_gradients(attend)(*arrays))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("length", "num_keys", "heads", "kv_heads", "dim", "block_q", "block_k"),
    [
        (100, 100, 4, 2, 64, 64, 64),
        (200, 200, 2, 2, 128, 128, 128),
        (200, 200, 2, 1, 64, 128, 128),
        (130, 130, 1, 1, 64, 128, 64),
        (130, 130, 2, 1, 128, 64, 128),
        (70, 190, 1, 1, 64, 64, 64),
    ],
)
def test_kernels_are_reference(length, num_keys, heads, kv_heads, dim, block_q, block_k, dtype):
    start, end = prefix_rows(2, length, 60)
    start[0, :3], end[0, :3] = 5, 2  # empty
    start[1, -40:], end[1, -40:] = num_keys - 9, num_keys
    arrays = inputs(2, length, heads, kv_heads, dim, num_keys=num_keys, dtype=dtype)
    actual = step_by_step(block_q, block_k, *arrays, start, end)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {jnp.dtype(dtype)}
    assert_same(actual, reference(*arrays, start, end), 0.03 if dtype == jnp.bfloat16 else 0.004)


@pytest.mark.slow
def test_unseen_tiles_are_not_read():
    """And tiles that are full, begin with a range's start or end with its end are right."""
    length, seen = 256, slice(64, 192)
    start, end = np.zeros((2, 1, length), np.int32)
    start[:, seen], end[:, seen] = 64, 192
    end[:, 128:192] = np.arange(129, 193)
    start[:, 128:140] = 70
    arrays = inputs(1, length, 2, 1, 64, dtype=jnp.bfloat16)
    expected = step_by_step(64, 64, *arrays, start, end)
    assert_same(expected, reference(*arrays, start, end), 0.03)
    hidden = np.ones(length, bool)
    hidden[seen] = False
    poisoned = [jnp.where(hidden[:, None, None], np.nan, x).astype(x.dtype) for x in arrays[:3]]
    assert_same(step_by_step(64, 64, *poisoned, arrays[3], start, end), expected, 0)


@pytest.mark.slow
def test_nothing_visible_gives_zeros():
    arrays = inputs(1, 128, 2, 1, 64, dtype=jnp.bfloat16)
    nothing = np.zeros((1, 128), np.int32)
    for block in (64, 128):
        results = step_by_step(block, block, *arrays, nothing, nothing)
        assert not any(np.any(x) for x in jax.tree.leaves(results))


@pytest.mark.parametrize(
    ("dtype", "dim", "block", "message"),
    [
        (jnp.float32, 64, 128, "takes bfloat16 or float16, not float32: use 'chunked'"),
        (jnp.bfloat16, 80, 128, "takes a head size of 64 or 128, not 80: use 'chunked'"),
        (jnp.bfloat16, 64, 32, "takes bounds with blocks of 64 or 128, not 32 x 32"),
    ],
)
def test_what_does_not_fit_is_one_line(dtype, dim, block, message):
    q, k, v, _ = inputs(1, 4, 1, 1, dim, dtype=dtype)
    ranges = np.zeros((1, 4), np.int32)
    bounds = compute_bounds(ranges, ranges, 4, block_q=block, block_k=block)
    with pytest.raises(UserError, match=f"attention backend 'gpu' {message}") as error:
        gpu_attention(q, k, v, ranges, ranges, bounds)
    assert "\n" not in str(error.value)


def test_auto_takes_the_kernels_only_where_they_run(caplog, monkeypatch):
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="glm_jax"):
        assert resolve_backend("auto", "gpu", "9.0") == "gpu"
        assert resolve_backend("auto", "gpu", "8.0") == "chunked"
        assert resolve_backend("auto", "gpu", None) == "chunked"
    assert "needs a Hopper GPU (compute capability 9.0)" in caplog.messages[1]
    with pytest.raises(UserError, match="'gpu' needs a Hopper GPU .* has 10.0: use 'auto'"):
        resolve_backend("gpu", "gpu", "10.0")

    def absent():
        raise ImportError("no Mosaic GPU")

    resolve_backend.cache_clear()
    monkeypatch.setattr(dispatch, "_gpu_kernels", absent)
    assert resolve_backend("auto", "gpu", "9.0") == "chunked"
    with pytest.raises(UserError, match="Pallas for Mosaic GPU .no Mosaic GPU.: use 'auto'"):
        resolve_backend("gpu", "gpu", "9.0")
    resolve_backend.cache_clear()


@pytest.mark.parametrize(("dtype", "dim"), [(np.float32, 64), (jnp.bfloat16, 40)])
def test_auto_takes_chunked_for_arrays_the_kernels_do_not(dtype, dim, monkeypatch):
    monkeypatch.setattr(dispatch, "_target", lambda mesh: ("gpu", "9.0"))
    start, end = prefix_rows(1, 130, 50)
    q, k, v, _ = inputs(1, 130, 2, 1, dim, dtype=dtype)
    bounds = block_bounds(start, end, 130)
    assert (bounds.block_q, bounds.block_k) == (128, 128)
    actual = range_attention(q, k, v, start, end, bounds=bounds if dim == 64 else None)
    expected = range_attention(q, k, v, start, end, backend="reference")
    assert_same(actual, expected, 0.02 if dtype == jnp.bfloat16 else 1e-5)


def test_tokamax_that_is_absent_is_one_line(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    resolve_backend.cache_clear()
    with pytest.raises(UserError, match="'tokamax' needs its package: pip install tokamax$"):
        resolve_backend("tokamax", "gpu", "9.0")


@functools.cache
def h200_devices():
    """Eight H200 that are not there; None without JAX's CUDA part."""
    try:
        return described_devices("h200:8")
    except UserError:
        return None


def compile_gradients(backend, dim, dtype, length, block=None, kv_heads=4):
    """The compiled text of output and gradients of packed rows on eight H200."""
    devices = h200_devices()
    if devices is None:
        pytest.skip('compiling for a GPU needs JAX\'s CUDA part: pip install "jax[cuda13]"')
    mesh = Mesh(np.asarray(devices).reshape(1, 4, 2), ("data", "fsdp", "model"))

    def loss(q, k, v, start, end):
        if block is None:
            bounds = block_bounds(start, end, length, mesh=mesh, backend=backend)
        else:
            bounds = compute_bounds(start, end, length, block_q=block[0], block_k=block[1])
        out = range_attention(
            q, k, v, start, end, backend=backend, bounds=bounds, mesh=mesh, heads_axis="model"
        )
        return out.astype(jnp.float32).sum()

    def abstract(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *spec))
        return jax.ShapeDtypeStruct((4, length, *shape), dtype, sharding=sharding)

    q, k = (abstract((heads, dim), dtype, None, "model") for heads in (8, kv_heads))
    ranges = abstract((), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(q, k, k, ranges, ranges).compile()
    return compiled.as_text()


@pytest.mark.aot
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("block", [(128, 128), (64, 64), (128, 64), (64, 128)])
@pytest.mark.parametrize("dim", [64, 128])
def test_compiles_ahead_of_time(dim, block, kv_heads):
    text = compile_gradients("gpu", dim, jnp.bfloat16, 1024, block, kv_heads)
    assert text.count('custom_call_target="mosaic_gpu') == 3  # forward, dq, dk and dv


@pytest.mark.aot
@pytest.mark.parametrize("length", [50, 700])
@pytest.mark.parametrize(("dtype", "kernels"), [(jnp.float16, 3), (jnp.float32, 0)])
def test_auto_compiles_for_any_length(length, dtype, kernels):
    text = compile_gradients("auto", 64, dtype, length)
    assert text.count('custom_call_target="mosaic_gpu') == kernels


@pytest.mark.aot
@pytest.mark.parametrize("dim", [64, 128])
def test_tokamax_compiles_ahead_of_time(dim, monkeypatch):
    pytest.importorskip("tokamax", reason="needs tokamax: pip install tokamax")
    if h200_devices():  # tokamax asks for the device of this process, and not of the mesh
        monkeypatch.setattr("jax.extend.backend.get_default_device", lambda: h200_devices()[0])
    text = compile_gradients("tokamax", dim, jnp.bfloat16, 700)
    assert text.count('custom_call_target="mosaic_gpu') == 3
