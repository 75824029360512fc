"""The train and eval steps: pure functions of state and batch under one jit each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.model import glm
from glm_jax.ops.cross_entropy import target_cross_entropy
from glm_jax.parallel.sharding import Sharding, active_mesh
from glm_jax.training.metrics import Sums, batch_sums
from glm_jax.training.optimizer import make_optimizer, make_schedule


class TrainState(NamedTuple):
    """All that training changes. Dropout keys are folded from (config.seed, step)."""

    params: dict
    opt_state: optax.OptState
    step: jax.Array  # int32, updates done


class StepMetrics(NamedTuple):
    sums: Sums
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array


def state_shardings(config: Config, sharding: Sharding) -> tuple[TrainState, TrainState]:
    """Abstract state (shapes and dtypes) and its shardings; optimizer moments lie as parameters."""
    shapes, axes = glm.abstract_params(config.model)
    params = sharding.tree(shapes, axes)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract_opt = jax.eval_shape(optimizer.init, shapes)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, spec: spec,
        abstract_opt,
        params,
        transform_non_params=lambda _: sharding.replicated,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(shapes, abstract_opt, step), TrainState(
        params, opt_state, sharding.replicated
    )


def init_state(config: Config, sharding: Sharding) -> TrainState:
    """Fresh parameters and optimizer state, created in place on the mesh."""
    optimizer = make_optimizer(config.optimizer, config.training.steps)

    def init(key: jax.Array) -> TrainState:
        params = glm.init_params(config.model, key)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    _, shardings = state_shardings(config, sharding)
    with sharding.activate():
        return jax.jit(init, out_shardings=shardings)(jax.random.key(config.seed))


def make_train_step(config: Config, sharding: Sharding, num_sources: int):
    """Compiles to `(state, batch [B, T]) -> (state, StepMetrics)`; the state is donated.

    The gradient is that of the sum of weighted losses over the sum of weights of the whole batch,
    whatever the number of devices and accumulation steps.
    """
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    schedule = make_schedule(config.optimizer, config.training.steps)

    def loss(params: dict, batch: Batch, total_weight: jax.Array, key: jax.Array | None):
        loss_sum, sums = _forward(config, params, batch, num_sources, key)
        return loss_sum / total_weight, sums

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = _dropout_key(config, state.step)
        gradients, sums = _accumulate(
            jax.grad(loss, has_aux=True), config.training.accumulation_steps, state, batch, key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(sums, optax.tree.norm(gradients), schedule(state.step))
        return TrainState(params, opt_state, state.step + 1), metrics

    _, shardings = state_shardings(config, sharding)
    return _jit(step, sharding, (shardings, sharding.batch), (shardings, sharding.replicated), (0,))


def make_eval_step(config: Config, sharding: Sharding, num_sources: int):
    """Compiles to `(params, batch [B, T]) -> Sums`, without dropout."""

    def step(params: dict, batch: Batch) -> Sums:
        return _forward(config, params, batch, num_sources, dropout_key=None)[1]

    _, shardings = state_shardings(config, sharding)
    return _jit(step, sharding, (shardings.params, sharding.batch), sharding.replicated, ())


def _forward(config: Config, params: dict, batch: Batch, num_sources: int, dropout_key):
    """The sum of weighted losses, float32, and the sums for metrics."""
    hidden = glm.apply_hidden(
        config.model,
        params,
        batch.tokens,
        batch.position,
        batch.block_position,
        batch.kv_start,
        batch.kv_end,
        dropout_key,
    )
    kernel = glm.output_kernel(config.model, params)
    loss_sum, stats = target_cross_entropy(
        hidden, kernel, batch.targets, batch.weights, mesh=active_mesh()
    )
    return loss_sum, batch_sums(batch, stats, num_sources)


def _accumulate(gradient, num: int, state: TrainState, batch: Batch, key: jax.Array | None):
    """Sums gradients and metrics over `num` micro-batches of every num-th row."""
    total_weight = jnp.maximum(jnp.sum(batch.weights), 1.0)
    if num == 1:
        return gradient(state.params, batch, total_weight, key)
    micro = jax.tree.map(lambda x: x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = None if key is None else jax.random.split(key, num)

    def add(total, inputs):
        micro_batch, micro_key = inputs
        part = gradient(state.params, micro_batch, total_weight, micro_key)
        return jax.tree.map(jnp.add, total, part), None

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    shapes = jax.eval_shape(lambda: gradient(state.params, first[0], total_weight, first[1]))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (micro, keys))[0]


def _dropout_key(config: Config, step: jax.Array) -> jax.Array | None:
    if config.model.embedding_dropout == 0 and config.model.output_dropout == 0:
        return None
    return jax.random.fold_in(jax.random.key(config.seed), step)


def _jit(function, sharding: Sharding, in_shardings, out_shardings, donate: tuple[int, ...]):
    jitted = jax.jit(
        function, in_shardings=in_shardings, out_shardings=out_shardings, donate_argnums=donate
    )

    def call(*args):
        with sharding.activate():
            return jitted(*args)

    return call
