"""Attention in which query i sees the keys kv_start[i] <= j < kv_end[i].

Two integers per token describe causal, bidirectional, prefix-LM and blank-infilling attention and
any packing of them in one row. What nobody sees costs nothing: the score matrix is cut into tiles
and the tiles outside every range are skipped, forward and backward.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from glm_jax.errors import UserError
from glm_jax.ops.block_bounds import BlockBounds, compute_bounds
from glm_jax.ops.range_attention_chunked import chunked_attention

BACKENDS = ("auto", "reference", "chunked")
_CHUNKED_BLOCK = 128

_log = logging.getLogger(__name__)


def range_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_start: jax.Array,
    kv_end: jax.Array,
    *,
    backend: str = "auto",
    bounds: BlockBounds | None = None,
) -> jax.Array:
    backend = resolve_backend(backend)
    if backend == "reference":
        return _reference(q, k, v, kv_start, kv_end)
    if bounds is None:
        bounds = block_bounds(kv_start, kv_end, k.shape[1], backend=backend)
    return chunked_attention(q, k, v, kv_start, kv_end, bounds)


def block_bounds(
    kv_start: jax.Array, kv_end: jax.Array, num_keys: int, *, backend: str = "auto"
) -> BlockBounds | None:
    """What `range_attention(bounds=)` takes; compute it once per step, outside the layer scan."""
    if resolve_backend(backend) == "reference":
        return None
    block_q, block_k = (min(_CHUNKED_BLOCK, n) for n in (kv_start.shape[1], num_keys))
    return compute_bounds(kv_start, kv_end, num_keys, block_q=block_q, block_k=block_k)


@functools.cache
def resolve_backend(name: str) -> str:
    """The backend that `name` means on this machine; logs the choice once."""
    if name not in BACKENDS:
        raise UserError(f"attention backend {name!r} is not one of {', '.join(BACKENDS)}")
    return "chunked" if name == "auto" else name


def _reference(q, k, v, kv_start, kv_end):
    """Dense mask, softmax in float32 (float64 for float64 inputs), O(Tq Tk) memory."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    batch, num_queries, heads, dim = q.shape
    num_keys, kv_heads = k.shape[1:3]
    grouped = q.reshape(batch, num_queries, kv_heads, heads // kv_heads, dim).astype(dtype)
    scores = jnp.einsum("bqkgd,bjkd->bkgqj", grouped, k.astype(dtype)) / math.sqrt(dim)
    position = jnp.arange(num_keys)
    visible = (kv_start[..., None] <= position) & (position < kv_end[..., None])
    visible = visible[:, None, None]
    # An empty range has no largest score; a finite stand-in keeps its gradient zero and not NaN.
    top = jnp.max(scores, axis=-1, keepdims=True, where=visible, initial=-1e30)
    weights = jnp.exp(jnp.where(visible, scores - jax.lax.stop_gradient(top), -1e30))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    out = jnp.einsum("bkgqj,bjkd->bqkgd", weights, v.astype(dtype))
    return out.reshape(q.shape).astype(q.dtype)
