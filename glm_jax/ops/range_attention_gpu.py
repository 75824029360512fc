"""Range attention as Pallas Mosaic-GPU kernels for NVIDIA Hopper: forward pass and interface.

The recurrences are those of `range_attention_chunked`, the arrangement that of FlashAttention-3
(Shah et al. 2024, arXiv 2407.08608): TMA copies run ahead in a warpgroup of their own, and two
compute warpgroups take turns, so that one uses the tensor cores while the other is in its softmax.
A block walks the key tiles that the bounds name and no others. Every output tile is accumulated by
one warpgroup in one order, so results repeat bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from glm_jax.errors import UserError
from glm_jax.ops.block_bounds import BlockBounds, pad_axis
from glm_jax.ops.range_attention_chunked import FLOOR
from glm_jax.ops.range_attention_gpu_backward import Cotangent, key_gradients, query_gradient
from glm_jax.ops.range_attention_gpu_pipeline import (
    LOG2_E,
    PER_ROW,
    WARPGROUP_ROWS,
    hide,
    launch,
    read,
    ring_scratch,
    specialise,
    spread,
    tile_scratch,
    zeros,
)

HEAD_SIZES = (64, 128)
DTYPES = ("bfloat16", "float16")
_BLOCKS = (64, 128)


class _Inputs(NamedTuple):
    q: jax.Array  # [B, Tq, H, d], Tq and Tk whole blocks
    k: jax.Array  # [B, Tk, K, d]
    v: jax.Array
    start: jax.Array  # int32 [B, Tq]
    end: jax.Array


def gpu_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_start: jax.Array,
    kv_end: jax.Array,
    bounds: BlockBounds,
) -> jax.Array:
    """Shapes and meaning as `range_attention`; scores are accumulated in float32.

    Raises UserError for a dtype, head size or block that the kernels do not have.
    """
    reason = unsupported(q.dtype, q.shape[-1])
    if reason:
        raise UserError(f"attention backend 'gpu' {reason}: use 'chunked'")
    if bounds.block_q not in _BLOCKS or bounds.block_k not in _BLOCKS:
        raise UserError(
            f"attention backend 'gpu' takes bounds with blocks of 64 or 128, not "
            f"{bounds.block_q} x {bounds.block_k}: compute them with the same backend"
        )
    return _attend(q, k, v, kv_start, kv_end, bounds)


def unsupported(dtype, head_size: int) -> str | None:
    """Why the kernels cannot take these arrays, or None if they can."""
    if jnp.dtype(dtype).name not in DTYPES:
        return f"takes {' or '.join(DTYPES)}, not {jnp.dtype(dtype).name}"
    if head_size not in HEAD_SIZES:
        return f"takes a head size of {' or '.join(map(str, HEAD_SIZES))}, not {head_size}"
    return None


@jax.custom_vjp
def _attend(q, k, v, kv_start, kv_end, bounds):
    return _attend_fwd(q, k, v, kv_start, kv_end, bounds)[0]


def _attend_fwd(q, k, v, kv_start, kv_end, bounds):
    out, lse = _forward(_kernel_inputs(q, k, v, kv_start, kv_end, bounds), bounds)
    # A remat policy that saves these two names does not repeat the forward pass.
    out = checkpoint_name(out[:, : q.shape[1]], "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, kv_start, kv_end, bounds, out, lse)


def _attend_bwd(residuals, d_out):
    q, k, v, kv_start, kv_end, bounds, out, lse = residuals
    inputs = _kernel_inputs(q, k, v, kv_start, kv_end, bounds)
    delta = jnp.einsum("bqhd,bqhd->bhq", d_out, out, preferred_element_type=jnp.float32)
    delta = pad_axis(delta, 2, bounds.block_q)
    d_out = pad_axis(d_out.astype(q.dtype), 1, bounds.block_q)
    cotangent = Cotangent(d_out, lse, delta)
    d_q = query_gradient(inputs, cotangent, bounds)[:, : q.shape[1]]
    d_k, d_v = (x[:, : k.shape[1]] for x in key_gradients(inputs, cotangent, bounds))
    return d_q, d_k, d_v, None, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _kernel_inputs(q, k, v, kv_start, kv_end, bounds):
    q, start, end = (pad_axis(x, 1, bounds.block_q) for x in (q, kv_start, kv_end))
    return _Inputs(q, *(pad_axis(x, 1, bounds.block_k) for x in (k, v)), start, end)


def _forward(inputs, bounds):
    """out [B, Tq, H, d] and lse float32 [B, H, Tq], in base 2; lse of an empty range is 0."""
    batch, length, heads, dim = inputs.q.shape
    group = heads // inputs.k.shape[2]
    block_q, block_k = bounds.block_q, bounds.block_k
    warpgroups = block_q // WARPGROUP_ROWS
    scale = LOG2_E / math.sqrt(dim)

    def kernel(*refs, q_smem, q_full, keys, values, lse_smem, turn):
        q, k, v, start, end, key_lo, key_hi, full_lo, full_hi, out, lse = refs
        row, head, tile = (lax.axis_index(axis) for axis in ("row", "head", "tile"))
        kv_head = lax.div(head, np.int32(group))
        first_tile = key_lo[row, tile]
        steps = key_hi[row, tile] - first_tile

        def queries(warpgroup):
            return pl.ds(tile * block_q + warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS)

        def feed():
            for warpgroup in range(warpgroups):
                source = q.at[row, queries(warpgroup), head]
                plgpu.copy_gmem_to_smem(source, q_smem.at[warpgroup], q_full.at[warpgroup])

            @pl.loop(0, steps)
            def _(step):
                tokens = pl.ds((first_tile + step) * block_k, block_k)
                keys.fill(step, k.at[row, tokens, kv_head])
                values.fill(step, v.at[row, tokens, kv_head])

            keys.drain(steps)
            values.drain(steps)

        def hand_over():
            if warpgroups > 1:
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(turn)

        def compute(warpgroup):
            tokens = queries(warpgroup)
            q_tile = q_smem.at[warpgroup]
            first, last = (read(x.at[row, tokens], PER_ROW) for x in (start, end))
            ranges = lambda: first, lambda: last
            full = full_lo[row, tile], full_hi[row, tile]

            def add_tile(step, carry):
                top, total, acc = carry
                key_tile = first_tile + step
                (k_tile,) = keys.wait(step)

                def multiply(scores):
                    plgpu.wgmma(scores, q_tile, k_tile.T)
                    hand_over()
                    return scores[...]

                scores = pl.run_scoped(multiply, plgpu.ACC((WARPGROUP_ROWS, block_k), jnp.float32))
                keys.release(step)
                scores = hide(scores, ranges, key_tile, key_tile * block_k, full, key_axis=1)
                new_top = jnp.maximum(top, scores.max(axis=1) * scale)
                decay = jnp.exp2(top - new_top)
                p = jnp.exp2(scores * scale - spread(new_top, scores, 0))
                total = total * decay + p.sum(axis=1)
                p = p.astype(v.dtype)
                # Everything above belongs to this warpgroup's time without the tensor cores.
                total, p = lax.optimization_barrier((total, p))
                hand_over()
                (v_tile,) = values.wait(step)

                def weigh(part):
                    plgpu.wgmma(part, p, v_tile)
                    return part[...]

                part = pl.run_scoped(weigh, plgpu.ACC((WARPGROUP_ROWS, dim), jnp.float32))
                values.release(step)
                return new_top, total, acc * spread(decay, acc, 0) + part

            plgpu.barrier_wait(q_full.at[warpgroup])
            # The second warpgroup starts half a step after the first, which ends half a step early.
            pl.when(warpgroup == 1)(hand_over)
            top = plgpu.layout_cast(jnp.full((WARPGROUP_ROWS,), FLOOR, jnp.float32), PER_ROW)
            total = plgpu.layout_cast(jnp.zeros((WARPGROUP_ROWS,), jnp.float32), PER_ROW)
            init = top, total, zeros((WARPGROUP_ROWS, dim))
            top, total, acc = lax.fori_loop(0, steps, add_tile, init)
            pl.when(warpgroup == 0)(hand_over)

            seen = total > 0
            divisor = jnp.where(seen, total, 1.0)
            q_tile[...] = (acc * spread(1 / divisor, acc, 0)).astype(out.dtype)
            lse_tile = lse_smem.at[warpgroup]
            lse_tile[...] = jnp.where(seen, top + jnp.log(divisor) * LOG2_E, 0.0)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile, out.at[row, tokens, head])
            plgpu.copy_smem_to_gmem(lse_tile, lse.at[row, head, tokens])
            plgpu.wait_smem_to_gmem(0)

        specialise(warpgroups, feed, compute)

    q_tile = jax.ShapeDtypeStruct((WARPGROUP_ROWS, dim), inputs.q.dtype)
    k_tile = jax.ShapeDtypeStruct((block_k, dim), inputs.k.dtype)
    per_query = jax.ShapeDtypeStruct((WARPGROUP_ROWS,), jnp.float32)
    return launch(
        kernel,
        [
            jax.ShapeDtypeStruct(inputs.q.shape, inputs.q.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        {
            "q_smem": tile_scratch(warpgroups, q_tile),
            "q_full": plgpu.Barrier(num_barriers=warpgroups),
            "keys": ring_scratch(warpgroups, k_tile),
            "values": ring_scratch(warpgroups, k_tile),
            "lse_smem": tile_scratch(warpgroups, per_query),
            "turn": plgpu.Barrier(num_arrivals=warpgroups),
        },
        grid={"tile": bounds.query_tiles, "head": heads, "row": batch},
        compute_warpgroups=warpgroups,
    )(*inputs, bounds.key_lo, bounds.key_hi, bounds.full_lo, bounds.full_hi)
