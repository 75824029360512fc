"""The training step: equivalences that must hold exactly, and its metrics."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from training.samples import changed, make_batch, tiny_config

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.config import Config, MeshConfig, ModelConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.objective import in_place, infill
from glm_jax.objective.spans import Blanks, split_pieces
from glm_jax.ops.cross_entropy import TokenStats
from glm_jax.parallel.sharding import PRESETS, make_sharding
from glm_jax.tokenizer import SpecialTokens
from glm_jax.training.metrics import batch_sums, summarise
from glm_jax.training.step import init_state, make_eval_step, make_train_step


def losses(config: Config, sharding, steps: int) -> list[float]:
    state = init_state(config, sharding)
    step = make_train_step(config, sharding, num_sources=2)
    curve = []
    for number in range(steps):
        state, metrics = step(state, sharding.place(make_batch(number)))
        curve.append(float(metrics.sums.loss.sum() / metrics.sums.weight.sum()))
    return curve


@pytest.fixture(scope="module")
def one_device():
    return make_sharding(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def tiny_curve(one_device):
    """Four losses of the config as it is."""
    return losses(tiny_config(), one_device, 4)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("training", {"accumulation_steps": 4}),
        ("model", {"remat": "full"}),
        ("model", {"remat": "selective"}),
        ("model", {"remat": "offload"}),
        ("model", {"scan_layers": False}),
        ("model", {"attention_backend": "reference"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_same_curve(one_device, tiny_curve, section, fields):
    config = changed(tiny_config(), section, **fields)
    np.testing.assert_allclose(losses(config, one_device, 4), tiny_curve, rtol=2e-6)


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_and_step(one_device, tiny_curve):
    config = changed(tiny_config(), "model", embedding_dropout=0.1, output_dropout=0.1)
    curve = losses(config, one_device, 3)
    assert curve == losses(config, one_device, 3)
    assert curve != losses(dataclasses.replace(config, seed=1), one_device, 3)
    assert curve != tiny_curve[:3]


def test_evaluation_has_no_dropout(one_device):
    config = changed(tiny_config(), "model", output_dropout=0.5)
    params = init_state(config, one_device).params
    batch = one_device.place(make_batch(0))
    noisy = make_eval_step(config, one_device, 2)(params, batch)
    plain = make_eval_step(tiny_config(), one_device, 2)(params, batch)
    np.testing.assert_array_equal(noisy.loss, plain.loss)


def test_embedding_gradient_shrink_scales_the_lookup_gradient_only():
    config = changed(tiny_config(), "model", tie_embeddings=False).model
    params = glm.init_params(config, jax.random.key(0))
    rows = make_batch(0)
    arguments = (rows.tokens, rows.position, rows.block_position, rows.kv_start, rows.kv_end)

    def gradient(share):
        def spread(p):
            hidden = glm.apply_hidden(config, p, *arguments, None, share)
            return (hidden @ glm.output_kernel(config, p)).var()

        return jax.jit(jax.grad(spread))(params)

    full, shrunk = gradient(None), gradient(0.25)
    tables = [g.pop("token_embedding")["embedding"] for g in (full, shrunk)]
    np.testing.assert_allclose(tables[1], 0.25 * tables[0], rtol=1e-4, atol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), full, shrunk)


@pytest.fixture(scope="module", params=["learned_2d", "rope_2d"])
def curve(request, one_device):
    """A config and its losses on one device."""
    model = {"position": request.param, "output_dropout": 0.1}
    if request.param == "rope_2d":
        model |= {"residual": "deepnorm", "tie_embeddings": False}
    config = changed(changed(tiny_config(), "model", **model), "optimizer", learning_rate=4e-3)
    return config, losses(config, one_device, 20)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("rules", "sizes"),
    [
        ("dp", {"data": 4}),
        ("fsdp", {"data": 1, "fsdp": 4}),
        ("model", {"data": 1, "model": 4}),
        ("fsdp_model", {"data": 1, "fsdp": 2, "model": 2}),
        ("fsdp_model", {"data": 2, "fsdp": 2}),
    ],
)
def test_every_mesh_gives_the_curve_of_one_device(curve, rules, sizes):
    assert rules in PRESETS
    config, expected = curve
    sharding = make_sharding(MeshConfig(rules=rules, **sizes))
    np.testing.assert_allclose(losses(config, sharding, 20), expected, rtol=1e-5)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("rules", "sizes"),
    [
        ("dp", {"data": 2, "context": 2}),
        ("fsdp_model", {"data": 1, "fsdp": 2, "context": 2}),
        ("fsdp_model", {"data": 1, "context": 2, "model": 2}),
    ],
)
def test_devices_that_share_rows_give_the_curve_of_one(curve, rules, sizes):
    config, expected = curve
    sharding = make_sharding(MeshConfig(rules=rules, **sizes))
    np.testing.assert_allclose(losses(config, sharding, 10), expected[:10], rtol=1e-5)


@pytest.mark.multidevice
@pytest.mark.parametrize("sizes", [{"data": 1, "model": 4}, {"data": 1, "fsdp": 2, "model": 2}])
def test_fewer_heads_of_keys_than_devices(one_device, sizes):
    """Four devices hold a query head each, and both heads of keys."""
    model = {"num_heads": 4, "num_kv_heads": 2, "position": "rope_1d", "rope_fraction": 0.5}
    model |= {"rope_layout": "interleaved", "norm": "rmsnorm", "activation": "swiglu"}
    model |= {"residual": "sandwich", "linear_bias": False, "tie_embeddings": False}
    config = changed(changed(tiny_config(), "model", **model), "optimizer", learning_rate=4e-3)
    sharding = make_sharding(MeshConfig(**sizes))
    expected = losses(config, one_device, 10)
    np.testing.assert_allclose(losses(config, sharding, 10), expected, rtol=1e-5)


@pytest.mark.multidevice
def test_indivisible_and_colliding_layouts_name_the_parameter():
    config = changed(tiny_config(), "model", num_heads=2)
    sharding = make_sharding(MeshConfig(data=1, model=4, rules="model"))
    with pytest.raises(UserError, match=r"layers/attention/out/kernel: dimension 2 .* model=4"):
        init_state(config, sharding)
    with pytest.raises(UserError, match="overrides has no axis 'hedas'"):
        make_sharding(MeshConfig(overrides={"hedas": "fsdp"}))
    sharding = make_sharding(MeshConfig(overrides={"heads": "fsdp"}))
    with pytest.raises(UserError, match=r"layers/attention/out/kernel: .* share a mesh axis"):
        init_state(config, sharding)


def test_metrics_equal_a_slow_count():
    batch = make_batch(3)
    rng = np.random.default_rng(0)
    is_target = batch.weights > 0
    correct = is_target & (rng.random(is_target.shape) < 0.7)
    nll = np.where(is_target, rng.random(is_target.shape), 0).astype(np.float32)
    sums = batch_sums(batch, TokenStats(nll, correct), 2)
    figures = summarise(sums, {"en": "en", "zh": "zh"})
    assert not any("source" in name for name in figures), "they are the languages"
    of_sources = summarise(sums, {"books": "zh", "web": "zh"})
    assert of_sources["loss/source/books"] == figures["loss/en"]
    assert of_sources["exact_match/source/web"] == figures["exact_match/zh"]
    assert of_sources["loss/zh"] == figures["loss"]

    groups = {"": range(8)}
    groups |= {f"/{name}": range(i, 8, 3) for i, name in enumerate(OBJECTIVES[:3])}
    groups |= {"/en": range(0, 8, 2), "/zh": range(1, 8, 2)}
    for suffix, rows in groups.items():
        spans = exact = 0
        for row in rows:
            slots = np.flatnonzero(is_target[row])
            starts = [slot for slot in slots if batch.block_position[row, slot] == 1]
            for start in starts:
                end = start + 1
                while end < len(nll[row]) and batch.block_position[row, end] > 1:
                    end += 1
                spans += 1
                exact += correct[row, start:end].all()
        rows = list(rows)
        assert figures[f"exact_match{suffix}"] == pytest.approx(exact / spans)
        assert figures[f"loss{suffix}"] == pytest.approx(nll[rows].sum() / is_target[rows].sum())
        assert figures[f"accuracy{suffix}"] == pytest.approx(
            correct[rows].sum() / is_target[rows].sum()
        )
    assert figures["padding"] == pytest.approx((batch.segment == 0).mean())
    assert sums.pairs.sum() == (batch.kv_end - batch.kv_start).sum()
    assert sums.pairs.sum(axis=1)[1] == (batch.kv_end - batch.kv_start)[1::2].sum()


def test_spans_are_told_apart_without_block_positions():
    """Two texts, the first with blanks side by side: the same spans as with block positions."""
    tokens, end = np.arange(20, 50, dtype=np.int32), np.array([18, 30])
    blanks = Blanks(np.array([6, 2, 4, 20]), np.array([7, 4, 6, 30]), np.array([1, 1, 1, 0], bool))
    rng = np.random.default_rng(0)
    figures = []
    for model in (ModelConfig(), ModelConfig(block_positions=False)):
        sample = infill.build_pieces(
            tokens, end, blanks, mask_id=4, special=SpecialTokens(), model=model
        )
        row = infill.pack([sample], 40, objective="token", source=0, special=SpecialTokens())
        batch = Batch(*(field[None] for field in row))
        correct = (batch.weights > 0) & (np.arange(40) != 36)
        assert batch.block_position.max() == (10 if model.block_positions else 1)
        sums = batch_sums(batch, TokenStats(rng.random((1, 40)), correct), 1)
        figures.append((float(sums.spans.sum()), float(sums.exact_spans.sum())))
    assert figures == [(4, 3), (4, 3)]


def test_texts_without_spans_have_no_exact_match(one_device):
    """Loss and accuracy of a causal row; the exact match counts spans alone."""
    tokens = np.random.default_rng(0).integers(16, 60, 20).astype(np.int32)
    special = SpecialTokens()
    sample = in_place.causal(tokens, split_pieces(tokens, special), length=20, special=special)
    rows = [infill.pack([sample], 24, objective="causal", source=0, special=special)] * 2
    batch = Batch(*map(np.stack, zip(*rows, strict=True)))
    nll = np.where(batch.weights > 0, 2.0, 0.0).astype(np.float32)
    figures = summarise(batch_sums(batch, TokenStats(nll, batch.weights > 0), 1), {"en": "en"})
    assert figures["loss/causal"] == figures["loss"] == 2.0
    assert figures["accuracy/causal"] == 1.0
    assert not any(name.startswith("exact_match") for name in figures)


@pytest.mark.slow
def test_the_moving_average_follows_the_parameters(one_device):
    config = changed(tiny_config(), "optimizer", ema_decay=0.6)
    state = init_state(config, one_device)
    step = make_train_step(config, one_device, num_sources=2)
    expected = jax.device_get(state.params)
    for number in range(6):
        state, _ = step(state, one_device.place(make_batch(number)))
        decay = min(0.6, (1 + number) / (10 + number))
        expected = jax.tree.map(
            lambda e, p, d=decay: d * e + (1 - d) * p, expected, jax.device_get(state.params)
        )
    for ours, theirs in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_frozen_parameters_have_no_share_in_the_gradient_norm(one_device):
    def grad_norm(**fields):
        config = changed(tiny_config(), "optimizer", **fields)
        state = init_state(config, one_device)
        step = make_train_step(config, one_device, num_sources=2)
        return float(step(state, one_device.place(make_batch(0)))[1].grad_norm)

    assert grad_norm(frozen=("embedding$",)) < 0.9 * grad_norm()


@pytest.mark.slow
def test_z_loss_pulls_the_log_partition_function_to_zero(one_device):
    def log_partition(z_loss):
        config = changed(tiny_config(), "training", z_loss=z_loss)
        state = init_state(config, one_device)
        step = make_train_step(config, one_device, num_sources=2)
        batch = make_batch(0)
        for _ in range(10):
            state, _ = step(state, one_device.place(batch))
        rows = (batch.tokens, batch.position, batch.block_position, batch.kv_start, batch.kv_end)
        logits = jax.jit(glm.apply_logits, static_argnums=0)(config.model, state.params, *rows)
        return float(np.abs(jax.nn.logsumexp(logits, axis=-1)[batch.weights > 0]).mean())

    assert log_partition(1.0) < 0.5 * log_partition(0.0)


@pytest.mark.slow
def test_embedding_gradient_shrink_follows_its_schedule(one_device):
    """With a share that rises from 0.1 to 1 over ten steps, step 5 has 0.55."""

    def norm_at(step_number, **fields):
        config = changed(tiny_config(), "training", **fields)
        state = init_state(config, one_device)
        state = state._replace(step=jax.device_put(np.int32(step_number), state.step.sharding))
        step = make_train_step(config, one_device, num_sources=2)
        return float(step(state, one_device.place(make_batch(0)))[1].grad_norm)

    schedule = {
        "embedding_gradient_shrink": (0.1, 1.0),
        "embedding_gradient_shrink_steps": (0, 10),
    }
    assert norm_at(5, **schedule) == pytest.approx(
        norm_at(5, embedding_gradient_shrink=(0.55,)), rel=1e-5
    )
    assert norm_at(12, **schedule) == pytest.approx(norm_at(12), rel=1e-5)


@pytest.mark.slow
def test_gradient_noise_scale_is_that_of_the_micro_batches(one_device):
    """Against gradients of every micro-batch computed apart (McCandlish et al., appendix A.1)."""
    config = changed(tiny_config(), "training", accumulation_steps=4)
    batch = make_batch(0)
    params = init_state(config, one_device).params

    def mean_loss(p, part):
        arguments = (part.tokens, part.position, part.block_position)
        logits = glm.apply_logits(config.model, p, *arguments, part.kv_start, part.kv_end)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, part.targets)
        return (nll * part.weights).sum() / part.weights.sum()

    gradient = jax.jit(jax.grad(mean_loss))

    def squared_norm(rows):
        part = Batch(*(field[rows] for field in batch))
        return float(optax.tree.norm(gradient(params, part))) ** 2

    small = np.mean([squared_norm(slice(i, None, 4)) for i in range(4)])
    big = squared_norm(slice(None))
    expected = [(small - big) / (1 / 2 - 1 / 8), (8 * big - 2 * small) / (8 - 2)]
    step = make_train_step(config, one_device, num_sources=2)
    _, metrics = step(init_state(config, one_device), one_device.place(batch))
    np.testing.assert_allclose(metrics.noise, expected, rtol=1e-3)
