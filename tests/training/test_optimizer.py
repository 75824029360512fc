"""Update rules, and which parameter is treated how."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from training.samples import changed, make_batch, tiny_config

from glm_jax.config import MeshConfig, OptimizerConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.model.presets import PRESETS, preset
from glm_jax.parallel.sharding import make_sharding, param_name
from glm_jax.training.muon import MatrixAxes
from glm_jax.training.optimizer import (
    describe_optimizer,
    make_optimizer,
    opt_state_shardings,
    scale_by_factored_rms,
    treatments,
)
from glm_jax.training.schedules import make_schedule
from glm_jax.training.step import init_state, make_train_step

RULES = ["adamw", "muon", "adafactor"]
MATRICES = MatrixAxes((1,), (2,))


@functools.cache
def tiny() -> tuple[dict, dict]:
    """Shapes and logical axes of the tiny model."""
    return glm.abstract_params(tiny_config().model)


def fill(seed: int, scale: float = 1.0) -> dict:
    """Random values of the tiny model's shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: scale * rng.normal(size=x.shape).astype(np.float32), tiny()[0])


def named(tree: dict) -> dict:
    return {param_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def one_update(config: OptimizerConfig, gradients: dict, params: dict) -> dict:
    """The first update, by name."""
    optimizer = make_optimizer(config, params)

    @jax.jit
    def update(gradients, params):
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    return named(update(gradients, params))


def test_adamw_is_that_of_optax_to_the_bit():
    config = OptimizerConfig(warmup_steps=2, learning_rate=1e-2)
    schedule = make_schedule(config, steps=8)
    decays = treatments(config, tiny()[0])
    reference = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=jax.tree_util.tree_map_with_path(
                lambda path, _: decays[param_name(path)].decays, tiny()[0]
            ),
        ),
    )
    optimizer = make_optimizer(config, tiny()[0])

    @jax.jit
    def theirs(params, state, gradients, step):
        updates, state = reference.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def ours(params, state, gradients, step):
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda p, u: p - schedule(step) * u, params, updates), state

    a = b = fill(0, 0.05)
    state_a, state_b = reference.init(a), optimizer.init(b)
    for step in range(6):
        gradients = fill(step + 1, scale=1e-4 if step % 2 else 1.0)
        a, state_a = theirs(a, state_a, gradients, step)
        b, state_b = ours(b, state_b, gradients, step)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_update_is_clipped_adam_with_decoupled_decay():
    config = OptimizerConfig(clip_norm=1.0, weight_decay=0.1)
    params = {"kernel": np.full(3, 2.0, np.float32), "bias": np.full(3, 2.0, np.float32)}
    updates = one_update(config, jax.tree.map(lambda x: 100 * x, params), params)
    adam = 1 / (1 + config.eps * math.sqrt(6))  # g / (|g| + eps) of the clipped gradient
    np.testing.assert_allclose(updates["bias"], adam, rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], adam + 0.1 * 2.0, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_decay_is_added_whatever_the_rule(rule):
    params, gradients = fill(0), fill(1)
    with_decay, without = (
        one_update(OptimizerConfig(name=rule, weight_decay=decay), gradients, params)
        for decay in (0.5, 0.0)
    )
    for name, param in named(params).items():
        decay = 0.5 if name.endswith(("kernel", "embedding")) else 0.0
        np.testing.assert_allclose(with_decay[name], without[name] + decay * param, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_defaults_work_for_every_preset(name):
    shapes, _ = glm.abstract_params(dataclasses.replace(preset(name), vocab_size=512))
    for rule in RULES:
        for parameter, treatment in treatments(OptimizerConfig(name=rule), shapes).items():
            assert treatment.decays == parameter.endswith(("kernel", "embedding"))
            assert treatment.factor == 1.0
            # No kernel of a layer may fall to AdamW unnoticed.
            is_muon = parameter.startswith("layers/") and parameter.endswith("/kernel")
            assert treatment.rule == ("adamw" if rule == "muon" and not is_muon else rule)


def test_muon_holds_a_momentum_and_adam_the_rest():
    state = jax.eval_shape(make_optimizer(OptimizerConfig(name="muon"), tiny()[0]).init, tiny()[0])
    kernels = {name for name in named(tiny()[0]) if name.startswith("layers") and "kernel" in name}
    assert len(kernels) == 6
    assert set(state["muon"].momentum) == kernels
    assert set(state["adamw"].mu) == set(state["adamw"].nu) == set(named(tiny()[0])) - kernels
    assert len(jax.tree.leaves(state["muon"])) == 6


def test_moments_of_bfloat16_parameters_are_float32():
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tiny()[0])
    for rule in RULES:
        optimizer = make_optimizer(OptimizerConfig(name=rule), params)
        state = jax.eval_shape(optimizer.init, params)
        for leaf in jax.tree.leaves(jax.eval_shape(optimizer.update, params, state, params)):
            assert leaf.dtype in (jnp.float32, jnp.int32)


def test_adafactor_of_a_rank_one_square_is_adam():
    """Where the factors lose nothing, the first update is g / (|g| + eps), layer by layer."""
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], (2, 6, 10))
    gradient = sign * rng.uniform(1, 2, (2, 6, 1)) * rng.uniform(1, 2, (2, 1, 10))
    gradients = {"kernel": gradient.astype(np.float32), "bias": np.float32([3.0, 0.0])}
    rule = scale_by_factored_rms(0.98, 1e-6, {"kernel": MATRICES})
    updates, _ = rule.update(gradients, rule.init(gradients))
    np.testing.assert_allclose(updates["kernel"], sign, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [1.0, 0.0], rtol=1e-5)


def test_adafactor_is_that_of_optax_on_plain_matrices():
    ours = scale_by_factored_rms(1.0, 0.0, {"kernel": MATRICES})
    theirs = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
    params = {"kernel": np.zeros((3, 8, 12), np.float32)}
    states = [ours.init(params), theirs.init(params)]
    for step in range(4):
        gradients = {"kernel": np.random.default_rng(step).normal(size=(3, 8, 12))}
        gradients = jax.tree.map(np.float32, gradients)
        update, states[0] = ours.update(gradients, states[0], params)
        expected, states[1] = theirs.update(gradients, states[1], params)
        np.testing.assert_allclose(update["kernel"], expected["kernel"], rtol=1e-4)


def test_adafactor_decay_stops_at_b2():
    rule = scale_by_factored_rms(0.5, 0.0, {})
    state = rule.init({"bias": np.zeros(1, np.float32)})
    squares = []
    for gradient in (1.0, 2.0, 3.0, 4.0):
        _, state = rule.update({"bias": np.float32([gradient])}, state)
        squares.append(float(state.full["bias"][0]))
    decays = [min(0.5, 1 - t**-0.8) for t in (1, 2, 3, 4)]
    assert decays[0] == 0.0
    assert decays[2:] == [0.5, 0.5]
    expected = 0.0
    for decay, gradient, square in zip(decays, (1.0, 2.0, 3.0, 4.0), squares, strict=True):
        expected = decay * expected + (1 - decay) * gradient**2
        assert square == pytest.approx(expected, rel=1e-5)


def test_adafactor_ignores_an_all_zero_matrix():
    gradients = {"kernel": np.zeros((2, 4, 6), np.float32)}
    rule = scale_by_factored_rms(0.98, 1e-6, {"kernel": MATRICES})
    updates, _ = rule.update(gradients, rule.init(gradients))
    assert not np.asarray(updates["kernel"]).any()


def test_adafactor_keeps_rows_and_columns():
    m = tiny_config().model
    width, layers = m.hidden_dim, m.num_layers
    heads = m.num_heads * m.head_dim
    rows = layers * (3 * (width + heads) + (heads + width) + 2 * (width + m.mlp_dim))
    tables = m.vocab_size + 2 * (m.max_positions + 1) + 3 * width
    vectors = layers * (3 * heads + width + m.mlp_dim + width + 4 * width) + 2 * width
    shapes = tiny()[0]

    def numbers(b1: float) -> int:
        optimizer = make_optimizer(OptimizerConfig(name="adafactor", b1=b1), shapes)
        state = jax.eval_shape(optimizer.init, shapes)
        return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)

    assert numbers(b1=0.0) == rows + tables + vectors
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert numbers(b1=0.9) == rows + tables + vectors + parameters


@pytest.mark.parametrize("rule", RULES)
def test_frozen_parameters_have_a_zero_update_and_no_state(rule):
    config = OptimizerConfig(name=rule, frozen=("^token_", "attention/"))
    updates = one_update(config, fill(0), fill(1))
    for name, update in updates.items():
        assert np.asarray(update).any() == (not is_frozen(name)), name
    state = jax.eval_shape(make_optimizer(config, tiny()[0]).init, tiny()[0])
    names = {path[-1].key for path, leaf in jax.tree.leaves_with_path(state) if leaf.ndim}
    assert names == {name for name in updates if not is_frozen(name)}


def test_frozen_parameters_stay_to_the_bit_in_training():
    config = changed(tiny_config(), "optimizer", name="muon", frozen=("^token_", "attention/"))
    sharding = make_sharding(MeshConfig(), jax.devices()[:1])
    state = init_state(config, sharding)
    before = jax.tree.map(np.asarray, named(state.params))
    step = make_train_step(config, sharding, num_sources=2)
    for number in range(2):
        state, _ = step(state, sharding.place(make_batch(number)))
    for name, param in named(state.params).items():
        assert np.array_equal(before[name], param) == is_frozen(name), name


def is_frozen(name: str) -> bool:
    return name.startswith("token_") or "attention/" in name


@pytest.mark.parametrize("rule", RULES)
def test_frozen_gradients_do_not_count_when_clipping(rule):
    config = OptimizerConfig(name=rule, frozen=("^token_embedding/",), eps=1.0)
    params, gradients = fill(0), fill(1)
    expected = one_update(config, gradients, params)
    gradients["token_embedding"]["embedding"] = np.full((64, 32), np.inf, np.float32)
    updates = one_update(config, gradients, params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    assert not np.asarray(updates["token_embedding/embedding"]).any()


def test_factors_scale_the_whole_update():
    params, gradients = fill(0), fill(1)
    plain = one_update(OptimizerConfig(), gradients, params)
    config = OptimizerConfig(learning_rate_factors=("^layers/.*kernel$=0.25", "final_norm=2"))
    scaled = one_update(config, gradients, params)
    for name, update in plain.items():
        factor = 2.0 if "final_norm" in name else 1.0
        factor = 0.25 if name.startswith("layers/") and name.endswith("kernel") else factor
        np.testing.assert_array_equal(scaled[name], factor * update)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"no_decay": ("bias$",)}, "final_norm/scale: neither matches"),
        ({"decay": (".",)}, "final_norm/bias: both match"),
        ({"frozen": ("encoder",)}, "optimizer.frozen: 'encoder' matches no parameter"),
        ({"muon": ("mlp", "mpl")}, "optimizer.muon: 'mpl' matches no parameter"),
        ({"decay": ("kernel$", "embedding$", "head/w")}, "optimizer.decay: 'head/w' matches no"),
        ({"no_decay": ("bias$", "scale$", "x$")}, r"optimizer.no_decay: 'x\$' matches no"),
        (
            {"learning_rate_factors": ("haed=2",)},
            "optimizer.learning_rate_factors: 'haed' matches no",
        ),
        (
            {"learning_rate_factors": ("mlp/up=2", "kernel$=3")},
            r"layers/mlp/up/kernel: .*learning_rate_factors mlp/up=2 and kernel\$=3 both match",
        ),
        ({"frozen": (".",)}, "optimizer.frozen .* leaves no parameter to train"),
        ({"name": "muon", "muon": ("mlp/",)}, "names layers/mlp/down/bias, which is no matrix"),
        ({"name": "muon", "frozen": ("layers/",)}, "names no parameter that is trained"),
    ],
)
def test_mistakes_are_named(fields, message):
    config = dataclasses.replace(OptimizerConfig(), **fields)
    with pytest.raises(UserError, match=message) as error:
        make_optimizer(config, tiny()[0])
    assert "\n" not in str(error.value)


def test_defaults_may_match_nothing():
    shapes = {"layers": {"mlp": {"kernel": jax.ShapeDtypeStruct((2, 4, 8), np.float32)}}}
    for rule in RULES:
        assert treatments(OptimizerConfig(name=rule), shapes)["layers/mlp/kernel"].rule == rule


def test_description_counts_what_each_rule_touches():
    config = OptimizerConfig(
        name="muon", frozen=("^position",), learning_rate_factors=("^token=0.5", "^final=0.5")
    )
    lines = describe_optimizer(config, tiny()[0]).splitlines()[1:]
    counted = {line[:24].strip(): line[24:].split() for line in lines}
    sizes = {name: leaf.size for name, leaf in named(tiny()[0]).items()}
    kernels = [size for name, size in sizes.items() if name.endswith("kernel")]
    tables = [sizes["token_embedding/embedding"], sizes["block_position_embedding/embedding"]]
    assert counted == {
        "muon": [str(len(kernels)), f"{sum(kernels):,}"],
        "adamw": [
            str(len(sizes) - len(kernels) - 1),
            f"{sum(sizes.values()) - sum(kernels) - sizes['position_embedding/embedding']:,}",
        ],
        "frozen": ["1", f"{sizes['position_embedding/embedding']:,}"],
        "weight decay 0.1": [str(len(kernels) + 2), f"{sum(kernels) + sum(tables):,}"],
        "learning rate x 0.5": ["3", f"{sizes['token_embedding/embedding'] + 2 * 32:,}"],
    }


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_a_batch(rule):
    config = changed(tiny_config(), "optimizer", name=rule)
    sharding = make_sharding(MeshConfig(), jax.devices()[:1])
    state = init_state(config, sharding)
    step = make_train_step(config, sharding, num_sources=2)
    batch = sharding.place(make_batch(0))
    state, first = step(state, batch)
    for _ in range(19):
        state, last = step(state, batch)
    assert last.sums.loss.sum() < 0.5 * first.sums.loss.sum()
    assert int(state.step) == 20


@pytest.mark.multidevice
@pytest.mark.parametrize("rule", RULES)
def test_state_lies_as_the_parameters(rule):
    config = OptimizerConfig(name=rule, frozen=("^position",))
    sharding = make_sharding(MeshConfig(data=1, fsdp=2, model=2))
    shapes, axes = tiny()
    state = jax.eval_shape(make_optimizer(config, shapes).init, shapes)
    shardings = opt_state_shardings(config, shapes, axes, sharding)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    params = named(sharding.tree(shapes, axes))
    for (path, leaf), lies in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        lies.shard_shape(leaf.shape)  # raises if it does not divide
        if leaf.ndim == 0:
            assert lies == sharding.replicated
        elif leaf.shape == named(shapes)[path[-1].key].shape:
            assert lies == params[path[-1].key]
    if rule == "adafactor":
        query, out = "layers/attention/query/kernel", "layers/attention/out/kernel"
        table = "token_embedding/embedding"
        row, column = (getattr(shardings["adafactor"][0], side) for side in ("row", "column"))
        assert row[query].spec == P(None, "fsdp")
        assert column[query].spec == P(None, "model", None)
        assert row[out].spec == P(None, "model", None)
        assert column[out].spec == P(None, "fsdp")
        assert row[table].spec == P("model")
        assert column[table].spec == P("fsdp")


@pytest.mark.multidevice
@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_a_mesh_gives_the_curve_of_one_device(rule):
    config = changed(tiny_config(), "optimizer", name=rule, learning_rate=4e-3)

    def curve(sharding) -> list[float]:
        state = init_state(config, sharding)
        step = make_train_step(config, sharding, num_sources=2)
        losses = []
        for number in range(20):
            state, metrics = step(state, sharding.place(make_batch(number)))
            losses.append(float(metrics.sums.loss.sum() / metrics.sums.weight.sum()))
        return losses

    expected = curve(make_sharding(MeshConfig(), jax.devices()[:1]))
    meshed = curve(make_sharding(MeshConfig(data=1, fsdp=2, model=2)))
    np.testing.assert_allclose(meshed, expected, rtol=1e-5)
