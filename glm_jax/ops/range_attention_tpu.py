"""Range attention as Pallas kernels for TPU: forward, gradient of q, gradient of k and v.

The recurrences are those of `range_attention_chunked`. A kernel walks the tiles that the bounds
name: the bounds are prefetched scalars, so the index maps read them, and a step past the end of a
walk repeats the last tile's index, which moves no data, and computes nothing. Scores are kept
transposed, [block_k, block_q], so that everything held per query (ranges, log-sum-exp) is a row of
vector lanes. Every output tile is accumulated by one core in one order, so results repeat bit for
bit.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from glm_jax.errors import UserError
from glm_jax.ops.block_bounds import BlockBounds, pad_axis
from glm_jax.ops.range_attention_chunked import FLOOR, MASKED

_MAX_HEAD_SIZE = 256


class _Scalars(NamedTuple):
    """`BlockBounds` as the kernels read it: scalars in SMEM, flattened to one axis.

    A second axis would be padded to the width of a vector there.
    """

    key_lo: jax.Array  # [B * nq]
    key_hi: jax.Array
    full_lo: jax.Array
    full_hi: jax.Array
    query_lo: jax.Array  # [B * nk]
    query_hi: jax.Array


class _Inputs(NamedTuple):
    q: jax.Array  # [B, H, Tq, d], Tq and Tk whole blocks
    k: jax.Array  # [B, K, Tk, d]
    v: jax.Array
    start: jax.Array  # int32 [B, 1, Tq]
    end: jax.Array


def tpu_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_start: jax.Array,
    kv_end: jax.Array,
    bounds: BlockBounds,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Shapes and meaning as `range_attention`; blocks must be multiples of 128 on a real TPU.

    `interpret` runs the kernels step by step on any device. Raises UserError for a head size above
    256, the largest whose tiles are known to fit the vector memory.
    """
    if q.shape[-1] > _MAX_HEAD_SIZE:
        raise UserError(
            f"attention backend 'tpu' takes a head size up to {_MAX_HEAD_SIZE}, not {q.shape[-1]}: "
            "use 'chunked'"
        )
    return _attend(interpret, q, k, v, kv_start, kv_end, bounds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret, q, k, v, kv_start, kv_end, bounds):
    return _attend_fwd(interpret, q, k, v, kv_start, kv_end, bounds)[0]


def _attend_fwd(interpret, q, k, v, kv_start, kv_end, bounds):
    inputs = _kernel_inputs(q, k, v, kv_start, kv_end, bounds)
    out, lse = _forward(inputs, bounds, interpret)
    out = out.transpose(0, 3, 1, 2)[:, : q.shape[1]]
    # A remat policy that saves these two names does not repeat the forward pass.
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, kv_start, kv_end, bounds, out, lse)


def _attend_bwd(interpret, residuals, d_out):
    q, k, v, kv_start, kv_end, bounds, out, lse = residuals
    inputs = _kernel_inputs(q, k, v, kv_start, kv_end, bounds)
    delta = jnp.sum(d_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1)
    delta = pad_axis(delta.swapaxes(1, 2)[:, :, None], 3, bounds.block_q)
    d_out = pad_axis(d_out.astype(q.dtype).swapaxes(1, 2), 2, bounds.block_q)
    d_q = _query_gradient(inputs, lse, delta, d_out, bounds, interpret)
    d_k, d_v = _key_gradients(inputs, lse, delta, d_out, bounds, interpret)
    d_k, d_v = (x.swapaxes(1, 2)[:, : k.shape[1]] for x in (d_k, d_v))
    return d_q.transpose(0, 3, 1, 2)[:, : q.shape[1]], d_k, d_v, None, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _kernel_inputs(q, k, v, kv_start, kv_end, bounds):
    q = pad_axis(q.swapaxes(1, 2), 2, bounds.block_q)
    k, v = (pad_axis(x.swapaxes(1, 2), 2, bounds.block_k) for x in (k, v))
    start, end = (pad_axis(x[:, None], 2, bounds.block_q) for x in (kv_start, kv_end))
    return _Inputs(q, k, v, start, end)


def _forward(inputs, bounds, interpret):
    """out [B, H, d, Tq] and lse [B, H, 1, Tq]; lse of an empty range is 0."""
    batch, heads, length, dim = inputs.q.shape
    dtype = jnp.promote_types(inputs.q.dtype, jnp.float32)
    specs = _query_major_specs(inputs, bounds)
    row = pltpu.VMEM((1, bounds.block_q), dtype)
    return pl.pallas_call(
        functools.partial(_forward_kernel, specs.scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(_Scalars._fields),
            grid=specs.grid,
            in_specs=specs.inputs,
            out_specs=[specs.columns, specs.row],
            scratch_shapes=[row, row, pltpu.VMEM((dim, bounds.block_q), dtype)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, dim, length), inputs.q.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), dtype),
        ],
        compiler_params=_sequential(last=1, rank=4),
        interpret=interpret,
    )(*_scalars(bounds), *inputs)


def _forward_kernel(scale, *refs):
    scalars, refs = _Scalars(*refs[:6]), refs[6:]
    q, k, v, start, end, out, lse, top, total, acc = refs
    step = pl.program_id(3)
    tile = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
    key_tile = scalars.key_lo[tile] + step

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full_like(top, FLOOR)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    def add_tile(compare):
        scores = _scores(q, k, start, end, key_tile, scale, compare, acc.dtype)
        new_top = jnp.maximum(top[...], jnp.max(scores, axis=0, keepdims=True))
        decay = jnp.exp(top[...] - new_top)
        p = jnp.exp(scores - new_top)
        top[...] = new_top
        total[...] = total[...] * decay + jnp.sum(p, axis=0, keepdims=True)
        acc[...] = acc[...] * decay + _dot(v[...], p.astype(v.dtype), (0, 0), acc.dtype)

    _visit(scalars, tile, key_tile, True, add_tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        seen = total[...] > 0
        divisor = jnp.where(seen, total[...], 1)
        out[...] = (acc[...] / divisor).astype(out.dtype)
        lse[...] = jnp.where(seen, top[...] + jnp.log(divisor), 0)


def _query_gradient(inputs, lse, delta, d_out, bounds, interpret):
    """[B, H, d, Tq]."""
    batch, heads, length, dim = inputs.q.shape
    specs = _query_major_specs(inputs, bounds)
    return pl.pallas_call(
        functools.partial(_query_gradient_kernel, specs.scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(_Scalars._fields),
            grid=specs.grid,
            in_specs=[*specs.inputs, specs.row, specs.row, specs.queries],
            out_specs=specs.columns,
            scratch_shapes=[pltpu.VMEM((dim, bounds.block_q), lse.dtype)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, heads, dim, length), inputs.q.dtype),
        compiler_params=_sequential(last=1, rank=4),
        interpret=interpret,
    )(*_scalars(bounds), *inputs, lse, delta, d_out)


def _query_gradient_kernel(scale, *refs):
    scalars, refs = _Scalars(*refs[:6]), refs[6:]
    q, k, v, start, end, lse, delta, d_out, d_q, acc = refs
    step = pl.program_id(3)
    tile = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
    key_tile = scalars.key_lo[tile] + step

    @pl.when(step == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)

    def add_tile(compare):
        scores = _scores(q, k, start, end, key_tile, scale, compare, acc.dtype)
        _, d_s = _score_gradients(scores, v, d_out, lse, delta, scale)
        acc[...] += _dot(k[...], d_s.astype(k.dtype), (0, 0), acc.dtype)

    _visit(scalars, tile, key_tile, True, add_tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        d_q[...] = acc[...].astype(d_q.dtype)


def _key_gradients(inputs, lse, delta, d_out, bounds, interpret):
    """d_k and d_v [B, K, Tk, d]."""
    specs = _key_major_specs(inputs, bounds)
    scratch = pltpu.VMEM((bounds.block_k, inputs.k.shape[-1]), lse.dtype)
    return pl.pallas_call(
        functools.partial(_key_gradients_kernel, specs.scale, bounds.query_tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(_Scalars._fields),
            grid=specs.grid,
            in_specs=[*specs.inputs, specs.row, specs.row, specs.queries],
            out_specs=[specs.keys, specs.keys],
            scratch_shapes=[scratch, scratch],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (inputs.k, inputs.v)],
        compiler_params=_sequential(last=2, rank=5),
        interpret=interpret,
    )(*_scalars(bounds), *inputs, lse, delta, d_out)


def _key_gradients_kernel(scale, query_tiles, *refs):
    scalars, refs = _Scalars(*refs[:6]), refs[6:]
    q, k, v, start, end, lse, delta, d_out, d_k, d_v, acc_k, acc_v = refs
    row, key_tile, group, step = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    walk = row * pl.num_programs(2) + key_tile
    in_walk = scalars.query_lo[walk] + step < scalars.query_hi[walk]
    tile = row * query_tiles + _query_index(scalars, walk, step)

    @pl.when((group == 0) & (step == 0))
    def _():
        acc_k[...] = jnp.zeros_like(acc_k)
        acc_v[...] = jnp.zeros_like(acc_v)

    def add_tile(compare):
        scores = _scores(q, k, start, end, key_tile, scale, compare, acc_k.dtype)
        p, d_s = _score_gradients(scores, v, d_out, lse, delta, scale)
        acc_v[...] += _dot(p.astype(q.dtype), d_out[...], (1, 0), acc_v.dtype)
        acc_k[...] += _dot(d_s.astype(q.dtype), q[...], (1, 0), acc_k.dtype)

    _visit(scalars, tile, key_tile, in_walk, add_tile)

    @pl.when((group == pl.num_programs(3) - 1) & (step == pl.num_programs(4) - 1))
    def _():
        d_k[...] = acc_k[...].astype(d_k.dtype)
        d_v[...] = acc_v[...].astype(d_v.dtype)


def _visit(scalars, tile, key_tile, in_walk, compute):
    """Call compute(compare) if tile x key_tile holds anything visible, without masks if all is."""
    needed = in_walk & (scalars.key_lo[tile] <= key_tile) & (key_tile < scalars.key_hi[tile])
    full = (scalars.full_lo[tile] <= key_tile) & (key_tile < scalars.full_hi[tile])
    pl.when(needed & full)(functools.partial(compute, False))
    pl.when(needed & ~full)(functools.partial(compute, True))


def _scores(q, k, start, end, key_tile, scale, compare, dtype):
    """Scaled scores [block_k, block_q], `MASKED` where the query does not see the key."""
    scores = _dot(k[...], q[...], (1, 1), dtype) * scale
    if not compare:
        return scores
    first_key = key_tile * scores.shape[0]
    position = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    visible = (start[...] <= position) & (position < end[...])
    return jnp.where(visible, scores, MASKED)


def _score_gradients(scores, v, d_out, lse, delta, scale):
    """Probabilities and the gradient of the unscaled scores, both [block_k, block_q]."""
    p = jnp.exp(scores - lse[...])
    d_p = _dot(v[...], d_out[...], (1, 1), p.dtype)
    return p, p * (d_p - delta[...]) * scale


def _dot(x, y, contract, dtype):
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=dtype)


class _Specs(NamedTuple):
    """A grid and what one of its steps sees of each kind of array."""

    grid: tuple
    scale: float
    queries: pl.BlockSpec  # [block_q, d] of [B, H, Tq, d]
    keys: pl.BlockSpec  # [block_k, d] of [B, K, Tk, d]
    ranges: pl.BlockSpec  # [1, block_q] of [B, 1, Tq]
    row: pl.BlockSpec  # [1, block_q] of [B, H, 1, Tq]
    columns: pl.BlockSpec | None  # [d, block_q] of [B, H, d, Tq]

    @property
    def inputs(self):
        return [self.queries, self.keys, self.keys, self.ranges, self.ranges]


def _query_major_specs(inputs, bounds):
    """Grid (row, head, query tile, step of its walk over key tiles)."""
    batch, heads, _, dim = inputs.q.shape
    group = heads // inputs.k.shape[1]
    query_tiles = bounds.query_tiles

    def key_block(b, h, i, step, *scalars):
        # Not `//`: its case for negative numbers is lowered by the kind of TPU at hand, and there
        # is none when compiling ahead of time.
        kv_head = jax.lax.div(h, np.int32(group))
        return b, kv_head, _key_index(_Scalars(*scalars), b * query_tiles + i, step), 0

    return _Specs(
        grid=(batch, heads, query_tiles, _longest_walk(bounds.key_lo, bounds.key_hi)),
        scale=1 / math.sqrt(dim),
        queries=pl.BlockSpec((None, None, bounds.block_q, dim), lambda b, h, i, *_: (b, h, i, 0)),
        keys=pl.BlockSpec((None, None, bounds.block_k, dim), key_block),
        ranges=pl.BlockSpec((None, 1, bounds.block_q), lambda b, h, i, *_: (b, 0, i)),
        row=pl.BlockSpec((None, None, 1, bounds.block_q), lambda b, h, i, *_: (b, h, 0, i)),
        columns=pl.BlockSpec((None, None, dim, bounds.block_q), lambda b, h, i, *_: (b, h, 0, i)),
    )


def _key_major_specs(inputs, bounds):
    """Grid (row, key head, key tile, query head of the group, step of its walk)."""
    batch, kv_heads, _, dim = inputs.k.shape
    group = inputs.q.shape[1] // kv_heads
    key_tiles = bounds.key_tiles

    def query_block(b, j, step, scalars):
        return _query_index(_Scalars(*scalars), b * key_tiles + j, step)

    def queries(b, h, j, g, step, *scalars):
        return b, h * group + g, query_block(b, j, step, scalars), 0

    def row(b, h, j, g, step, *scalars):
        return b, h * group + g, 0, query_block(b, j, step, scalars)

    def ranges(b, h, j, g, step, *scalars):
        return b, 0, query_block(b, j, step, scalars)

    return _Specs(
        grid=(batch, kv_heads, key_tiles, group, _longest_walk(bounds.query_lo, bounds.query_hi)),
        scale=1 / math.sqrt(dim),
        queries=pl.BlockSpec((None, None, bounds.block_q, dim), queries),
        keys=pl.BlockSpec((None, None, bounds.block_k, dim), lambda b, h, j, *_: (b, h, j, 0)),
        ranges=pl.BlockSpec((None, 1, bounds.block_q), ranges),
        row=pl.BlockSpec((None, None, 1, bounds.block_q), row),
        columns=None,
    )


def _key_index(scalars, tile, step):
    """Key tile of a step; past the end of the walk the last one again, which moves no data."""
    last = jnp.maximum(scalars.key_hi[tile] - 1, 0)
    return jnp.minimum(scalars.key_lo[tile] + step, last)


def _query_index(scalars, tile, step):
    last = jnp.maximum(scalars.query_hi[tile] - 1, 0)
    return jnp.minimum(scalars.query_lo[tile] + step, last)


def _longest_walk(lo, hi):
    """Steps of the grid's last axis: at least one, which writes the zeros of unseen tiles."""
    return jnp.maximum(jnp.max(hi - lo), 1)


def _scalars(bounds):
    fields = (getattr(bounds, name) for name in _Scalars._fields)
    return _Scalars(*(x.ravel() for x in fields))


def _sequential(*, last, rank):
    """The `last` axes of the grid accumulate in scratch; the rest may run on any core."""
    semantics = ("parallel",) * (rank - last) + ("arbitrary",) * last
    return pltpu.CompilerParams(dimension_semantics=semantics)
