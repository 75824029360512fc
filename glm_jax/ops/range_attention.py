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
from glm_jax.ops.mesh_axes import check_divisible
from glm_jax.ops.range_attention_chunked import chunked_attention
from glm_jax.ops.range_attention_tokamax import tokamax_attention
from glm_jax.ops.range_attention_tpu import tpu_attention

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
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
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
      bounds: `block_bounds(...)` with the same backend; None computes them here.
      mesh: None or a mesh of one device: a plain call, which the compiler partitions as it likes.
        Otherwise every device works on its own rows and heads, split over `batch_axes` and
        `heads_axis`; a key head is repeated where the axis is a multiple of their number.

    Returns:
      [B, Tq, H, d], dtype of q. The softmax is in float32 (float64 for float64 inputs). Reverse
      mode only, except for `reference`.

    Raises:
      UserError: the backend cannot run on this device or these shapes; B, H or K does not divide
        over the mesh.
    """
    if backend == "auto" and q.shape[1] == 1:
        backend, bounds = "reference", None
    automatic = backend == "auto"
    backend = resolve_backend(backend, *_target(mesh))
    if automatic and backend == "gpu" and _not_for_gpu(q.dtype, q.shape[-1]):
        backend = "chunked"
    if bounds is None:
        bounds = _bounds(kv_start, kv_end, k.shape[1], backend)
    attend = functools.partial(_attend, backend)
    if mesh is None or mesh.size == 1:
        return attend(q, k, v, kv_start, kv_end, bounds)

    heads_axes = (heads_axis,) if heads_axis else ()
    check_divisible(mesh, batch_axes, q.shape[0], "batch size")
    check_divisible(mesh, heads_axes, q.shape[2], "number of attention heads")
    if heads_axis and mesh.shape[heads_axis] % k.shape[2] == 0:
        k, v = (jnp.repeat(x, mesh.shape[heads_axis] // k.shape[2], axis=2) for x in (k, v))
    check_divisible(mesh, heads_axes, k.shape[2], "number of key heads")
    rows = PartitionSpec(tuple(batch_axes))
    heads = PartitionSpec(tuple(batch_axes), None, heads_axis)
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(heads, heads, heads, rows, rows, rows),
        out_specs=heads,
        check_vma=False,  # nothing here crosses devices, and the loops' carries start untyped
    )(q, k, v, kv_start, kv_end, bounds)


def block_bounds(
    kv_start: jax.Array,
    kv_end: jax.Array,
    num_keys: int,
    *,
    backend: str = "auto",
    mesh: Mesh | None = None,
) -> BlockBounds | None:
    """What `range_attention(bounds=)` takes, for kv_start and kv_end int32 [B, Tq].

    Compute it once per step, outside the loop over layers. None for backends that skip nothing.
    """
    return _bounds(kv_start, kv_end, num_keys, resolve_backend(backend, *_target(mesh)))


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


def _bounds(kv_start, kv_end, num_keys, backend):
    if backend in _WITHOUT_BOUNDS:
        return None
    block = {"tpu": _tpu_block, "gpu": _gpu_block}.get(backend, _chunked_block)
    return compute_bounds(
        kv_start, kv_end, num_keys, block_q=block(kv_start.shape[1]), block_k=block(num_keys)
    )


def _chunked_block(length):
    """One tile up to 256, then even tiles of at most 128: the fastest measured on CPU."""
    return length if length <= 256 else _even_block(length, 128)


def _tpu_block(length):
    """Even tiles of at most 512 in whole vector lanes; a smaller tile costs less than its step."""
    return -(-_even_block(length, 512) // 128) * 128


def _gpu_block(length):
    """Tiles of two warpgroups, of one where that holds everything."""
    return 64 if length <= 64 else 128


def _even_block(length, largest):
    num_tiles = -(-length // largest)
    return -(-length // num_tiles)


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
