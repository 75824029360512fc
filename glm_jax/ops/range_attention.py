"""Attention in which query i sees the keys kv_start[i] <= j < kv_end[i].

Two integers per token say causal, bidirectional, prefix-LM and blank-infilling attention, padding,
and any packing of them in one row. The score matrix is cut into tiles, and tiles in which nobody
sees anything are skipped, forward and backward.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from glm_jax.errors import UserError
from glm_jax.ops.block_bounds import BlockBounds, compute_bounds
from glm_jax.ops.block_order import BlockOrder, balanced_order
from glm_jax.ops.mesh_axes import check_divisible
from glm_jax.ops.range_attention_chunked import chunked_attention
from glm_jax.ops.range_attention_tokamax import tokamax_attention
from glm_jax.ops.range_attention_tpu import tpu_attention
from glm_jax.ops.tile_sizes import order_block, split_tile_sizes, tile_sizes

BACKENDS = ("auto", "reference", "chunked", "tpu", "gpu", "cudnn", "tokamax")
_NEEDS_PLATFORM = {"tpu": "tpu", "gpu": "gpu", "cudnn": "gpu", "tokamax": "gpu"}
_WITHOUT_BOUNDS = ("reference", "cudnn", "tokamax")
_HOPPER = "9.0"  # compute capability

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
    order: BlockOrder | None = None,
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
    sequence_axis: str = "context",
    heads_axis: str | None = "model",
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v over each query's own range of keys.

    Args:
      q: [B, Tq, H, d], any float dtype.
      k, v: [B, Tk, K, d], dtype of q; H is a multiple of K, and query heads h * H/K .. (h+1) * H/K
        share key head h (grouped queries).
      kv_start, kv_end: int32 [B, Tq] with 0 <= kv_start and kv_end <= Tk, which is checked where
        rows are made and not here. A query with kv_start >= kv_end sees nothing: its output and
        its gradient are zero.
      backend: one of `BACKENDS`. `auto` takes `resolve_backend`'s choice, except `chunked` where
        that does not take this dtype or head size, and `reference` for a single query (decoding),
        which has no tiles to skip.
      bounds: `block_bounds(...)` with the same backend and order; None computes them here.
      order: `context_order(...)`: queries, keys and ranges lie in its places, split over
        `sequence_axis`, while ranges still count keys as they are in the row. Keys and values are
        gathered. None: slots are as in the row, which every device has whole.
      mesh: None or a mesh of one device: a plain call, which the compiler partitions as it likes.
        Otherwise every device works on its own rows, slots and heads, split over `batch_axes`,
        `sequence_axis` and `heads_axis`; a key head is repeated where that axis is a multiple of
        their number.

    Returns:
      [B, Tq, H, d], dtype of q. The softmax is in float32 (float64 for float64 inputs). Reverse
      mode only, except for `reference`.

    Raises:
      UserError: the backend cannot run on this device or these shapes; B, Tq, H or K does not
        divide over the mesh.
    """
    if backend == "auto" and q.shape[1] == 1:
        backend, bounds = "reference", None
    automatic = backend == "auto"
    backend = resolve_backend(backend, *_target(mesh))
    if automatic and backend == "gpu" and _not_for_gpu(q.dtype, q.shape[-1]):
        backend = "chunked"
    if bounds is None:
        bounds = _bounds(
            kv_start, kv_end, k.shape[1], backend, order, mesh, batch_axes, sequence_axis
        )
    attend = functools.partial(_attend, backend)
    if mesh is None or mesh.size == 1:
        return attend(q, k, v, kv_start, kv_end, bounds)

    heads_axes = (heads_axis,) if heads_axis else ()
    check_divisible(mesh, batch_axes, q.shape[0], "batch size")
    check_divisible(mesh, heads_axes, q.shape[2], "number of attention heads")
    if heads_axis and mesh.shape[heads_axis] % k.shape[2] == 0:
        k, v = (jnp.repeat(x, mesh.shape[heads_axis] // k.shape[2], axis=2) for x in (k, v))
    check_divisible(mesh, heads_axes, k.shape[2], "number of key heads")
    # An axis of one device may be named, and then nothing is summed over it.
    is_split = order is not None or mesh.shape.get(sequence_axis) == 1
    sequence = sequence_axis if is_split else None
    rows, slots = PartitionSpec(tuple(batch_axes)), PartitionSpec(tuple(batch_axes), sequence)
    heads = PartitionSpec(tuple(batch_axes), sequence, heads_axis)

    def attend_own_queries(q, k, v, kv_start, kv_end, bounds, order):
        if order is not None:
            k, v = (_whole_rows(x, order, sequence_axis) for x in (k, v))
        return attend(q, k, v, kv_start, kv_end, bounds)

    return jax.shard_map(
        attend_own_queries,
        mesh=mesh,
        in_specs=(heads, heads, heads, slots, slots, slots, rows),
        out_specs=heads,
        check_vma=False,  # nothing but the keys crosses devices; loops' carries start untyped
    )(q, k, v, kv_start, kv_end, bounds, order)


def block_bounds(
    kv_start: jax.Array,
    kv_end: jax.Array,
    num_keys: int,
    *,
    backend: str = "auto",
    order: BlockOrder | None = None,
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
    sequence_axis: str = "context",
) -> BlockBounds | None:
    """What `range_attention(bounds=)` takes, for kv_start and kv_end int32 [B, Tq].

    Compute it once per step, outside the loop over layers. None for backends that skip nothing.
    With an `order` the key tiles' fields have one part for each device of `sequence_axis`.
    """
    backend = resolve_backend(backend, *_target(mesh))
    return _bounds(kv_start, kv_end, num_keys, backend, order, mesh, batch_axes, sequence_axis)


def context_order(
    kv_start: jax.Array,
    kv_end: jax.Array,
    *,
    backend: str = "auto",
    mesh: Mesh | None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
    sequence_axis: str = "context",
) -> BlockOrder | None:
    """How rows [B, T] lie on the devices of `sequence_axis`; None where each has whole rows.

    Arrange every array of slots by it, once per step, and hand it to `range_attention`.

    Raises:
      UserError: T does not divide over the axis.
    """
    if mesh is None or mesh.shape.get(sequence_axis, 1) == 1:
        return None
    length, parts = kv_start.shape[1], mesh.shape[sequence_axis]
    check_divisible(mesh, (sequence_axis,), length, "row length")
    block = order_block(resolve_backend(backend, *_target(mesh)), length // parts)
    rows = PartitionSpec(tuple(batch_axes))
    return jax.shard_map(
        functools.partial(balanced_order, parts=parts, block=block),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )(kv_start, kv_end)


@functools.cache
def resolve_backend(
    name: str, platform: str | None = None, compute_capability: str | None = None
) -> str:
    """The backend that `name` means on `platform` ('cpu', 'gpu', 'tpu'; None: this process's own).

    `compute_capability` is a GPU's, as '9.0'. Logs the choice once. Raises UserError for an unknown
    name or one that cannot run there.
    """
    if platform is None:
        platform, compute_capability = _target(None)
    if name not in BACKENDS:
        raise UserError(f"attention backend {name!r} is not one of: {', '.join(BACKENDS)}")
    needed = _NEEDS_PLATFORM.get(name, platform)
    if needed != platform:
        raise UserError(
            f"attention backend {name!r} needs a {needed} and this runs on {platform}: use 'auto'"
        )
    problem = _gpu_problem(compute_capability) if platform == "gpu" else None
    if name == "gpu" and problem:
        raise UserError(f"attention backend 'gpu' {problem}: use 'auto'")
    if name == "tokamax" and not importlib.util.find_spec("tokamax"):
        raise UserError("attention backend 'tokamax' needs its package: pip install tokamax")
    if name != "auto":
        return name
    backend, reason = {
        "cpu": ("chunked", "plain JAX is the fastest here that skips tiles"),
        "tpu": ("tpu", "the Pallas kernel skips tiles and their memory traffic"),
        "gpu": ("gpu", "the Pallas kernel for Hopper skips tiles and their memory traffic"),
    }.get(platform, ("chunked", "no kernel for this platform"))
    if problem:
        backend, reason = "chunked", f"'gpu' {problem}"
    _log.info("range attention on %s: %s (%s)", platform, backend, reason)
    return backend


def _target(mesh):
    """Platform and compute capability (None but for GPUs) of the devices that will run this.

    A mesh may describe devices that this process does not have (ahead-of-time compilation).
    """
    device = mesh.devices.flat[0] if mesh is not None else jax.devices()[0]
    return device.platform, getattr(device, "compute_capability", None)


def _gpu_problem(compute_capability):
    """Why the kernels for Hopper cannot run, or None if they can."""
    if compute_capability != _HOPPER:
        return (
            f"needs a Hopper GPU (compute capability {_HOPPER}) and this one has "
            f"{compute_capability}"
        )
    try:
        _gpu_kernels()
    except ImportError as error:
        return f"needs a jax with Pallas for Mosaic GPU ({str(error).splitlines()[0]})"
    return None


def _gpu_kernels():
    """Imported where they run: not every jaxlib has Mosaic GPU."""
    from glm_jax.ops import range_attention_gpu

    return range_attention_gpu


@functools.cache
def _not_for_gpu(dtype, head_size):
    """Whether the GPU kernels do not take these arrays; says once why."""
    reason = _gpu_kernels().unsupported(dtype, head_size)
    if reason:
        _log.info("range attention on gpu: chunked ('gpu' %s)", reason)
    return reason is not None


def _bounds(kv_start, kv_end, num_keys, backend, order, mesh, batch_axes, sequence_axis):
    if backend in _WITHOUT_BOUNDS:
        return None
    if order is None:
        block_q, block_k = tile_sizes(backend, kv_start.shape[1], num_keys)
        return compute_bounds(kv_start, kv_end, num_keys, block_q=block_q, block_k=block_k)
    num_queries = kv_start.shape[1] // mesh.shape[sequence_axis]
    block = kv_start.shape[1] // order.num_blocks
    block_q, block_k = split_tile_sizes(backend, num_queries, num_keys, block)
    slots = PartitionSpec(tuple(batch_axes), sequence_axis)
    return jax.shard_map(
        functools.partial(compute_bounds, num_keys=num_keys, block_q=block_q, block_k=block_k),
        mesh=mesh,
        in_specs=(slots, slots),
        out_specs=slots,
        check_vma=False,
    )(kv_start, kv_end)


def _whole_rows(x, order, sequence_axis):
    """Keys [B, T / P, K, d] of this device -> those of its rows [B, T, K, d], in their order."""
    return order.restore(jax.lax.all_gather(x, sequence_axis, axis=1, tiled=True))


def _attend(backend, q, k, v, kv_start, kv_end, bounds):
    if backend == "reference":
        return _reference(q, k, v, kv_start, kv_end)
    if backend == "cudnn":
        return _cudnn(q, k, v, kv_start, kv_end)
    if backend == "tokamax":
        return tokamax_attention(q, k, v, kv_start, kv_end)
    if backend == "gpu":
        return _gpu_kernels().gpu_attention(q, k, v, kv_start, kv_end, bounds)
    attention = tpu_attention if backend == "tpu" else chunked_attention
    return attention(q, k, v, kv_start, kv_end, bounds)


def _reference(q, k, v, kv_start, kv_end):
    """The definition, with the whole score matrix in memory: what the others are tested against."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    batch, num_queries, heads, dim = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, num_queries, kv_heads, heads // kv_heads, dim).astype(dtype)
    scores = jnp.einsum("bqkgd,bjkd->bkgqj", grouped, k.astype(dtype)) / math.sqrt(dim)
    visible = _visible(kv_start, kv_end, k.shape[1])[:, None, None]
    # An empty range has no largest score; a finite stand-in keeps its gradient zero and not NaN.
    top = jnp.max(scores, axis=-1, keepdims=True, where=visible, initial=-1e30)
    weights = jnp.exp(jnp.where(visible, scores - jax.lax.stop_gradient(top), -1e30))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    out = jnp.einsum("bkgqj,bjkd->bqkgd", weights, v.astype(dtype))
    return out.reshape(q.shape).astype(q.dtype)


def _cudnn(q, k, v, kv_start, kv_end):
    """cuDNN's fused attention with the mask as a dense bias: no tile is skipped."""
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8:
        raise UserError(
            f"attention backend 'cudnn' needs float16 or bfloat16 and a head size that is a "
            f"multiple of 8, not {q.dtype} and {q.shape[-1]}: use 'auto'"
        )
    mask = _visible(kv_start, kv_end, k.shape[1])[:, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    # cuDNN spreads a query that sees nothing over all keys.
    return jnp.where((kv_start < kv_end)[..., None, None], out, 0)


def _visible(kv_start, kv_end, num_keys):
    position = jnp.arange(num_keys)
    return (kv_start[..., None] <= position) & (position < kv_end[..., None])
