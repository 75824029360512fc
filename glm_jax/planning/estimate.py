"""About what a device holds in a step, by arithmetic alone: for an order, and for advice.

What fits, the compiler says.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh

from glm_jax.config import Config, ModelConfig, OptimizerConfig
from glm_jax.model import glm
from glm_jax.parallel.mesh import AXES
from glm_jax.parallel.sharding import Sharding, param_name, rules_of
from glm_jax.training.flops import model_costs
from glm_jax.training.optimizer import make_optimizer, treatments

costs_of = functools.cache(model_costs)


class Estimate(NamedTuple):
    """Bytes of a device."""

    state: float  # parameters, their average, optimizer state and gradients
    activations: float  # what layers keep and work in, and weights that are gathered for them

    @property
    def total(self) -> float:
        return self.state + self.activations


class _Weights(NamedTuple):
    """The parameters of a model under an optimizer, wherever they lie.

    Attributes:
      arrays: shape, logical axes and bytes of each.
      held: bytes that are held for a byte of them: itself, its average and moments.
      trained: share of the bytes that have a gradient.
    """

    arrays: list[tuple[tuple[int, ...], tuple[str, ...], int]]
    held: float
    trained: float


def estimate(config: Config, mesh: tuple[int, ...]) -> Estimate:
    """The bytes of a device in a step.

    Args:
      config: one part of a run, with no stages.
      mesh: sizes of `AXES`.
    """
    data, fsdp, context, model = mesh
    slots = config.training.batch_size * config.data.seq_length
    slots /= config.training.accumulation_steps * data * fsdp * context
    layers = 2 * slots * _layer_widths(config.model) / model
    return Estimate(_state(config, mesh), layers + _gathered(config.model, mesh))


def _state(config: Config, mesh: tuple[int, ...]) -> float:
    weights = _weights(dataclasses.replace(config.model, remat="none"), config.optimizer)
    sharding = Sharding(AbstractMesh(mesh, AXES), rules_of(config.mesh))
    held = 0.0
    for shape, axes, size in weights.arrays:
        parts = (sharding.mesh.shape[a] for split in sharding.split(shape, axes) for a in split)
        held += size / math.prod(parts)
    # Micro-batches add theirs to a sum.
    gradients = weights.trained * (1 + (config.training.accumulation_steps > 1))
    return held * (weights.held + gradients)


@functools.cache
def _weights(model: ModelConfig, optimizer: OptimizerConfig) -> _Weights:
    shapes, axes = glm.abstract_params(model)
    moments = jax.eval_shape(make_optimizer(optimizer, shapes).init, shapes)
    rules = treatments(optimizer, shapes)
    named = jax.tree_util.tree_leaves_with_path(shapes)
    trained = [leaf for path, leaf in named if rules[param_name(path)].rule != "frozen"]
    total = _bytes(shapes)
    average = 4 * _bytes(shapes) / jax.tree.leaves(shapes)[0].dtype.itemsize
    held = total + _bytes(moments) + average * bool(optimizer.ema_decay)
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    arrays = [(leaf.shape, of, _bytes(leaf)) for (_, leaf), of in zip(named, names, strict=True)]
    return _Weights(arrays, held / total, _bytes(trained) / total)


def _bytes(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _layer_widths(model: ModelConfig) -> float:
    """Elements of a slot that all layers keep for the backward pass, and one works in."""
    if model.remat == "none":
        return model.num_layers * KEPT_WITHOUT_REMAT * _products(model)
    return model.num_layers * _kept(model) + WORKED_IN * _products(model)


KEPT_WITHOUT_REMAT, WORKED_IN = 4.7, 2.5
"""What a layer keeps, and what the one works in that is computed again, in units of its products.

With these the estimate is 0.85 to 1.1 of what libtpu 0.0.42.1 compiled for v5p, of
`glm_2021:large` with each remat on 8 chips and `glm_2021:10b` and `glm_130b` on 64.
"""


def _products(model: ModelConfig) -> int:
    """Elements of a slot in the results of a layer's products."""
    gated = 1 + model.is_gated
    mlp = gated * model.mlp_dim
    return mlp + (3 + 2 * model.is_gated) * model.hidden_dim + _widths(model)["qkv"]


def _widths(model: ModelConfig) -> dict[str, int]:
    """Elements of a slot in each of the arrays that `model.remat_saved` may name."""
    return {
        "qkv": (model.num_heads + 2 * model.kv_heads) * model.head_dim,
        "attention_out": model.num_heads * model.head_dim,
        "attention_lse": 2 * model.num_heads,
        "residual": model.hidden_dim,
        "mlp_hidden": (1 + model.is_gated) * model.mlp_dim,
    }


def _kept(model: ModelConfig) -> int:
    """Elements of a slot that a layer keeps on the device."""
    if model.remat != "selective":
        return model.hidden_dim
    widths = _widths(model)
    return model.hidden_dim + sum(widths[name] for name in model.remat_saved)


def _gathered(model: ModelConfig, mesh: tuple[int, ...]) -> float:
    """The largest gathered kernel, of a layer or the head, and its gradient in float32."""
    _, fsdp, context, size = mesh
    costs = costs_of(model)
    largest = max(costs.layer_weights // model.num_layers, costs.head_weights)
    return (2 + 4) * largest / size * (fsdp * context > 1)
