import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from range_cases import (
    any_ranges,
    assert_same,
    inputs,
    packings,
    prefix_rows,
    reference,
    with_gradients,
)

from glm_jax.errors import UserError
from glm_jax.ops import range_attention_chunked
from glm_jax.ops.block_bounds import compute_bounds, visited_tiles
from glm_jax.ops.range_attention import BACKENDS, block_bounds, range_attention, resolve_backend

LENGTH, BLOCK_Q, BLOCK_K = 37, 8, 16


def chunked(q, k, v, start, end):
    bounds = compute_bounds(start, end, k.shape[1], block_q=BLOCK_Q, block_k=BLOCK_K)
    return range_attention(q, k, v, start, end, backend="chunked", bounds=bounds)


chunked_with_gradients = with_gradients(chunked)
chunked_forward = jax.jit(chunked)


def test_reference_is_masked_softmax():
    start, end = prefix_rows(2, 20, 9)
    with jax.enable_x64(True):
        q, k, v, _ = inputs(2, 20, 4, 2, 8)
        position = np.arange(20)
        mask = (start[..., None] <= position) & (position < end[..., None])
        expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        expected = np.where((start < end)[..., None, None], expected, 0)
        actual = range_attention(q, k, v, start, end, backend="reference")
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, expected, atol=1e-6)  # jax.nn's softmax is float32


@settings(max_examples=40, deadline=None)
@given(st.one_of(packings(2, LENGTH), any_ranges(2, LENGTH, LENGTH)))
def test_chunked_is_reference(ranges):
    with jax.enable_x64(True):
        arrays = inputs(2, LENGTH, 4, 2, 8)
        assert_same(chunked_with_gradients(*arrays, *ranges), reference(*arrays, *ranges), 1e-12)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "heads", "kv_heads"),
    [
        (1, 1, 1, 1),
        (5, 40, 2, 1),
        pytest.param(100, 100, 2, 2, marks=pytest.mark.slow),
        (300, 300, 3, 1),
        pytest.param(257, 600, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_chunked_takes_any_shape(num_queries, num_keys, heads, kv_heads):
    start, end = prefix_rows(2, num_queries, max(2, num_queries // 3))
    run = with_gradients(
        lambda q, k, v, start, end: range_attention(q, k, v, start, end, backend="chunked")
    )
    with jax.enable_x64(True):
        arrays = inputs(2, num_queries, heads, kv_heads, 8, num_keys=num_keys)
        assert_same(run(*arrays, start, end), reference(*arrays, start, end), 1e-12)


def test_bfloat16_is_close_and_stays_bfloat16():
    start, end = prefix_rows(2, LENGTH, 12)
    arrays = inputs(2, LENGTH, 4, 2, 8, dtype=jnp.bfloat16)
    actual, expected = chunked_with_gradients(*arrays, start, end), reference(*arrays, start, end)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(actual, expected, 0.04)


def test_empty_range_gives_zero_output_and_gradient():
    q, k, v, d_out = inputs(1, LENGTH, 2, 2, 8, dtype=np.float32)
    nothing = np.zeros((1, LENGTH), np.int32)
    for backend in (chunked_with_gradients, reference):
        out, gradients = backend(q, k, v, d_out, nothing, nothing)
        assert not np.any(out)
        assert not any(np.any(x) for x in gradients)


@settings(max_examples=15, deadline=None)
@given(packings(1, LENGTH), st.integers(0, LENGTH - 1))
def test_what_a_query_does_not_see_changes_nothing(ranges, query):
    q, k, v, d_out = inputs(1, LENGTH, 4, 2, 8, dtype=np.float32)
    unseen = (np.arange(LENGTH) < ranges[0][0, query]) | (np.arange(LENGTH) >= ranges[1][0, query])
    other_k, other_v = (jnp.where(unseen[:, None, None], -3 * x + 1, x) for x in (k, v))
    # The cotangent of one query alone: its gradient may not depend on what it does not see either.
    d_out = jnp.where(np.arange(LENGTH)[:, None, None] == query, d_out, 0)
    out, gradients = chunked_with_gradients(q, k, v, d_out, *ranges)
    other_out, other_gradients = chunked_with_gradients(q, other_k, other_v, d_out, *ranges)
    np.testing.assert_array_equal(out[:, query], other_out[:, query])
    for x, y in zip(gradients, other_gradients, strict=True):
        np.testing.assert_array_equal(x, y)


def test_each_row_visits_only_its_own_tiles():
    start, end = prefix_rows(3, LENGTH, 6)
    start[:, BLOCK_K : 2 * BLOCK_K] = end[:, BLOCK_K : 2 * BLOCK_K] = 0
    start[0, 2 * BLOCK_K :] = 2 * BLOCK_K
    start[2], end[2] = 0, LENGTH  # the longest walk, which the others must not follow
    q, k, v, d_out = inputs(3, LENGTH, 2, 2, 8, dtype=np.float32)
    expected = chunked_with_gradients(q, k, v, d_out, start, end)
    position = np.arange(LENGTH)
    seen = ((start[..., None] <= position) & (position < end[..., None])).any(axis=1)
    for row, key_tile in np.ndindex(3, -(-LENGTH // BLOCK_K)):
        tile = slice(key_tile * BLOCK_K, (key_tile + 1) * BLOCK_K)
        if not seen[row, tile].any():
            k, v = (x.at[row, tile].set(np.nan) for x in (k, v))
    assert np.isnan(k).any()
    assert_same(chunked_with_gradients(q, k, v, d_out, start, end), expected, 0)


def brute_force_tiles(start, end, num_keys):
    """Query tile -> the key tiles between the first and the last visible one."""
    for row in range(start.shape[0]):
        for first in range(0, start.shape[1], BLOCK_Q):
            tile = slice(first, first + BLOCK_Q)
            seen = [
                j // BLOCK_K
                for s, e in zip(start[row, tile], end[row, tile], strict=True)
                for j in range(s, e)
            ]
            yield row, first // BLOCK_Q, (min(seen), max(seen) + 1) if seen else (0, 0)


@settings(max_examples=20, deadline=None)
@given(st.one_of(packings(2, LENGTH), any_ranges(2, LENGTH, LENGTH)))
def test_bounds_are_the_visible_tiles(ranges):
    start, end = ranges
    bounds = jax.jit(compute_bounds, static_argnums=2, static_argnames=("block_q", "block_k"))(
        start, end, LENGTH, block_q=BLOCK_Q, block_k=BLOCK_K
    )
    count = 0
    for row, i, (lo, hi) in brute_force_tiles(start, end, LENGTH):
        assert (int(bounds.key_lo[row, i]), int(bounds.key_hi[row, i])) == (lo, hi)
        count += hi - lo
        queries = slice(i * BLOCK_Q, (i + 1) * BLOCK_Q)
        for j in range(-(-LENGTH // BLOCK_K)):
            full = bool(bounds.full_lo[row, i] <= j < bounds.full_hi[row, i])
            sees_all = (start[row, queries] <= j * BLOCK_K) & (
                end[row, queries] >= (j + 1) * BLOCK_K
            )
            assert full == (sees_all.size == BLOCK_Q and bool(sees_all.all()))
            if lo <= j < hi:
                assert bounds.query_lo[row, j] <= i < bounds.query_hi[row, j]
    assert int(visited_tiles(bounds)) == count


def test_computed_tiles_are_the_analytic_count(monkeypatch):
    start, end = prefix_rows(1, LENGTH, 9)
    computed = []
    scores = range_attention_chunked._scores

    def counted(*args):
        jax.debug.callback(lambda: computed.append(1))
        return scores(*args)

    monkeypatch.setattr(range_attention_chunked, "_scores", counted)
    arrays = inputs(1, LENGTH, 2, 2, 8, dtype=np.float32)
    jax.block_until_ready(with_gradients(lambda *args: chunked(*args))(*arrays, start, end))
    jax.effects_barrier()
    expected = sum(hi - lo for _, _, (lo, hi) in brute_force_tiles(start, end, LENGTH))
    assert 0 < expected < -(-LENGTH // BLOCK_Q) * -(-LENGTH // BLOCK_K)
    assert len(computed) == 2 * expected  # forward and backward


def test_same_bits_from_run_to_run():
    start, end = prefix_rows(2, LENGTH, 12)
    arrays = inputs(2, LENGTH, 4, 2, 8, dtype=np.float32)
    assert_same(*(chunked_with_gradients(*arrays, start, end) for _ in range(2)), 0)


def test_remat_policy_keeps_the_forward_pass():
    start, end = prefix_rows(1, LENGTH, 12)
    q, k, v, _ = inputs(1, LENGTH, 2, 2, 8, dtype=np.float32)

    def passes(policy):
        layer = jax.checkpoint(lambda q: chunked(jnp.sin(q), k, v, start, end), policy=policy)
        jaxpr = str(jax.make_jaxpr(jax.value_and_grad(lambda q: layer(q).sum()))(q))
        return jaxpr.count("= scan[")  # each pass is a scan over query tiles

    policies = jax.checkpoint_policies
    assert passes(policies.nothing_saveable) == 3  # forward twice, backward
    assert passes(policies.save_only_these_names("attention_out", "attention_lse")) == 2


def test_auto_uses_no_tiles_for_a_single_query():
    q, k, v, _ = inputs(2, 1, 4, 2, 8, num_keys=50, dtype=np.float32)
    start, end = np.asarray([[0], [3]]), np.asarray([[7], [50]])
    expected = range_attention(q, k, v, start, end, backend="reference")
    np.testing.assert_array_equal(range_attention(q, k, v, start, end), expected)


def test_auto_says_once_what_it_chose(caplog):
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="glm_jax"):
        assert resolve_backend("auto") == resolve_backend("auto") == "chunked"
        assert resolve_backend("auto", "tpu") == "tpu"
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "range attention on cpu: chunked",
        "range attention on tpu: tpu",
    ]


@pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b not in ("auto", "reference", "chunked")]
)
def test_backend_that_cannot_run_here_is_one_line(backend):
    ranges = np.zeros((1, 4), np.int32)
    with pytest.raises(UserError, match=f"{backend!r} needs a .* runs on cpu") as error:
        block_bounds(ranges, ranges, 4, backend=backend)
    assert "\n" not in str(error.value)


def test_unknown_backend_is_one_line():
    with pytest.raises(UserError, match="'flash' is not one of: auto, reference"):
        resolve_backend("flash")


def mesh_of(data, fsdp, model):
    auto = (jax.sharding.AxisType.Auto,) * 3
    devices = jax.devices()[: data * fsdp * model]
    return jax.make_mesh((data, fsdp, model), ("data", "fsdp", "model"), auto, devices=devices)


@pytest.mark.multidevice
@pytest.mark.parametrize("shard_map", [True, False])
@pytest.mark.parametrize(
    ("shape", "kv_heads"), [((1, 2, 2), 2), ((2, 1, 2), 1), ((1, 4, 1), 1), ((1, 1, 4), 2)]
)
def test_mesh_is_one_device(shape, kv_heads, shard_map):
    start, end = prefix_rows(4, 300, 90)
    arrays = inputs(4, 300, 4, kv_heads, 8, dtype=np.float32)
    expected = with_gradients(
        lambda q, k, v, start, end: range_attention(q, k, v, start, end, backend="chunked")
    )(*arrays, start, end)
    mesh = mesh_of(*shape)

    def attend(q, k, v, start, end):
        bounds = block_bounds(start, end, k.shape[1], mesh=mesh)
        return range_attention(q, k, v, start, end, bounds=bounds, mesh=mesh if shard_map else None)

    rows = PartitionSpec(("data", "fsdp"))
    heads = PartitionSpec(("data", "fsdp"), None, "model" if kv_heads >= shape[2] else None)
    q_heads = PartitionSpec(("data", "fsdp"), None, "model")
    specs = (q_heads, heads, heads, q_heads, rows, rows)
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip((*arrays, start, end), specs, strict=True)
    ]
    assert_same(with_gradients(attend)(*placed), expected, 2e-5)


@pytest.mark.multidevice
def test_mesh_under_scan_and_checkpoint():
    start, end = prefix_rows(4, 64, 20)
    q, k, v, _ = inputs(4, 64, 4, 4, 8, dtype=np.float32)
    mesh = mesh_of(1, 2, 2)

    def loss(mesh, q):
        bounds = block_bounds(start, end, 64, mesh=mesh)

        @jax.checkpoint
        def layer(x, scale):
            return x + range_attention(x * scale, k, v, start, end, bounds=bounds, mesh=mesh), None

        return jnp.sum(jax.lax.scan(layer, q, jnp.arange(1.0, 4.0))[0] ** 2)

    one, four = (jax.jit(jax.value_and_grad(lambda q, m=m: loss(m, q)))(q) for m in (None, mesh))
    assert_same(four, one, 1e-4)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "message"),
    [
        (3, 4, 4, "batch size 3 is not divisible by the mesh axes data=1 x fsdp=2"),
        (4, 3, 3, "number of attention heads 3 is not divisible by the mesh axes model=2"),
        (4, 6, 3, "number of key heads 3 is not divisible by the mesh axes model=2"),
    ],
)
def test_indivisible_mesh_is_one_line(batch, heads, kv_heads, message):
    start, end = prefix_rows(batch, 8, 4)
    q, k, v, _ = inputs(batch, 8, heads, kv_heads, 4, dtype=np.float32)
    with pytest.raises(UserError, match=message):
        range_attention(q, k, v, start, end, mesh=mesh_of(1, 2, 2))
