"""How large the tiles of the score matrix are for each backend, and the blocks of a split row."""

from __future__ import annotations

import math

_BLOCKS_PER_DEVICE = 16
"""So many blocks on each device balance to about a hundredth."""


def tile_sizes(backend: str, num_queries: int, num_keys: int) -> tuple[int, int]:
    """Queries and keys of a tile."""
    tile = {"tpu": _tpu_tile, "gpu": _gpu_tile}.get(backend, _chunked_tile)
    return tile(num_queries), tile(num_keys)


def split_tile_sizes(backend: str, num_queries: int, num_keys: int, block: int) -> tuple[int, int]:
    """The same on a device that has blocks of `block` queries from anywhere in the row.

    A tile over several of them would visit what lies between them.
    """
    block_q, block_k = tile_sizes(backend, num_queries, num_keys)
    smallest = {"tpu": 128, "gpu": 64}.get(backend, 1)
    return max(min(block_q, block), smallest), block_k


def order_block(backend: str, num_queries: int) -> int:
    """Slots of a block where each device has so many of a row's: a tile, or less to balance."""
    largest = tile_sizes(backend, num_queries, num_queries)[0]
    enough = max(128, num_queries // _BLOCKS_PER_DEVICE)
    return math.gcd(num_queries, 1 << (min(largest, enough).bit_length() - 1))


def _chunked_tile(length: int) -> int:
    """One tile up to 256, then even tiles of at most 128: the fastest measured on CPU."""
    return length if length <= 256 else _even_tile(length, 128)


def _tpu_tile(length: int) -> int:
    """Even tiles of at most 512 in whole vector lanes; a smaller tile costs less than its step."""
    return -(-_even_tile(length, 512) // 128) * 128


def _gpu_tile(length: int) -> int:
    """Tiles of two warpgroups, of one where that holds everything."""
    return 64 if length <= 64 else 128


def _even_tile(length: int, largest: int) -> int:
    num_tiles = -(-length // largest)
    return -(-length // num_tiles)
