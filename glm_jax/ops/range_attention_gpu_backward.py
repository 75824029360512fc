"""Range attention on NVIDIA Hopper: gradient of q, gradient of k and v.

Two kernels recompute the probabilities from the log-sum-exp. In one a block owns a tile of queries
and walks the key tiles of the bounds; in the other it owns a tile of keys and walks the query tiles
of the bounds for every query head of its group, with scores transposed, [keys, queries]. That is
seven matrix products where FlashAttention's single kernel (Dao 2023, arXiv 2307.08691) has five;
in exchange no gradient is added to by two blocks, so results repeat bit for bit.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from glm_jax.ops.block_bounds import BlockBounds
from glm_jax.ops.range_attention_gpu_pipeline import (
    LOG2_E,
    PER_COLUMN,
    PER_ROW,
    WARPGROUP_ROWS,
    hide,
    launch,
    read,
    ring_scratch,
    specialise,
    spread,
    tile_scratch,
)


class Cotangent(NamedTuple):
    """What the backward pass reads beside the inputs of the forward pass."""

    d_out: jax.Array  # [B, Tq, H, d]
    lse: jax.Array  # float32 [B, H, Tq], base 2
    delta: jax.Array  # float32 [B, H, Tq], sum over d of d_out * out


def query_gradient(inputs, cotangent: Cotangent, bounds: BlockBounds) -> jax.Array:
    """[B, Tq, H, d]; `inputs` as the forward kernel's."""
    batch, _, heads, dim = inputs.q.shape
    group = heads // inputs.k.shape[2]
    block_q, block_k = bounds.block_q, bounds.block_k
    warpgroups = block_q // WARPGROUP_ROWS
    scale = 1 / math.sqrt(dim)

    def kernel(*refs, q_smem, d_out_smem, ready, keys, values):
        q, k, v, start, end, d_out, lse, delta, key_lo, key_hi, full_lo, full_hi, d_q = refs
        row, head, tile = (lax.axis_index(axis) for axis in ("row", "head", "tile"))
        kv_head = lax.div(head, np.int32(group))
        first_tile = key_lo[row, tile]
        steps = key_hi[row, tile] - first_tile

        def queries(warpgroup):
            return pl.ds(tile * block_q + warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS)

        def feed():
            for warpgroup in range(warpgroups):
                for source, target in ((q, q_smem), (d_out, d_out_smem)):
                    source = source.at[row, queries(warpgroup), head]
                    plgpu.copy_gmem_to_smem(source, target.at[warpgroup], ready.at[warpgroup])

            @pl.loop(0, steps)
            def _(step):
                tokens = pl.ds((first_tile + step) * block_k, block_k)
                keys.fill(step, k.at[row, tokens, kv_head])
                values.fill(step, v.at[row, tokens, kv_head])

            keys.drain(steps)
            values.drain(steps)

        def compute(warpgroup):
            tokens = queries(warpgroup)
            q_tile, d_out_tile = q_smem.at[warpgroup], d_out_smem.at[warpgroup]

            def per_query(ref, *index):
                return read(ref.at[*index, tokens], PER_ROW)

            first, last = per_query(start, row), per_query(end, row)
            ranges = lambda: first, lambda: last
            lse_tile, delta_tile = per_query(lse, row, head), per_query(delta, row, head)
            full = full_lo[row, tile], full_hi[row, tile]

            def accumulate(acc):
                @pl.loop(0, steps)
                def _(step):
                    key_tile = first_tile + step
                    (k_tile,) = keys.wait(step)
                    (v_tile,) = values.wait(step)

                    def score_gradients(scores, d_p):
                        plgpu.wgmma(scores, q_tile, k_tile.T)
                        plgpu.wgmma(d_p, d_out_tile, v_tile.T)
                        s = plgpu.wgmma_accumulator_load(scores, wait_n=1)
                        s = hide(s, ranges, key_tile, key_tile * block_k, full, key_axis=1)
                        p = jnp.exp2(s * (scale * LOG2_E) - spread(lse_tile, s, 0))
                        return p * (d_p[...] - spread(delta_tile, p, 0))

                    tile_shape = plgpu.ACC((WARPGROUP_ROWS, block_k), jnp.float32)
                    d_s = pl.run_scoped(score_gradients, tile_shape, tile_shape)
                    values.release(step)
                    plgpu.wgmma(acc, d_s.astype(k.dtype), k_tile)
                    plgpu.wgmma_wait(0)
                    keys.release(step)

                return acc[...]

            plgpu.barrier_wait(ready.at[warpgroup])
            acc = pl.run_scoped(accumulate, plgpu.ACC((WARPGROUP_ROWS, dim), jnp.float32))
            q_tile[...] = (acc * scale).astype(d_q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile, d_q.at[row, tokens, head])
            plgpu.wait_smem_to_gmem(0)

        specialise(warpgroups, feed, compute)

    q_tile = jax.ShapeDtypeStruct((WARPGROUP_ROWS, dim), inputs.q.dtype)
    k_tile = jax.ShapeDtypeStruct((block_k, dim), inputs.k.dtype)
    return launch(
        kernel,
        jax.ShapeDtypeStruct(inputs.q.shape, inputs.q.dtype),
        {
            "q_smem": tile_scratch(warpgroups, q_tile),
            "d_out_smem": tile_scratch(warpgroups, q_tile),
            "ready": plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
            "keys": ring_scratch(warpgroups, k_tile),
            "values": ring_scratch(warpgroups, k_tile),
        },
        grid={"tile": bounds.query_tiles, "head": heads, "row": batch},
        compute_warpgroups=warpgroups,
    )(*inputs, *cotangent, bounds.key_lo, bounds.key_hi, bounds.full_lo, bounds.full_hi)


def key_gradients(inputs, cotangent: Cotangent, bounds: BlockBounds) -> list[jax.Array]:
    """d_k and d_v [B, Tk, K, d]."""
    batch, _, kv_heads, dim = inputs.k.shape
    group = inputs.q.shape[2] // kv_heads
    block_q, block_k = bounds.block_q, bounds.block_k
    warpgroups = block_k // WARPGROUP_ROWS
    # Two accumulators [64, d] leave registers for this many queries at once.
    step_q = min(block_q, 64 if dim > 64 else 128)
    steps_per_tile = block_q // step_q
    scale = 1 / math.sqrt(dim)

    def kernel(*refs, k_smem, v_smem, ready, queries, cotangents):
        q, k, v, start, end, d_out, lse, delta, query_lo, query_hi, full_lo, full_hi, *out = refs
        row, kv_head, tile = (lax.axis_index(axis) for axis in ("row", "head", "tile"))
        first_tile = query_lo[row, tile]
        steps_per_head = (query_hi[row, tile] - first_tile) * steps_per_tile
        steps = steps_per_head * group

        def keys(warpgroup):
            return pl.ds(tile * block_k + warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS)

        def position(step):
            """Query head and index of the block of `step_q` queries."""
            head = kv_head * group + lax.div(step, steps_per_head)
            return head, first_tile * steps_per_tile + lax.rem(step, steps_per_head)

        def feed():
            for warpgroup in range(warpgroups):
                for source, target in ((k, k_smem), (v, v_smem)):
                    source = source.at[row, keys(warpgroup), kv_head]
                    plgpu.copy_gmem_to_smem(source, target.at[warpgroup], ready.at[warpgroup])

            @pl.loop(0, steps)
            def _(step):
                head, index = position(step)
                tokens = pl.ds(index * step_q, step_q)
                queries.fill(
                    step,
                    q.at[row, tokens, head],
                    lse.at[row, head, tokens],
                    start.at[row, tokens],
                    end.at[row, tokens],
                )
                cotangents.fill(step, d_out.at[row, tokens, head], delta.at[row, head, tokens])

            queries.drain(steps)
            cotangents.drain(steps)

        def compute(warpgroup):
            k_tile, v_tile = k_smem.at[warpgroup], v_smem.at[warpgroup]
            first_key = tile * block_k + warpgroup * WARPGROUP_ROWS

            def per_query(ref):
                return read(ref, PER_COLUMN)

            def accumulate(acc_k, acc_v):
                @pl.loop(0, steps)
                def _(step):
                    query_tile = lax.div(position(step)[1], np.int32(steps_per_tile))
                    full = full_lo[row, query_tile], full_hi[row, query_tile]
                    q_tile, lse_tile, *ranges = queries.wait(step)
                    d_out_tile, delta_tile = cotangents.wait(step)
                    ranges = [functools.partial(per_query, ref) for ref in ranges]

                    def products(scores, d_p):
                        plgpu.wgmma(scores, k_tile, q_tile.T)
                        plgpu.wgmma(d_p, v_tile, d_out_tile.T)
                        s = plgpu.wgmma_accumulator_load(scores, wait_n=1)
                        s = hide(s, ranges, tile, first_key, full, key_axis=0)
                        p = jnp.exp2(s * (scale * LOG2_E) - spread(per_query(lse_tile), s, 1))
                        plgpu.wgmma(acc_v, p.astype(q.dtype), d_out_tile)
                        d_p = plgpu.wgmma_accumulator_load(d_p, wait_n=1)
                        return p * (d_p - spread(per_query(delta_tile), p, 1))

                    tile_shape = plgpu.ACC((WARPGROUP_ROWS, step_q), jnp.float32)
                    d_s = pl.run_scoped(products, tile_shape, tile_shape)
                    # What is per query was read by plain loads, and TMA will write over it: the
                    # hardware orders these two ways to shared memory only at a fence.
                    plgpu.commit_smem()
                    plgpu.wgmma(acc_k, d_s.astype(q.dtype), q_tile)
                    plgpu.wgmma_wait(1)
                    cotangents.release(step)
                    plgpu.wgmma_wait(0)
                    queries.release(step)

                return acc_k[...], acc_v[...]

            plgpu.barrier_wait(ready.at[warpgroup])
            accumulator = plgpu.ACC((WARPGROUP_ROWS, dim), jnp.float32)
            d_k, d_v = pl.run_scoped(accumulate, accumulator, accumulator)
            k_tile[...] = (d_k * scale).astype(k.dtype)
            v_tile[...] = d_v.astype(v.dtype)
            plgpu.commit_smem()
            for source, target in zip((k_tile, v_tile), out, strict=True):
                plgpu.copy_smem_to_gmem(source, target.at[row, keys(warpgroup), kv_head])
            plgpu.wait_smem_to_gmem(0)

        specialise(warpgroups, feed, compute)

    k_tile = jax.ShapeDtypeStruct((WARPGROUP_ROWS, dim), inputs.k.dtype)
    q_tile = jax.ShapeDtypeStruct((step_q, dim), inputs.q.dtype)
    floats, integers = (jax.ShapeDtypeStruct((step_q,), x) for x in (jnp.float32, jnp.int32))
    return launch(
        kernel,
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (inputs.k, inputs.v)],
        {
            "k_smem": tile_scratch(warpgroups, k_tile),
            "v_smem": tile_scratch(warpgroups, k_tile),
            "ready": plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
            "queries": ring_scratch(warpgroups, q_tile, floats, integers, integers),
            "cotangents": ring_scratch(warpgroups, q_tile, floats),
        },
        grid={"tile": bounds.key_tiles, "head": kv_heads, "row": batch},
        compute_warpgroups=warpgroups,
    )(*inputs, *cotangent, bounds.query_lo, bounds.query_hi, bounds.full_lo, bounds.full_hi)
