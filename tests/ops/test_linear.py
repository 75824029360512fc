"""Products and lookups with parameters split over a mesh, against the same on one device."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.config import MeshConfig
from glm_jax.ops import weight_exchange
from glm_jax.ops.embedding import embedding_lookup
from glm_jax.ops.linear import linear
from glm_jax.parallel.sharding import active_layout, make_sharding

MESHES = [
    {"data": 2, "fsdp": 2},
    {"data": 1, "fsdp": 2, "context": 2},
    {"data": 1, "context": 2, "model": 2},
]


def layout_on(sizes, axes, shape, **overrides):
    sharding = make_sharding(MeshConfig(overrides=overrides, **sizes))
    with sharding.activate():
        return sharding, active_layout(shape, axes)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def compare(sharding, function, expected, arguments, cotangent):
    """Values and gradients of two functions, the first on the mesh."""
    with sharding.activate():
        ours, pull = jax.vjp(jax.jit(function), *arguments)
        gradients = pull(cotangent)
    theirs, expected_pull = jax.vjp(expected, *arguments)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.multidevice
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(
    ("axes", "shape", "num_inputs"),
    [
        (("embed", "heads", "head_dim"), (8, 4, 2), 1),
        (("heads", "head_dim", "embed"), (4, 2, 8), 2),
        (("mlp", "embed"), (12, 8), 1),
    ],
)
def test_linear(sizes, axes, shape, num_inputs):
    sharding, layout = layout_on(sizes, axes, shape)
    x, kernel, d_y = arrays((4, 6, *shape[:num_inputs]), shape, (4, 6, *shape[num_inputs:]))

    def product(layout, x, kernel):
        return linear(x, kernel, num_inputs, layout)

    here = functools.partial(product, layout)
    compare(sharding, here, lambda x, w: jnp.tensordot(x, w, num_inputs), (x, kernel), d_y)


@pytest.mark.multidevice
def test_two_stages_are_one(monkeypatch):
    """As on TPUs: along a line of the torus, and across the lines."""
    chips = [SimpleNamespace(platform="tpu", coords=(x, y, 0)) for x in (0, 1) for y in (0, 1)]
    torus = SimpleNamespace(
        shape={"fsdp": 4}, axis_names=("fsdp",), devices=np.array(chips, dtype=object)
    )
    stages = weight_exchange._stages(torus, ("fsdp",))
    assert [stage.groups for stage in stages] == [[[0, 2], [1, 3]], [[0, 1], [2, 3]]]
    monkeypatch.setattr(weight_exchange, "_stages", lambda mesh, names: stages if names else [])
    test_linear({"data": 1, "fsdp": 4}, ("embed", "mlp"), (8, 12), 1)


def test_gradient_of_a_kernel_is_accumulated_in_float32():
    """4,096 tokens that each add one: in bfloat16 the sum would stop at 256."""
    x, kernel = jnp.ones((1, 4096, 1), jnp.bfloat16), jnp.ones((1, 1))
    gradient = jax.grad(lambda w: linear(x, w, 1, None).sum().astype(jnp.float32))(kernel)
    assert gradient.dtype == jnp.float32
    assert float(gradient[0, 0]) == 4096


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("sizes", "overrides"),
    [(sizes, {}) for sizes in MESHES]
    + [({"data": 1, "fsdp": 4}, {"embed": "", "vocab": "fsdp"}), ({"model": 4, "data": 1}, {})],
    ids=str,
)
def test_embedding_lookup(sizes, overrides):
    sharding, layout = layout_on(sizes, ("vocab", "embed"), (12, 8), **overrides)
    table, d_y = arrays((12, 8), (4, 6, 8))
    index = jnp.asarray(np.random.default_rng(1).integers(0, 12, (4, 6)), jnp.int32)
    compare(
        sharding,
        lambda table: embedding_lookup(table, index, jnp.float32, layout),
        lambda table: table[index],
        (table,),
        d_y,
    )


@pytest.mark.multidevice
def test_single_tokens_are_looked_up_where_rows_are_shared():
    """When decoding there is one token a row, which no axis can split."""
    sharding, layout = layout_on(MESHES[1], ("vocab", "embed"), (12, 8))
    (table,) = arrays((12, 8))
    index = jnp.arange(4, dtype=jnp.int32)[:, None]
    with sharding.activate():
        rows = jax.jit(lambda t: embedding_lookup(t, index, jnp.float32, layout))(table)
    np.testing.assert_array_equal(rows[:, 0], table[:4])


@pytest.mark.multidevice
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_an_index_past_the_table_is_not_a_number(sizes):
    sharding, layout = layout_on(sizes, ("vocab", "embed"), (12, 8))
    (table,) = arrays((12, 8))
    index = jnp.full((4, 6), 3).at[1, 2].set(12)
    with sharding.activate():
        rows = jax.jit(lambda t: embedding_lookup(t, index, jnp.float32, layout))(table)
    expected = np.zeros((4, 6), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(np.isnan(rows).all(-1), expected)
    np.testing.assert_array_equal(np.isnan(rows).any(-1), expected)


def test_gradient_of_a_frequent_token_does_not_stop_growing():
    index = jnp.zeros((1, 4096), jnp.int32)
    lookup = functools.partial(embedding_lookup, dtype=jnp.bfloat16, layout=None)
    gradient = jax.grad(lambda t: lookup(t, index).astype(jnp.float32).sum())(jnp.ones((2, 1)))
    np.testing.assert_array_equal(gradient, [[4096], [0]])
