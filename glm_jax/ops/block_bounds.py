"""Which tiles of the score matrix hold anything visible, from the ranges alone.

A tile is block_q queries by block_k keys. The bounds depend on the batch and not on the layer, so
a training step computes them once and every layer, forward and backward, reads them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockBounds:
    """Per row and tile, all int32: nq = ceil(Tq / block_q) query tiles, nk key tiles.

    Query tile i needs the key tiles key_lo[i] <= j < key_hi[i]. Of these, full_lo[i] <= j <
    full_hi[i] are full: every query of the tile sees every key, so no comparison is needed. From
    full_lo[i] on no range has yet to start, so there the ends alone decide; before full_hi[i] none
    has ended, so there the starts alone do. Key tile j is needed by no query tile outside
    query_lo[j] <= i < query_hi[j]. A tile that nothing sees has equal bounds, 0 and 0.
    """

    key_lo: jax.Array  # [B, nq]
    key_hi: jax.Array  # [B, nq]
    full_lo: jax.Array  # [B, nq]
    full_hi: jax.Array  # [B, nq]
    query_lo: jax.Array  # [B, nk]
    query_hi: jax.Array  # [B, nk]
    block_q: int = dataclasses.field(metadata={"static": True})
    block_k: int = dataclasses.field(metadata={"static": True})

    @property
    def query_tiles(self) -> int:
        return self.key_lo.shape[-1]

    @property
    def key_tiles(self) -> int:
        return self.query_lo.shape[-1]


def compute_bounds(
    kv_start: jax.Array, kv_end: jax.Array, num_keys: int, *, block_q: int, block_k: int
) -> BlockBounds:
    """Bounds of the ranges kv_start, kv_end (int32 [B, Tq]) over `num_keys` keys."""
    start, end = (_tiles(x, block_q) for x in (kv_start, kv_end))
    visible = start < end
    lo = jnp.min(start, axis=-1, where=visible, initial=num_keys) // block_k
    hi = _ceil_div(jnp.max(end, axis=-1, where=visible, initial=0), block_k)
    lo = jnp.minimum(lo, hi)
    # An empty range ends at 0, so a tile that holds one is never full.
    full_lo = _ceil_div(jnp.max(start, axis=-1), block_k)
    full_hi = jnp.min(jnp.where(visible, end, 0), axis=-1) // block_k

    key_tile = jnp.arange(_ceil_div(num_keys, block_k))
    needed = (lo[..., None] <= key_tile) & (key_tile < hi[..., None])  # [B, nq, nk]
    query_tile = jnp.arange(lo.shape[1])[:, None]
    query_hi = jnp.max(jnp.where(needed, query_tile + 1, 0), axis=1)
    query_lo = jnp.min(jnp.where(needed, query_tile, query_hi[:, None]), axis=1)
    bounds = (lo, hi, full_lo, full_hi, query_lo, query_hi)
    return BlockBounds(*(x.astype(jnp.int32) for x in bounds), block_q=block_q, block_k=block_k)


def visited_tiles(bounds: BlockBounds) -> jax.Array:
    """Score tiles a backend that skips per row computes, summed over rows: int32 scalar."""
    return jnp.sum(bounds.key_hi - bounds.key_lo)


def pad_axis(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` with zeros after the end of `axis`, up to a multiple of `multiple`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths) if widths[axis][1] else x


def _tiles(x: jax.Array, block: int) -> jax.Array:
    """[B, T] -> [B, tiles, block]; the queries that pad the last tile have the range [0, 0)."""
    padded = pad_axis(x, 1, block)
    return padded.reshape(x.shape[0], -1, block)


def _ceil_div(x, y):
    return -(-x // y)
