"""Muon against singular value decompositions, and the matrices that it finds in a model."""

import dataclasses
import math

import jax
import numpy as np
import optax.contrib
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.config import MeshConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.model.presets import PRESETS, preset
from glm_jax.parallel.sharding import make_sharding, param_name
from glm_jax.training.muon import (
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_STEPS,
    MatrixAxes,
    matrix_axes,
    orthogonalise,
    scale_by_muon,
)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def polynomial_of_singular_values(matrix: np.ndarray) -> np.ndarray:
    """What the iteration computes, in float64: it changes nothing but the singular values."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = a * s + b * s**3 + c * s**5
    return u * s @ vt


@pytest.mark.parametrize("shape", [(3, 16, 48), (3, 48, 16), (2, 2, 24, 24), (16, 20)])
def test_every_matrix_of_a_stack_is_orthogonalised_by_itself(shape):
    x = random(*shape)
    ours = np.asarray(orthogonalise(x))
    for index in np.ndindex(shape[:-2]):
        expected = polynomial_of_singular_values(x[index])
        np.testing.assert_allclose(ours[index], expected, atol=2e-5)


def test_the_first_update_is_that_of_optax():
    """Only the first: optax corrects the bias of both terms of its Nesterov momentum."""
    gradient = {"kernel": random(2, 24, 4, 6)}
    theirs = optax.contrib.muon(
        learning_rate=-1.0,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(1, (2, 3)),
    )
    expected, _ = theirs.update(gradient, theirs.init(gradient), gradient)
    ours = scale_by_muon(0.95, 0.2, {"kernel": MatrixAxes((1,), (2, 3))})
    update, _ = ours.update(gradient, ours.init(gradient))
    np.testing.assert_allclose(update["kernel"], expected["kernel"], atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 48), (3, 48, 16)])
def test_singular_values_end_near_one(shape):
    values = np.linalg.svd(orthogonalise(1e-4 * random(*shape)), compute_uv=False)
    assert values.min() > 0.67
    assert values.max() < 1.21


def test_a_zero_matrix_stays_zero():
    assert not np.asarray(orthogonalise(np.zeros((2, 4, 6), np.float32))).any()


@pytest.mark.parametrize(
    ("shape", "axes", "matrix"),
    [
        ((3, 24, 4, 6), MatrixAxes((1,), (2, 3)), (24, 24)),  # query: embed x (heads, head_dim)
        ((3, 24, 2, 6), MatrixAxes((1,), (2, 3)), (24, 12)),  # fewer key heads
        ((3, 2, 6, 24), MatrixAxes((1, 2), (3,)), (12, 24)),  # out: (heads, head_dim) x embed
        ((3, 24, 40), MatrixAxes((1,), (2,)), (24, 40)),
        ((40, 24), MatrixAxes((0,), (1,)), (40, 24)),
    ],
)
def test_stacked_weights_are_updated_as_each_layers_matrix(shape, axes, matrix):
    momentum, rms = 0.9, 0.2
    muon = scale_by_muon(momentum, rms, {"kernel": axes})
    state = muon.init({"kernel": np.zeros(shape, np.float32)})
    layers = shape[0] if axes.inputs[0] else 1
    average = np.zeros((layers, *matrix))
    for step in range(3):
        gradient = random(*shape, seed=step)
        updates, state = muon.update({"kernel": gradient}, state)
        update = np.asarray(updates["kernel"])
        assert update.shape == shape
        flat = gradient.reshape(layers, *matrix).astype(np.float64)
        average = momentum * average + (1 - momentum) * flat
        ahead = momentum * average + (1 - momentum) * flat
        expected = [polynomial_of_singular_values(x) for x in ahead]
        scale = rms * math.sqrt(max(matrix))
        got = update.reshape(layers, *matrix)
        np.testing.assert_allclose(got, scale * np.stack(expected), atol=2e-4)
    assert state.momentum["kernel"].shape == shape


def test_root_mean_square_of_an_update():
    muon = scale_by_muon(0.95, 0.2, {"kernel": MatrixAxes((1,), (2,))})
    gradient = {"kernel": random(2, 16, 64)}
    update, _ = muon.update(gradient, muon.init(gradient))
    assert np.sqrt(np.mean(np.square(update["kernel"]))) == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("name", PRESETS)
def test_matrices_of_every_preset_are_those_of_the_logical_axes(name):
    """The width is one side, everything else the other; layers are never part of a matrix."""
    shapes, axes = glm.abstract_params(dataclasses.replace(preset(name), vocab_size=512))
    named, logical = (
        {
            param_name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)
        }
        for tree, is_leaf in ((shapes, None), (axes, lambda x: isinstance(x, tuple)))
    )
    matrices = matrix_axes(named)
    assert set(matrices) == {x for x in named if x.endswith(("kernel", "embedding"))}
    for parameter, sides in matrices.items():
        names = [tuple(logical[parameter][i] for i in side) for side in sides]
        assert ("embed",) in names, parameter
        others = next(side for side in names if side != ("embed",))
        assert "layers" not in others
        stack = {"layers"} & set(logical[parameter])
        assert {*others, "embed", *stack} == set(logical[parameter])


def test_a_kernel_that_cannot_be_split_is_refused():
    shapes = {
        "token_embedding/embedding": jax.ShapeDtypeStruct((64, 8), np.float32),
        "layers/experts/kernel": jax.ShapeDtypeStruct((2, 4, 16, 32), np.float32),
    }
    with pytest.raises(UserError, match=r"experts/kernel \(2, 4, 16, 32\): .* neither end"):
        matrix_axes(shapes)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("sizes", "layers"),
    [
        ({"fsdp": 4}, 4),
        ({"fsdp": 4}, 6),  # uneven
        ({"fsdp": 2, "model": 2}, 4),
        ({"fsdp": 2, "model": 2}, 2),  # whole matrices on one of the axes only
        ({"model": 4}, 4),
        ({"data": 2, "fsdp": 2}, 3),
    ],
)
def test_matrices_that_are_split_among_devices(sizes, layers):
    sharding = make_sharding(MeshConfig(**({"data": 1} | sizes)))
    lies = {"kernel": NamedSharding(sharding.mesh, P(None, "fsdp", "model", None))}
    muon = scale_by_muon(0.9, 0.2, {"kernel": MatrixAxes((1,), (2, 3))})
    gradients = {"kernel": random(layers, 24, 4, 10)}

    def update(gradients):
        return muon.update(gradients, muon.init(gradients))[0]

    with sharding.activate():
        compiled = (
            jax.jit(update, in_shardings=(lies,), out_shardings=lies).lower(gradients).compile()
        )
        updates = compiled(jax.device_put(gradients, lies))
    np.testing.assert_allclose(updates["kernel"], update(gradients)["kernel"], atol=1e-5)
    if layers == 4:
        program = compiled.as_text()
        assert program.count(" all-to-all(") == 2 * len(sizes)
        assert "all-gather" not in program
        assert "all-reduce" not in program
