"""How the blocks of a row are dealt out, and range attention on devices that share rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.range_cases import assert_same, inputs, prefix_rows, reference, with_gradients

from glm_jax.config import MeshConfig
from glm_jax.errors import UserError
from glm_jax.ops.block_order import balanced_order
from glm_jax.ops.range_attention import block_bounds, context_order, range_attention
from glm_jax.parallel.mesh import make_mesh


def test_arrange_and_restore_are_inverse_and_so_are_their_gradients():
    start, end = prefix_rows(3, 96, 30)
    order = balanced_order(start, end, parts=4, block=8)
    x = np.random.default_rng(0).normal(size=(3, 96, 2, 5)).astype(np.float32)
    np.testing.assert_array_equal(order.restore(order.arrange(x)), x)
    arranged = np.asarray(order.arrange(x)).reshape(3, 12, 8, 2, 5)
    for row, blocks in enumerate(order.blocks):
        np.testing.assert_array_equal(arranged[row], x[row].reshape(12, 8, 2, 5)[blocks])
    gradient = jax.grad(lambda y: jnp.sum(order.arrange(y) * x))(x)
    np.testing.assert_array_equal(gradient, order.restore(x))


@pytest.mark.parametrize(("length", "parts"), [(2048, 2), (8192, 4), (8192, 8), (32768, 8)])
def test_devices_see_equally_many_keys(length, parts):
    """Within 1 % of the mean, where contiguous parts have up to twice as many."""
    start, end = prefix_rows(4, length, length // 4)
    order = balanced_order(start, end, parts=parts, block=128)
    seen = np.asarray(order.arrange(end - start), np.int64).reshape(4, parts, -1).sum(-1)
    assert (seen.max(1) / seen.mean(1)).max() < 1.01
    contiguous = (end - start).astype(np.int64).reshape(4, parts, -1).sum(-1)
    assert (contiguous.max(1) / contiguous.mean(1)).max() > 1.2


def test_a_device_has_its_blocks_in_the_order_of_the_row():
    start, end = prefix_rows(2, 512, 100)
    blocks = np.asarray(balanced_order(start, end, parts=4, block=16).blocks)
    assert (np.diff(blocks.reshape(2, 4, -1)) > 0).all()
    assert (np.sort(blocks) == np.arange(32)).all()


@pytest.mark.multidevice
@pytest.mark.parametrize("sizes", [{"data": 1, "context": 4}, {"data": 2, "context": 2}])
def test_shared_rows_attend_as_whole_ones(sizes):
    """Output and gradients; two query heads share a key head, and some queries see nothing."""
    mesh = make_mesh(MeshConfig(**sizes))
    ranges = prefix_rows(2, 64, 20)
    arrays = inputs(2, 64, 4, 2, 8, dtype=np.float32)

    def attend(q, k, v, start, end):
        order = context_order(start, end, backend="chunked", mesh=mesh)
        q, k, v, start, end = map(order.arrange, (q, k, v, start, end))
        bounds = block_bounds(start, end, 64, backend="chunked", order=order, mesh=mesh)
        out = range_attention(
            q, k, v, start, end, backend="chunked", bounds=bounds, order=order, mesh=mesh
        )
        return order.restore(out)

    with jax.set_mesh(mesh):
        shared = with_gradients(attend)(*arrays, *ranges)
    assert_same(shared, reference(*arrays, *ranges), 5e-6)


@pytest.mark.multidevice
def test_row_length_that_does_not_divide():
    rows = np.zeros((1, 30), np.int32)
    mesh = make_mesh(MeshConfig(data=1, context=4))
    with pytest.raises(UserError, match="row length 30 .* axes context=4"):
        context_order(rows, rows, mesh=mesh)
