"""The train and eval steps: pure functions of state and batch under one jit each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.model import glm
from glm_jax.ops.cross_entropy import target_cross_entropy
from glm_jax.ops.range_attention import context_order
from glm_jax.parallel.sharding import (
    SEQUENCE_AXIS,
    WEIGHT_AXES,
    Sharding,
    active_mesh,
    constrain,
    param_name,
)
from glm_jax.training.bad_steps import GOOD, History, empty_history, judge, remember
from glm_jax.training.metrics import Sums, batch_sums
from glm_jax.training.optimizer import make_optimizer, opt_state_shardings, treatments
from glm_jax.training.schedules import make_schedule


class TrainState(NamedTuple):
    """All that training changes. Dropout keys are folded from (config.seed, step)."""

    params: dict
    ema: dict | None  # moving average of params, float32 or wider; None without ema_decay
    opt_state: optax.OptState
    history: History
    step: jax.Array  # int32, batches taken, skipped ones too


class StepMetrics(NamedTuple):
    sums: Sums
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array
    verdict: jax.Array  # int32, index into bad_steps.VERDICTS
    noise: jax.Array | None  # see `_noise`; None without accumulation


def state_shardings(config: Config, sharding: Sharding) -> tuple[TrainState, TrainState]:
    """Abstract state (shapes and dtypes) and its shardings; optimizer moments lie as parameters."""
    shapes, axes = glm.abstract_params(config.model)
    params = sharding.tree(shapes, axes)
    abstract = jax.eval_shape(lambda: _fresh_state(config, jax.random.key(0)))
    history = jax.tree.map(lambda _: sharding.replicated, abstract.history)
    return abstract, TrainState(
        params=params,
        ema=None if abstract.ema is None else params,
        opt_state=opt_state_shardings(config.optimizer, shapes, axes, sharding),
        history=history,
        step=sharding.replicated,
    )


def init_state(config: Config, sharding: Sharding) -> TrainState:
    """Fresh parameters and optimizer state, created in place on the mesh."""
    _, shardings = state_shardings(config, sharding)
    with sharding.activate():
        init = jax.jit(lambda key: _fresh_state(config, key), out_shardings=shardings)
        return init(jax.random.key(config.seed))


def state_from_params(config: Config, sharding: Sharding, params: dict) -> TrainState:
    """The state before the first step of a run that starts from `params`, which are donated."""
    _, shardings = state_shardings(config, sharding)
    with sharding.activate():
        init = jax.jit(
            lambda params: _first_state(config, params),
            out_shardings=shardings,
            donate_argnums=0,
        )
        return init(params)


def _fresh_state(config: Config, key: jax.Array) -> TrainState:
    return _first_state(config, glm.init_params(config.model, key))


def _first_state(config: Config, params: dict) -> TrainState:
    return TrainState(
        params=params,
        ema=jax.tree.map(_wide_copy, params) if config.optimizer.ema_decay else None,
        opt_state=make_optimizer(config.optimizer, params).init(params),
        history=empty_history(config.bad_steps),
        step=jnp.zeros((), jnp.int32),
    )


def with_empty_history(state: TrainState) -> TrainState:
    """The state without past losses and gradient norms to judge the next steps by."""
    history = state.history
    return state._replace(history=history._replace(count=jnp.zeros_like(history.count)))


def _wide_copy(x: jax.Array) -> jax.Array:
    """In bfloat16 an average with a decay near 1 would not move."""
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)


def make_train_step(config: Config, sharding: Sharding, num_sources: int):
    """Compiles to `(state, batch [B, T]) -> (state, StepMetrics)`; the state is donated.

    The gradient is that of the sum of weighted losses over the sum of weights of the whole batch,
    whatever the number of devices and accumulation steps. A bad step counts, and changes nothing
    else.
    """
    abstract, shardings = state_shardings(config, sharding)
    optimizer = make_optimizer(config.optimizer, abstract.params)
    schedule = make_schedule(config.optimizer, config.training.steps)
    rules = treatments(config.optimizer, abstract.params)

    def loss(params: dict, batch: Batch, total_weight: jax.Array, step: jax.Array, key):
        params = jax.tree_util.tree_map_with_path(
            # No work for gradients that nobody uses, and no share of them in the norm.
            lambda path, p: (
                jax.lax.stop_gradient(p) if rules[param_name(path)].rule == "frozen" else p
            ),
            params,
        )
        loss_sum, sums = _forward(config, params, batch, num_sources, step, key)
        return loss_sum / total_weight, sums

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        gradients, sums, noise = _accumulate(
            jax.grad(loss, has_aux=True),
            config.training.accumulation_steps,
            state,
            batch,
            _dropout_key(config, state.step),
        )
        mean_loss = sums.loss.sum() / jnp.maximum(sums.weight.sum(), 1.0)
        grad_norm = optax.tree.norm(gradients)
        verdict = judge(config.bad_steps, state.history, mean_loss, grad_norm)
        learning_rate = schedule(state.step)
        updated = _updated(config, optimizer, state, gradients, learning_rate)
        updated = updated._replace(history=remember(state.history, mean_loss, grad_norm))
        kept = jax.tree.map(lambda new, old: jnp.where(verdict == GOOD, new, old), updated, state)
        metrics = StepMetrics(sums, grad_norm, learning_rate, verdict, noise)
        streak = jnp.where(verdict == GOOD, 0, state.history.streak + 1)
        history = kept.history._replace(streak=streak)
        return kept._replace(history=history, step=state.step + 1), metrics

    return _jit(step, sharding, (shardings, sharding.slots), (shardings, sharding.replicated), (0,))


def _updated(config: Config, optimizer, state: TrainState, gradients, learning_rate) -> TrainState:
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(
        lambda p, u: (p - learning_rate * u).astype(p.dtype), state.params, updates
    )
    ema = state.ema
    if ema is not None:
        # The first steps would otherwise weigh the random start (as in TensorFlow's average).
        decay = jnp.minimum(config.optimizer.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p.astype(e.dtype), ema, params)
    return state._replace(params=params, ema=ema, opt_state=opt_state)


def make_eval_step(config: Config, sharding: Sharding, num_sources: int):
    """Compiles to `(params, batch [B, T]) -> Sums`, without dropout."""

    def step(params: dict, batch: Batch) -> Sums:
        return _forward(config, params, batch, num_sources, step=None, dropout_key=None)[1]

    _, shardings = state_shardings(config, sharding)
    return _jit(step, sharding, (shardings.params, sharding.slots), sharding.replicated, ())


def _forward(config: Config, params: dict, batch: Batch, num_sources: int, step, dropout_key):
    """The sum of weighted losses, float32, and the sums for metrics; `step` is None to evaluate."""
    order = context_order(
        batch.kv_start, batch.kv_end, backend=config.model.attention_backend, mesh=active_mesh()
    )
    slots = batch if order is None else _lay_out(order.arrange, batch)
    hidden = glm.apply_hidden(
        config.model,
        params,
        slots.tokens,
        slots.position,
        slots.block_position,
        slots.kv_start,
        slots.kv_end,
        dropout_key,
        None if step is None else _embedding_gradient_share(config, step),
        order,
    )
    kernel = glm.output_kernel(config.model, params)
    loss_sum, stats = target_cross_entropy(
        hidden,
        kernel,
        slots.targets,
        slots.weights,
        z_loss=config.training.z_loss,
        mesh=active_mesh(),
        sequence_axis=SEQUENCE_AXIS,
        kernel_axes=WEIGHT_AXES,
    )
    if order is not None:
        stats = _lay_out(order.restore, stats)
    return loss_sum, batch_sums(batch, stats, num_sources)


def _lay_out(move, slots):
    """Moves the slots [B, T] of a pytree, which stay split over devices as they were."""
    return jax.tree.map(lambda x: constrain(move(x), "batch", "sequence"), slots)


def _embedding_gradient_share(config: Config, step: jax.Array) -> jax.Array | None:
    """The scheduled share, or None where it is 1 for good."""
    shares = config.training.embedding_gradient_shrink
    if set(shares) == {1.0}:
        return None
    steps = config.training.embedding_gradient_shrink_steps
    return jnp.interp(step, jnp.array(steps, jnp.float32), jnp.array(shares, jnp.float32))


def _accumulate(gradient, num: int, state: TrainState, batch: Batch, key: jax.Array | None):
    """Gradient and sums over `num` micro-batches of every num-th row, and their noise."""
    total_weight = jnp.maximum(jnp.sum(batch.weights), 1.0)
    if num == 1:
        return *gradient(state.params, batch, total_weight, state.step, key), None
    micro = jax.tree.map(lambda x: x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = None if key is None else jax.random.split(key, num)

    def part(micro_batch, micro_key):
        gradients, sums = gradient(state.params, micro_batch, total_weight, state.step, micro_key)
        share = jnp.maximum(jnp.sum(micro_batch.weights), 1.0) / total_weight
        return gradients, sums, (optax.tree.norm(gradients) / share) ** 2

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, part(*inputs)), None

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    shapes = jax.eval_shape(part, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradients, sums, squared_norms = jax.lax.scan(add, zeros, (micro, keys))[0]
    noise = _noise(squared_norms / num, optax.tree.norm(gradients) ** 2, len(batch.tokens), num)
    return gradients, sums, noise


def _noise(small: jax.Array, big: jax.Array, rows: int, num: int) -> jax.Array:
    """Unbiased estimates of tr(covariance) of a row's gradient and |true gradient|^2, float32 [2].

    From the squared gradient norms of micro-batches and of the whole batch (McCandlish et al. 2018,
    arXiv 1812.06162, appendix A.1); the ratio of their averages is the gradient noise scale, in
    rows.
    """
    small_rows = rows / num
    covariance = (small - big) / (1 / small_rows - 1 / rows)
    true_gradient = (rows * big - small_rows * small) / (rows - small_rows)
    return jnp.stack([covariance, true_gradient])


def _dropout_key(config: Config, step: jax.Array) -> jax.Array | None:
    if config.model.embedding_dropout == 0 and config.model.output_dropout == 0:
        return None
    return jax.random.fold_in(jax.random.key(config.seed), step)


class _Jitted:
    """A jitted function whose calls, and `lower`, see the layout of `sharding`."""

    def __init__(self, jitted, sharding: Sharding):
        self._jitted, self._sharding = jitted, sharding

    def __call__(self, *args):
        with self._sharding.activate():
            return self._jitted(*args)

    def lower(self, *args) -> jax.stages.Lowered:
        with self._sharding.activate():
            return self._jitted.lower(*args)


def _jit(function, sharding: Sharding, in_shardings, out_shardings, donate: tuple[int, ...]):
    jitted = jax.jit(
        function, in_shardings=in_shardings, out_shardings=out_shardings, donate_argnums=donate
    )
    return _Jitted(jitted, sharding)
