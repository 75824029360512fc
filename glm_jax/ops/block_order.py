"""Which of the devices that share a row has which of its slots.

Every device has the keys of the whole row, gathered, so its queries may come from anywhere in it.
A row is cut into blocks, and each device gets as many blocks as any other, chosen so that together
their queries see as many keys: split in order, a row of long documents gives one device twice the
work of another. Gathered keys are how Llama 3 was trained (arXiv 2407.21783, section 3.3.2).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

_SWAPS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """An arrangement of the blocks of each row, int32 [B, num_blocks] both ways.

    Device p of P has the places p * num_blocks / P up to those of the next, its blocks in the order
    of the row: then the queries that see a key lie side by side on it too.
    """

    blocks: jax.Array  # the block of the row that lies in each place
    places: jax.Array  # the place of each block of the row

    @property
    def num_blocks(self) -> int:
        return self.blocks.shape[1]

    def arrange(self, x: jax.Array) -> jax.Array:
        """Slots [B, T, ...] as in the row, moved to their places."""
        return _move_blocks(x, self.blocks, self.places)

    def restore(self, x: jax.Array) -> jax.Array:
        """The inverse of `arrange`."""
        return _move_blocks(x, self.places, self.blocks)


def balanced_order(kv_start: jax.Array, kv_end: jax.Array, *, parts: int, block: int) -> BlockOrder:
    """Blocks of `block` slots dealt out to `parts` devices, each row on its own.

    The block whose queries see most keys goes to the device with least so far, of those that do not
    have all their blocks yet, then the next (longest processing time first; Graham 1969,
    doi:10.1137/0117039). Then the device with most swaps a block with another, a few times.

    Args:
      kv_start, kv_end: int32 [B, T], T a multiple of parts * block.
    """
    visible = jnp.maximum(kv_end - kv_start, 0).astype(jnp.float32)
    work = visible.reshape(visible.shape[0], -1, block).sum(axis=-1)
    blocks = jax.vmap(lambda row: jnp.sort(_even_out(row, _deal_out(row, parts))).ravel())(work)
    return BlockOrder(blocks, jnp.argsort(blocks, axis=1).astype(jnp.int32))


def _deal_out(work: jax.Array, parts: int) -> jax.Array:
    """Blocks of one row [parts, blocks of a part], by their work [num_blocks]."""
    heaviest_first = jnp.argsort(-work, stable=True)
    capacity = work.shape[0] // parts

    def give(step, carry):
        load, count, owner = carry
        block = heaviest_first[step]
        part = jnp.argmin(jnp.where(count < capacity, load, jnp.inf))
        return load.at[part].add(work[block]), count.at[part].add(1), owner.at[block].set(part)

    nothing = jnp.zeros(parts, jnp.float32), jnp.zeros(parts, jnp.int32)
    init = *nothing, jnp.zeros(work.shape, jnp.int32)
    owner = jax.lax.fori_loop(0, work.shape[0], give, init)[2]
    return jnp.argsort(owner).reshape(parts, capacity).astype(jnp.int32)


def _even_out(work: jax.Array, blocks: jax.Array) -> jax.Array:
    """The same blocks after the swaps that lower the largest sum of work most."""
    parts = jnp.arange(blocks.shape[0])

    def swap(_, blocks):
        own = work[blocks]
        load = own.sum(axis=1)
        most = jnp.argmax(load)
        given = own[most][:, None, None] - own  # [given block, to part, for block]
        larger = jnp.maximum(load[most] - given, load[:, None] + given)
        larger = jnp.where((parts == most)[:, None], jnp.inf, larger)
        give, part, take = jnp.unravel_index(jnp.argmin(larger), larger.shape)
        swapped = blocks.at[most, give].set(blocks[part, take])
        swapped = swapped.at[part, take].set(blocks[most, give])
        return jnp.where(larger.min() < load[most], swapped, blocks)

    return jax.lax.fori_loop(0, _SWAPS, swap, blocks)


@jax.custom_vjp
def _move_blocks(x: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """Block i of the result is block source[i] of x, in each row; `target` is the inverse."""
    del target
    rows, num_blocks = source.shape
    blocks = x.reshape(rows, num_blocks, -1, *x.shape[2:])
    return jax.vmap(lambda row, index: row[index])(blocks, source).reshape(x.shape)


def _move_blocks_fwd(x, source, target):
    return _move_blocks(x, source, target), (source, target)


def _move_blocks_bwd(orders, gradient):
    # The compiler knows only that indices may repeat, and would add block to block.
    source, target = orders
    return _move_blocks(gradient, target, source), None, None


_move_blocks.defvjp(_move_blocks_fwd, _move_blocks_bwd)
