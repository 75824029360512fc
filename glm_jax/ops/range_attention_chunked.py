"""Range attention in plain JAX: online softmax over the key tiles that somebody sees.

The forward pass is FlashAttention's recurrence (Dao et al. 2022, arXiv 2205.14135), the backward
pass its recomputation from the output and the log-sum-exp. Query tiles are scanned; for each, a
loop with a traced trip count visits its key tiles. Every row of the batch walks its own tiles
(step s of row b is tile key_lo[b] + s), so the trip count is the longest walk in the batch and not
the union of the walks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from glm_jax.ops.block_bounds import BlockBounds, pad_axis

# Finite, so that nothing is inf - inf, and so far apart that exp(MASKED - FLOOR) is exactly 0.
MASKED, FLOOR = -1e30, -1e20


class _QueryTiles(NamedTuple):
    """What a step of the scan over query tiles reads; nq in front, then per tile:"""

    start: jax.Array  # int32 [B, 1, 1, block_q, 1]
    end: jax.Array
    key_lo: jax.Array  # int32 [B]
    key_hi: jax.Array
    q: jax.Array  # [B, K, G, block_q, d]


def chunked_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_start: jax.Array,
    kv_end: jax.Array,
    bounds: BlockBounds,
) -> jax.Array:
    """Shapes and meaning as `range_attention`; scores are accumulated in float32 or wider."""
    return _attend(q, k, v, kv_start, kv_end, bounds)


@jax.custom_vjp
def _attend(q, k, v, kv_start, kv_end, bounds):
    return _forward(q, k, v, kv_start, kv_end, bounds)[0]


def _attend_fwd(q, k, v, kv_start, kv_end, bounds):
    out, lse = _forward(q, k, v, kv_start, kv_end, bounds)
    # A remat policy that saves these two names does not repeat the forward pass.
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, kv_start, kv_end, bounds, out, lse)


def _attend_bwd(residuals, d_out):
    q, k, v, kv_start, kv_end, bounds, out, lse = residuals
    d_q, d_k, d_v = _backward(q, k, v, kv_start, kv_end, bounds, out, lse, d_out)
    return d_q, d_k, d_v, None, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(q, k, v, kv_start, kv_end, bounds):
    """out [B, Tq, H, d] in q.dtype and lse [nq, B, K, G, block_q]; lse of an empty range is 0."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    keys, values = _key_tiles(k, bounds.block_k), _key_tiles(v, bounds.block_k)

    def query_tile(tile: _QueryTiles):
        def key_step(step, carry):
            top, total, acc = carry
            index = _key_tile_index(tile, step)
            scores = _scores(tile, _take(keys, index), step, bounds.block_k, dtype)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            p = jnp.exp(scores - new_top[..., None])
            decay = jnp.exp(top - new_top)
            part = _einsum("bkgqj,bkjd->bkgqd", p.astype(v.dtype), _take(values, index), dtype)
            return new_top, total * decay + p.sum(-1), acc * decay[..., None] + part

        row = tile.q.shape[:-1]
        init = (jnp.full(row, FLOOR, dtype), jnp.zeros(row, dtype), jnp.zeros(tile.q.shape, dtype))
        top, total, acc = _walk_key_tiles(tile, keys.shape[1], key_step, init)
        seen = total > 0
        total = jnp.where(seen, total, 1)
        return (acc / total[..., None]).astype(q.dtype), jnp.where(seen, top + jnp.log(total), 0)

    tiles = _query_tiles(q, kv_start, kv_end, k.shape[2], bounds)
    _, (out, lse) = _scan(lambda _, tile: (None, query_tile(tile)), None, tiles)
    return _join_query_tiles(out, q.shape), lse


def _backward(q, k, v, kv_start, kv_end, bounds, out, lse, d_out):
    dtype = lse.dtype
    kv_heads = k.shape[2]
    keys, values = _key_tiles(k, bounds.block_k), _key_tiles(v, bounds.block_k)
    scale = 1 / math.sqrt(q.shape[-1])

    def query_tile(carry, xs):
        tile, lse_tile, delta, d_out_tile = xs

        def key_step(step, carry):
            d_q, d_keys, d_values = carry
            index = _key_tile_index(tile, step)
            key = _take(keys, index)
            scores = _scores(tile, key, step, bounds.block_k, dtype)
            p = jnp.exp(scores - lse_tile[..., None])
            d_p = _einsum("bkgqd,bkjd->bkgqj", d_out_tile, _take(values, index), dtype)
            d_s = (p * (d_p - delta[..., None]) * scale).astype(q.dtype)
            d_value = _einsum("bkgqj,bkgqd->bkjd", p.astype(d_out.dtype), d_out_tile, dtype)
            d_key = _einsum("bkgqj,bkgqd->bkjd", d_s, tile.q, dtype)
            d_q += _einsum("bkgqj,bkjd->bkgqd", d_s, key, dtype)
            return d_q, _add_at(d_keys, index, d_key), _add_at(d_values, index, d_value)

        d_q, d_keys, d_values = _walk_key_tiles(
            tile, keys.shape[1], key_step, (jnp.zeros(tile.q.shape, dtype), *carry)
        )
        return (d_keys, d_values), d_q.astype(q.dtype)

    d_out = d_out.astype(q.dtype)
    delta = jnp.sum(d_out.astype(dtype) * out.astype(dtype), axis=-1, keepdims=True)
    delta, d_out = (_split_query_tiles(x, kv_heads, bounds.block_q) for x in (delta, d_out))
    tiles = _query_tiles(q, kv_start, kv_end, kv_heads, bounds)
    init = jnp.zeros(keys.shape, dtype), jnp.zeros(values.shape, dtype)
    (d_keys, d_values), d_q = _scan(query_tile, init, (tiles, lse, delta[..., 0], d_out))
    d_k, d_v = _join_key_tiles(d_keys, k), _join_key_tiles(d_values, v)
    return _join_query_tiles(d_q, q.shape), d_k, d_v


def _scores(tile, key, step, block_k, dtype):
    """Scaled scores [B, K, G, block_q, block_k], `MASKED` where the query does not see the key.

    A row whose walk is over reads a tile again, at key positions past every range: all masked.
    """
    scores = _einsum("bkgqd,bkjd->bkgqj", tile.q, key, dtype) / math.sqrt(key.shape[-1])
    first_key = ((tile.key_lo + step) * block_k)[:, None, None, None, None]
    position = first_key + jnp.arange(block_k)
    visible = (tile.start <= position) & (position < tile.end)
    return jnp.where(visible, scores, MASKED)


def _walk_key_tiles(tile, num_key_tiles, key_step, init):
    if num_key_tiles == 1:  # a short sequence: one tile needs no loop
        return key_step(0, init)
    return jax.lax.fori_loop(0, jnp.max(tile.key_hi - tile.key_lo), key_step, init)


def _key_tile_index(tile, step):
    return jnp.clip(tile.key_lo + step, 0, jnp.maximum(tile.key_hi - 1, 0))


def _scan(body, init, xs):
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.scan(body, init, xs)
    carry, ys = body(init, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda y: y[None], ys)


def _query_tiles(q, kv_start, kv_end, kv_heads, bounds):
    start, end = (
        _split_query_tiles(x[..., None, None], 1, bounds.block_q) for x in (kv_start, kv_end)
    )
    q = _split_query_tiles(q, kv_heads, bounds.block_q)
    return _QueryTiles(start, end, bounds.key_lo.T, bounds.key_hi.T, q)


def _split_query_tiles(x, kv_heads, block):
    """[B, T, H, d] -> [nq, B, K, G, block, d]."""
    x = pad_axis(x, 1, block)
    batch, length, heads, dim = x.shape
    x = x.reshape(batch, length // block, block, kv_heads, heads // kv_heads, dim)
    return x.transpose(1, 0, 3, 4, 2, 5)


def _join_query_tiles(x, shape):
    """[nq, B, K, G, block, d] -> [B, T, H, d]."""
    batch, length, heads, dim = shape
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, dim)[:, :length]


def _key_tiles(x, block):
    """[B, T, K, d] -> [B, nk, K, block, d]."""
    x = pad_axis(x, 1, block)
    batch, length, heads, dim = x.shape
    return x.reshape(batch, length // block, block, heads, dim).swapaxes(2, 3)


def _join_key_tiles(x, like):
    batch, length, heads, dim = like.shape
    return x.swapaxes(2, 3).reshape(batch, -1, heads, dim)[:, :length].astype(like.dtype)


def _take(tiles, index):
    """[B, nk, ...] and int32 [B] -> [B, ...]: each row its own tile."""
    if tiles.shape[1] == 1:
        return tiles[:, 0]
    return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))(
        tiles, index
    )


def _add_at(tiles, index, update):
    if tiles.shape[1] == 1:
        return tiles + update[:, None]
    return jax.vmap(lambda row, i, x: row.at[i].add(x))(tiles, index, update)


def _einsum(spec, x, y, dtype):
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)
