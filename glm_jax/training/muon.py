"""Muon: momentum orthogonalised by a Newton-Schulz iteration, for stacks of matrices.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025,
"Muon is Scalable for LLM Training" (arXiv 2502.16982). `optax.contrib.muon` is the same rule; this
one knows our matrices, and its state is the momentum alone: no count, and no coefficients that a
checkpoint would bring back.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.errors import UserError
from glm_jax.parallel.sharding import WEIGHT_AXES, active_mesh

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of X -> a X + b (X X^T) X + c (X X^T)^2 X: Jordan et al. chose them for the steepest
slope at zero, so that few steps do. Singular values come near 1 and do not converge to it."""

NEWTON_SCHULZ_STEPS = 5
"""Jordan et al. Singular values above 0.0015 of the Frobenius norm end between 0.67 and 1.21."""

NORM_EPS = 1e-7
"""Added to the Frobenius norm (Jordan et al.), so that a zero matrix stays zero."""


class MatrixAxes(NamedTuple):
    """Which axes of a parameter are the rows and columns of its matrix; those before are a stack.

    A kernel maps its inputs to its outputs: `inputs` and `outputs` are adjacent, in this order, and
    reach to the last axis.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class MuonState(NamedTuple):
    momentum: dict[str, jax.Array]  # as the parameters


def matrix_axes(shapes: Mapping) -> dict[str, MatrixAxes]:
    """The matrices among the parameters, by name.

    Kernels and embedding tables are matrices, one for each layer if their names start with
    `layers/`; biases and norms are not, whatever their rank. Of a kernel with more than two axes of
    its own, the model's width is one side and all other axes are the other: query, key and value
    kernels [L, D, heads, head_dim] are D x (heads head_dim), the output projection
    [L, heads, head_dim, D] is (heads head_dim) x D. All heads are one matrix, as in the published
    models.

    Args:
      shapes: what has a `shape`, by name of the parameter.

    Raises:
      UserError: a kernel whose inputs and outputs cannot be told apart.
    """
    found = {}
    for name, leaf in shapes.items():
        if name.split("/")[-1] not in ("kernel", "embedding"):
            continue
        axes = tuple(range(int(name.startswith("layers/")), len(leaf.shape)))
        if len(axes) < 2:
            continue
        split = 1 if len(axes) == 2 else _split(name, leaf.shape, axes, shapes)
        found[name] = MatrixAxes(axes[:split], axes[split:])
    return found


def _split(name: str, shape: tuple[int, ...], axes: tuple[int, ...], shapes: Mapping) -> int:
    width = shapes["token_embedding/embedding"].shape[-1]
    is_input, is_output = shape[axes[0]] == width, shape[axes[-1]] == width
    if is_input == is_output:
        raise UserError(
            f"parameter {name} {shape}: its inputs cannot be told from its outputs, "
            f"{'both ends' if is_input else 'neither end'} of it being the width {width}"
        )
    return 1 if is_input else len(axes) - 1


def scale_by_muon(
    momentum: float, rms: float, axes: Mapping[str, MatrixAxes]
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised and scaled to root mean square `rms`.

    m = momentum m + (1 - momentum) g, then u = O((1 - momentum) g + momentum m) rms sqrt(max(i, o))
    for an i x o matrix: an orthogonal one has root mean square 1 / sqrt(max(i, o)). Liu et al.
    found that AdamW's is 0.2 to 0.4, and that with 0.2 its learning rates and decay fit.

    Args:
      axes: of each parameter, by name; parameters and gradients are dicts with these names.
    """

    def init(params: dict) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(gradients: dict, state: MuonState, params=None):
        def blend(old, new):
            return momentum * old + (1 - momentum) * new

        averages = jax.tree.map(blend, state.momentum, gradients)
        ahead = jax.tree.map(blend, averages, gradients)
        return {
            name: _orthogonal_update(x, axes[name], rms) for name, x in ahead.items()
        }, MuonState(averages)

    return optax.GradientTransformation(init, update)


def _orthogonal_update(x: jax.Array, axes: MatrixAxes, rms: float) -> jax.Array:
    stack = x.shape[: axes.inputs[0]]
    rows, columns = (math.prod(x.shape[axis] for axis in side) for side in axes)
    matrices = x.reshape(*stack, rows, columns)
    layouts = _whole_matrices(matrices)
    for layout in layouts:
        matrices = jax.lax.with_sharding_constraint(matrices, layout)
    matrices = orthogonalise(matrices)
    for layout in reversed(layouts):
        matrices = jax.lax.with_sharding_constraint(matrices, layout)
    return (rms * math.sqrt(max(rows, columns)) * matrices).reshape(x.shape)


def _whole_matrices(x: jax.Array) -> list[NamedSharding]:
    """Layouts of [layers, ..., m, n] that end with the layers shared out among the devices.

    Left to itself the compiler gathers a matrix that is split among devices in each step of the
    iteration (fifteen all-gathers; two all-to-all of whole layers do). The mesh axes change over
    one by one, because it knows no efficient way for two at once, and only the first may divide
    the layers unevenly, for the same reason.
    """
    mesh = active_mesh()
    layouts, axes, parts = [], [], 1
    if mesh is None or x.ndim < 3:
        return layouts
    for axis in (*WEIGHT_AXES, "model"):
        even = x.shape[0] % (parts * mesh.shape[axis]) == 0
        if mesh.shape[axis] == 1 or not (even or not axes):
            continue
        axes.append(axis)
        parts *= mesh.shape[axis]
        rest = [P.UNCONSTRAINED] * (x.ndim - 1)
        layouts.append(NamedSharding(mesh, P(tuple(axes), *rest)))
    return layouts


def orthogonalise(x: jax.Array) -> jax.Array:
    """U V^T, nearly, of each matrix U S V^T of a stack [..., m, n], in the dtype of x."""
    wide = x.shape[-2] <= x.shape[-1]
    # The iteration multiplies square matrices of the rows: the shorter side.
    x = x if wide else x.mT
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + NORM_EPS)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
