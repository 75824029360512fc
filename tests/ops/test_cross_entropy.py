import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.errors import UserError
from glm_jax.ops.cross_entropy import target_cross_entropy

BATCH, LENGTH, WIDTH, VOCAB = 4, 25, 12, 46


def arrays(share=0.3, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(BATCH, LENGTH, WIDTH)), dtype)
    kernel = jnp.asarray(rng.normal(size=(WIDTH, VOCAB)), dtype)
    targets = rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
    is_target = rng.random((BATCH, LENGTH)) < share
    weights = np.where(is_target, rng.uniform(0.2, 2, is_target.shape), 0).astype(np.float32)
    return hidden, kernel, targets, weights


def dense(hidden, kernel, targets, weights, z_loss):
    logits = hidden @ kernel
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    loss = jnp.sum(weights * (nll + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2))
    has_target = weights > 0
    correct = (jnp.argmax(logits, axis=-1) == targets) & has_target
    return loss, (jnp.where(has_target, nll, 0), correct)


def with_gradients(loss):
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def assert_same(actual, expected, loss_tolerance, gradient_tolerance):
    """Relative for the loss, relative to the largest entry for the gradients."""
    (loss, (nll, correct)), gradients = actual
    (expected_loss, (expected_nll, expected_correct)), expected_gradients = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=loss_tolerance)
    np.testing.assert_allclose(nll, expected_nll, rtol=loss_tolerance, atol=loss_tolerance * 10)
    np.testing.assert_array_equal(correct, expected_correct)
    for x, y in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(x, y, atol=gradient_tolerance * max(1, float(jnp.abs(y).max())))


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_is_optax(chunk_size, z_loss):
    fused = with_gradients(
        lambda *args: target_cross_entropy(*args, z_loss=z_loss, chunk_size=chunk_size)
    )
    expected = with_gradients(lambda *args: dense(*args, z_loss))(*arrays())
    assert_same(fused(*arrays()), expected, 1e-6, 1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.3]), min_size=100, max_size=100))
def test_any_choice_of_targets_in_float64(weights):
    weights = np.asarray(weights).reshape(BATCH, LENGTH)
    with jax.enable_x64(True):
        hidden, kernel, targets, _ = arrays(dtype=np.float64)
        args = hidden, kernel, targets, weights
        assert_same(float64_fused(*args), float64_dense(*args), 1e-12, 1e-12)


float64_fused = with_gradients(lambda *args: target_cross_entropy(*args, z_loss=1e-3, chunk_size=8))
float64_dense = with_gradients(lambda *args: dense(*args, 1e-3))


def test_bfloat16_accumulates_in_float32():
    hidden, kernel, targets, weights = arrays(dtype=jnp.bfloat16)
    (loss, stats), (d_hidden, d_kernel) = with_gradients(target_cross_entropy)(
        hidden, kernel, targets, weights
    )
    assert (loss.dtype, stats.nll.dtype) == (jnp.float32, jnp.float32)
    assert (d_hidden.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16)
    wide = hidden.astype(np.float32), kernel.astype(np.float32), targets, weights
    (expected, _), gradients = with_gradients(lambda *args: dense(*args, 0.0))(*wide)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for x, y in zip((d_hidden, d_kernel), gradients, strict=True):
        np.testing.assert_allclose(x.astype(np.float32), y, atol=0.02 * float(jnp.abs(y).max()))


def test_float32_kernel_with_bfloat16_hidden_has_float32_gradient():
    hidden, kernel, targets, weights = arrays()
    _, (d_hidden, d_kernel) = with_gradients(target_cross_entropy)(
        hidden.astype(jnp.bfloat16), kernel, targets, weights
    )
    assert (d_hidden.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.float32)


def test_no_targets_is_zero():
    hidden, kernel, targets, weights = arrays(share=0.0)
    (loss, stats), gradients = with_gradients(target_cross_entropy)(
        hidden, kernel, targets, weights
    )
    assert not any(np.any(x) for x in (loss, *stats, *gradients))


def test_what_is_no_target_is_not_read():
    hidden, kernel, targets, weights = arrays()
    no_target = weights == 0
    poisoned = jnp.where(no_target[..., None], 1e30, hidden), kernel, targets + 9**9 * no_target
    run = with_gradients(lambda *args: target_cross_entropy(*args, chunk_size=1))
    jax.tree.map(
        np.testing.assert_array_equal,
        run(*poisoned, weights),
        run(hidden, kernel, targets, weights),
    )


def test_first_of_equal_logits_is_the_prediction():
    hidden, kernel, targets, weights = arrays(share=1.0)
    targets[0, 0] = 0
    _, stats = target_cross_entropy(hidden, jnp.zeros_like(kernel), targets, weights)
    np.testing.assert_array_equal(stats.correct, targets == 0)


def test_gradient_scales_with_the_cotangent():
    hidden, kernel, targets, weights = arrays()

    def gradients(factor):
        return jax.grad(
            lambda h, k: factor * target_cross_entropy(h, k, targets, weights)[0], (0, 1)
        )(hidden, kernel)

    for x, y in zip(gradients(-2.0), gradients(1.0), strict=True):
        np.testing.assert_array_equal(x, -2 * y)


def test_without_differentiation_only_logits_are_computed():
    def products(function):
        return jax.jit(function).lower(*arrays()).as_text().count("stablehlo.dot_general")

    assert products(target_cross_entropy) == 1
    assert products(jax.value_and_grad(target_cross_entropy, (0, 1), has_aux=True)) == 3


def test_temporary_memory_is_under_one_and_a_half_chunks_of_logits():
    tokens, width, vocab, chunk = 1024, 64, 8192, 256
    abstract = (
        jax.ShapeDtypeStruct((1, tokens, width), np.float32),
        jax.ShapeDtypeStruct((width, vocab), np.float32),
        jax.ShapeDtypeStruct((1, tokens), np.int32),
        jax.ShapeDtypeStruct((1, tokens), np.float32),
    )
    fused = with_gradients(lambda *args: target_cross_entropy(*args, chunk_size=chunk))
    temporary = fused.lower(*abstract).compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 1.5 * chunk * vocab * 4


def test_same_bits_from_run_to_run():
    run = with_gradients(lambda *args: target_cross_entropy(*args, chunk_size=8))
    jax.tree.map(np.testing.assert_array_equal, run(*arrays()), run(*arrays()))


def mesh_of(data, fsdp, model):
    auto = (jax.sharding.AxisType.Auto,) * 3
    devices = jax.devices()[: data * fsdp * model]
    return jax.make_mesh((data, fsdp, model), ("data", "fsdp", "model"), auto, devices=devices)


@pytest.mark.multidevice
@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 4, 1)])
def test_mesh_is_optax(shape):
    hidden, kernel, targets, weights = arrays()
    weights[0] = 0  # devices with unequal numbers of targets
    expected = with_gradients(lambda *args: dense(*args, 1e-2))(hidden, kernel, targets, weights)
    mesh = mesh_of(*shape)
    rows, head = PartitionSpec(("data", "fsdp")), PartitionSpec("fsdp", "model")
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((hidden, rows), (kernel, head), (targets, rows), (weights, rows))
    ]
    fused = with_gradients(
        lambda *args: target_cross_entropy(*args, z_loss=1e-2, chunk_size=8, mesh=mesh)
    )
    actual = fused(*placed)
    assert_same(actual, expected, 1e-6, 1e-5)
    assert actual[1][1].sharding.is_equivalent_to(placed[1].sharding, 2)


@pytest.mark.multidevice
def test_mesh_breaks_ties_like_one_device():
    hidden, kernel, targets, weights = arrays(share=1.0)
    targets[0, 0], targets[0, 1] = 0, VOCAB // 2
    _, stats = target_cross_entropy(
        hidden, jnp.zeros_like(kernel), targets, weights, mesh=mesh_of(1, 2, 2)
    )
    np.testing.assert_array_equal(stats.correct, targets == 0)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("batch", "width", "vocab", "message"),
    [
        (3, 12, 46, "batch size 3 is not divisible by the mesh axes data=1 x fsdp=2"),
        (4, 13, 46, "hidden size 13 is not divisible by the mesh axes fsdp=2"),
        (4, 12, 47, "vocabulary size 47 is not divisible by the mesh axes model=2"),
    ],
)
def test_indivisible_mesh_is_one_line(batch, width, vocab, message):
    tokens = np.zeros((batch, 5))
    with pytest.raises(UserError, match=message):
        target_cross_entropy(
            jnp.zeros((batch, 5, width)),
            jnp.zeros((width, vocab)),
            tokens.astype(np.int32),
            tokens,
            mesh=mesh_of(1, 2, 2),
        )


@pytest.mark.multidevice
def test_kernel_axis_without_its_tokens_is_refused():
    with pytest.raises(ValueError, match="kernel_axes {'model'} are not among"):
        target_cross_entropy(*arrays(), mesh=mesh_of(1, 2, 2), kernel_axes=("model",))
