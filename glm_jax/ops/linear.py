"""Matrix products with parameters that are split among the devices.

A device gathers what it needs of a matrix, uses it and drops it, in the forward and again in the
backward pass, and sums its part of the gradient straight into the layout of the parameter (ZeRO-3;
Rajbhandari et al. 2020, arXiv 1910.02054). Said outright, because the compiler, left to itself, may
move activations instead, keep gathered matrices for the backward pass, or sum whole gradients.
Where layers are written out and not a loop (`scan_layers=False`), it may still merge the two
gathers of a matrix and keep it in between.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.ops.weight_exchange import gather, sum_parts
from glm_jax.parallel.sharding import BATCH_AXES, SEQUENCE_AXIS, TOKEN_AXES, WeightLayout


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(
    x: jax.Array, kernel: jax.Array, num_inputs: int, layout: WeightLayout | None
) -> jax.Array:
    """x [B, T, *inputs] times kernel [*inputs, *outputs], in the dtype of x: [B, T, *outputs].

    The gradient of the kernel is accumulated and summed over devices in float32 or wider.

    Args:
      num_inputs: number of axes in `inputs`.
      layout: how the kernel lies; None if it is on one device.
    """
    return jnp.tensordot(x, _gather(kernel.astype(x.dtype), layout), num_inputs)


def _linear_fwd(x, kernel, num_inputs, layout):
    return linear(x, kernel, num_inputs, layout), (x, kernel)


def _linear_bwd(num_inputs, layout, residuals, d_y):
    x, kernel = residuals
    outputs = kernel.ndim - num_inputs
    whole = _gather(kernel.astype(x.dtype), layout)
    axes = tuple(range(d_y.ndim - outputs, d_y.ndim)), tuple(range(num_inputs, kernel.ndim))
    d_x = jax.lax.dot_general(d_y, whole, (axes, ((), ())))
    return d_x, _kernel_gradient(x, d_y, num_inputs, layout).astype(kernel.dtype)


linear.defvjp(_linear_fwd, _linear_bwd)


def whole_vector(x: jax.Array, layout: WeightLayout | None) -> jax.Array:
    """A scale or bias, in every device but for what `model` splits; so is its gradient, which is
    short."""
    if layout is None:
        return x
    spec = PartitionSpec(*map(_kept, layout.split))
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))


def _gather(x, layout):
    """A matrix as the tokens of a device need it: whole but for what `model` splits."""
    if layout is None or not any(_gathered(layout, axes) for axes in layout.split):
        return x

    def gather_axes(part):
        for axis, mesh_axes in enumerate(layout.split):
            part = gather(part, layout.mesh, _gathered(layout, mesh_axes), axis)
        return part

    stored, whole = PartitionSpec(*layout.split), PartitionSpec(*map(_kept, layout.split))
    return jax.shard_map(
        gather_axes, mesh=layout.mesh, in_specs=stored, out_specs=whole, check_vma=False
    )(x)


def _kernel_gradient(x, d_y, num_inputs, layout):
    """Sum over tokens of x^T d_y, laid out as the kernel."""
    tokens = tuple(range(x.ndim - num_inputs))
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def multiply(x, d_y):
        contract = ((tokens, tokens), ((), ()))
        return jax.lax.dot_general(x, d_y, contract, preferred_element_type=wide)

    if layout is None:
        return multiply(x, d_y)

    def multiply_own_tokens(x, d_y):
        gradient = multiply(x, d_y)
        rest = _split_axes(layout, TOKEN_AXES)
        for axis, mesh_axes in enumerate(layout.split):
            names = _gathered(layout, mesh_axes)
            gradient = sum_parts(gradient, layout.mesh, names, axis)
            rest = tuple(name for name in rest if name not in names)
        return jax.lax.psum(gradient, rest) if rest else gradient

    kept = tuple(map(_kept, layout.split))
    return jax.shard_map(
        multiply_own_tokens,
        mesh=layout.mesh,
        in_specs=tuple(
            PartitionSpec(BATCH_AXES, SEQUENCE_AXIS, *width)
            for width in (kept[:num_inputs], kept[num_inputs:])
        ),
        out_specs=PartitionSpec(*layout.split),
        check_vma=False,
    )(x, d_y)


def _gathered(layout, mesh_axes):
    """Those of the axes over which tokens are split too."""
    return _split_axes(layout, tuple(axis for axis in mesh_axes if axis in TOKEN_AXES))


def _kept(mesh_axes):
    return tuple(axis for axis in mesh_axes if axis not in TOKEN_AXES)


def _split_axes(layout, mesh_axes):
    return tuple(axis for axis in mesh_axes if layout.mesh.shape[axis] > 1)
