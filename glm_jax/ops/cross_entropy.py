"""Cross-entropy of a linear head, computed on target positions only and in chunks.

Targets are compacted to the front and a loop with a traced trip count runs the head over as many
chunks as there are targets: no cap on their number, static shapes, no work where there is no loss.
The gradients are formed in the forward pass while a chunk's logits exist (as in Liger Kernel, Hsu
et al. 2024, arXiv 2410.10989), so no logits are kept or computed twice; the backward pass scales.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from glm_jax.ops.mesh_axes import check_divisible
from glm_jax.ops.weight_exchange import gather, sum_parts

_MAX_CHUNK, _CHUNK_STEP = 1024, 256


class TokenStats(NamedTuple):
    """Per token, without gradient; any sum per group follows from these with no extra pass."""

    nll: jax.Array  # float32 [B, T], nats; 0 where there is no target
    correct: jax.Array  # bool [B, T]: the target is the (first) largest logit


class _Options(NamedTuple):
    """Without a mesh there are no axes."""

    z_loss: float
    chunk_size: int | None
    mesh: Mesh | None
    batch_axes: tuple[str, ...]
    sequence_axis: str | None
    kernel_axes: tuple[str, ...]
    vocab_axis: str | None

    @property
    def token_axes(self) -> tuple[str, ...]:
        return self.batch_axes + _names(self.sequence_axis)


class _Sums(NamedTuple):
    """What the loop over chunks carries; tokens flattened to N. None where not asked for."""

    loss: jax.Array  # []
    nll: jax.Array  # [N]
    correct: jax.Array  # [N]
    d_hidden: jax.Array | None  # [N, D]
    d_kernel: jax.Array | None  # [D, V]


def target_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
    sequence_axis: str | None = None,
    kernel_axes: Sequence[str] = ("fsdp",),
    vocab_axis: str | None = "model",
) -> tuple[jax.Array, TokenStats]:
    """Sum over tokens of weights * (nll + z_loss * logsumexp(logits)^2), logits = hidden @ kernel.

    Args:
      hidden: [B, T, D], any float dtype. Matrix products run in this dtype and accumulate in
        float32 (float64 for float64).
      kernel: [D, V], any float dtype.
      targets: int32 [B, T]; read only where the weight is positive.
      weights: float32 [B, T], >= 0; 0 means that the token has no target.
      z_loss: coefficient of the squared log-partition function (PaLM, arXiv 2204.02311, uses 1e-4).
      chunk_size: tokens whose logits exist at once on a device. None: a sixteenth of the tokens,
        between 256 and 1024. Temporary memory is about 1.25 x chunk_size x V x 4 bytes, V divided
        by the size of `vocab_axis`.
      mesh: None or a mesh of one device: no collectives. Otherwise rows are split over
        `batch_axes`, their tokens over `sequence_axis` and the vocabulary over `vocab_axis`; the
        kernel's D, split over `kernel_axes` (some of those of rows and tokens), is gathered here
        and its gradient scattered back.

    Returns:
      The loss, a float32 scalar that is differentiable (reverse mode) with respect to `hidden` and
      `kernel` only, and `TokenStats`. Without differentiation no gradient is computed.

    Raises:
      UserError: B, T, D or V does not divide over its mesh axes, or the mesh lacks one of them.
      ValueError: one of `kernel_axes` splits neither rows nor tokens.
    """
    if mesh is None or mesh.size == 1:
        options = _Options(z_loss, chunk_size, None, (), None, (), None)
        return _loss(options, hidden, kernel, targets, weights)
    options = _Options(
        z_loss,
        chunk_size,
        mesh,
        tuple(batch_axes),
        sequence_axis,
        tuple(kernel_axes),
        vocab_axis,
    )
    _check_mesh(options, hidden, kernel)
    return _loss(options, hidden, kernel, targets, weights)


def _check_mesh(options, hidden, kernel):
    strangers = set(options.kernel_axes) - set(options.token_axes)
    if strangers:
        raise ValueError(f"kernel_axes {strangers} are not among {options.token_axes} of tokens")
    mesh = options.mesh
    check_divisible(mesh, options.batch_axes, hidden.shape[0], "batch size")
    check_divisible(mesh, _names(options.sequence_axis), hidden.shape[1], "row length")
    check_divisible(mesh, options.kernel_axes, kernel.shape[0], "hidden size")
    check_divisible(mesh, _names(options.vocab_axis), kernel.shape[1], "vocabulary size")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(options, hidden, kernel, targets, weights):
    sums = _sums(options, hidden, kernel, targets, weights, with_gradients=False)
    return sums.loss, TokenStats(sums.nll, sums.correct)


def _loss_fwd(options, hidden, kernel, targets, weights):
    sums = _sums(options, hidden, kernel, targets, weights, with_gradients=True)
    return (sums.loss, TokenStats(sums.nll, sums.correct)), (sums.d_hidden, sums.d_kernel)


def _loss_bwd(options, gradients, cotangents):
    del options
    d_loss, _ = cotangents
    d_hidden, d_kernel = ((g.astype(d_loss.dtype) * d_loss).astype(g.dtype) for g in gradients)
    return d_hidden, d_kernel, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _sums(options, hidden, kernel, targets, weights, *, with_gradients):
    """`_Sums` with [B, T] in place of N, on one device or under shard_map."""
    local = functools.partial(_local_sums, options, with_gradients)
    if options.mesh is None:
        return local(hidden, kernel, targets, weights)
    tokens = PartitionSpec(options.batch_axes, options.sequence_axis)
    head = PartitionSpec(options.kernel_axes, options.vocab_axis)
    gradients = (tokens, head) if with_gradients else (None, None)
    return jax.shard_map(
        local,
        mesh=options.mesh,
        in_specs=(tokens, head, tokens, tokens),
        out_specs=_Sums(PartitionSpec(), tokens, tokens, *gradients),
        # The gradients are outputs here, so nothing is transposed through the collectives and the
        # types that track which axes a value varies over would only complicate the loop's carry.
        check_vma=False,
    )(hidden, kernel, targets, weights)


def _local_sums(options, with_gradients, hidden, kernel, targets, weights):
    """The part of one device: its own tokens, its own slice of the vocabulary."""
    tokens = hidden.reshape(-1, hidden.shape[-1]), targets.ravel(), weights.ravel()
    chunk = options.chunk_size or _default_chunk(targets.size)
    order = _targets_first(tokens[2], chunk)
    head = kernel.astype(hidden.dtype)
    if options.kernel_axes:
        head = gather(head, options.mesh, options.kernel_axes, 0)

    def add_chunk(index, sums: _Sums) -> _Sums:
        rows = jax.lax.dynamic_slice_in_dim(order, index * chunk, chunk)
        x, target, weight = (jnp.take(a, rows, 0, mode="fill", fill_value=0) for a in tokens)
        logits = jnp.dot(x, head, preferred_element_type=sums.nll.dtype)
        target = target - _first_column(logits, options.vocab_axis)
        lse, nll, correct = _token_losses(logits, target, options.vocab_axis)
        sums = _add_losses(sums, rows, weight, lse, nll, correct, options.z_loss)
        if not with_gradients:
            return sums
        d_logits = _logit_gradients(logits, lse, target, weight, options.z_loss).astype(x.dtype)
        d_x = jnp.dot(d_logits, head.T, preferred_element_type=logits.dtype)
        d_x = _psum(d_x, options.vocab_axis).astype(x.dtype)
        return sums._replace(
            d_hidden=sums.d_hidden.at[rows].set(d_x, mode="drop"),
            d_kernel=_add_outer(sums.d_kernel, x, d_logits),
        )

    num_chunks = _num_chunks(tokens[2], chunk, options.token_axes)
    zeros = _zero_sums(tokens[0], head, with_gradients)
    sums = jax.lax.fori_loop(0, num_chunks, add_chunk, zeros)
    sums = sums._replace(
        loss=_psum(sums.loss, options.token_axes),
        nll=sums.nll.reshape(targets.shape),
        correct=sums.correct.reshape(targets.shape),
    )
    if not with_gradients:
        return sums
    d_kernel = _reduce_kernel_gradient(options, sums.d_kernel)
    return sums._replace(
        d_hidden=sums.d_hidden.reshape(hidden.shape), d_kernel=d_kernel.astype(kernel.dtype)
    )


def _zero_sums(hidden, kernel, with_gradients):
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return _Sums(
        loss=jnp.zeros((), dtype),
        nll=jnp.zeros(hidden.shape[0], dtype),
        correct=jnp.zeros(hidden.shape[0], bool),
        d_hidden=jnp.zeros_like(hidden) if with_gradients else None,
        d_kernel=jnp.zeros(kernel.shape, dtype) if with_gradients else None,
    )


def _num_chunks(weights, chunk, token_axes):
    num_chunks = -(-jnp.sum(weights > 0, dtype=jnp.int32) // chunk)
    # All devices walk together, so that none waits alone in a collective of the loop; the step ends
    # with the slowest anyway.
    return _pmax(num_chunks, token_axes)


def _default_chunk(num_tokens):
    sixteenth = -(-num_tokens // 16)
    rounded = -(-sixteenth // _CHUNK_STEP) * _CHUNK_STEP
    return min(rounded, _MAX_CHUNK)


def _targets_first(weights, chunk):
    """Token indices, targets in front in their order, padded to whole chunks with an index past
    the end: such a row reads zeros and its writes are dropped."""
    order = jnp.argsort(weights <= 0, stable=True)
    return jnp.pad(order, (0, -order.size % chunk), constant_values=order.size)


def _token_losses(logits, target, vocab_axis):
    """logsumexp, nll and correctness [C] from logits [C, V]; `target` counts local columns."""
    prediction = jnp.argmax(logits, axis=-1)
    local_top = _at(logits, prediction)
    top = _pmax(local_top, vocab_axis)
    lse = top + jnp.log(_psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), vocab_axis))
    is_local = (target >= 0) & (target < logits.shape[1])
    at_target = _psum(jnp.where(is_local, _at(logits, target), 0), vocab_axis)
    # Of equal logits the first is the prediction, so a device's counts only if no earlier device
    # has the same.
    column = jnp.where(local_top == top, prediction - target, jnp.iinfo(jnp.int32).max)
    column = -_pmax(-column, vocab_axis)
    return lse, lse - at_target, column == 0


def _at(logits, column):
    return jnp.take_along_axis(logits, column[:, None], axis=1, mode="clip")[:, 0]


def _add_losses(sums, rows, weight, lse, nll, correct, z_loss):
    has_target = weight > 0
    return sums._replace(
        loss=sums.loss + jnp.sum(weight * (nll + z_loss * lse**2)),
        nll=sums.nll.at[rows].set(jnp.where(has_target, nll, 0), mode="drop"),
        correct=sums.correct.at[rows].set(correct & has_target, mode="drop"),
    )


def _logit_gradients(logits, lse, target, weight, z_loss):
    is_target = jnp.arange(logits.shape[1]) == target[:, None]
    p = jnp.exp(logits - lse[:, None])
    return weight[:, None] * (p * (1 + 2 * z_loss * lse)[:, None] - is_target)


def _add_outer(total, x, d_logits):
    """total [D, V] + x [C, D]^T @ d_logits [C, V], by blocks of rows.

    A whole product would need a temporary of total's size where the compiler does not accumulate
    in the matrix product (CPU); a block needs at most a quarter of the logits' size.
    """
    chunk, width = x.shape
    block = max(d for d in range(1, width + 1) if width % d == 0 and d <= max(1, chunk // 4))

    def add_block(index, total):
        x_block = jax.lax.dynamic_slice_in_dim(x, index * block, block, axis=1)
        part = jnp.dot(x_block.T, d_logits, preferred_element_type=total.dtype)
        part += jax.lax.dynamic_slice_in_dim(total, index * block, block)
        return jax.lax.dynamic_update_slice_in_dim(total, part, index * block, axis=0)

    return jax.lax.fori_loop(0, width // block, add_block, total)


def _reduce_kernel_gradient(options, d_kernel):
    """Sum over the devices that hold other tokens; what was gathered is scattered."""
    if options.kernel_axes:
        d_kernel = sum_parts(d_kernel, options.mesh, options.kernel_axes, 0)
    rest = (axis for axis in options.token_axes if axis not in options.kernel_axes)
    return _psum(d_kernel, tuple(rest))


def _first_column(logits, vocab_axis):
    return jax.lax.axis_index(vocab_axis) * logits.shape[1] if vocab_axis else 0


def _psum(x, axes):
    return jax.lax.psum(x, axes) if axes else x


def _pmax(x, axes):
    return jax.lax.pmax(x, axes) if axes else x


def _names(axis):
    return (axis,) if axis else ()
