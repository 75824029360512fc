"""The parts of a GLM block and their initial values.

Modules of the layer stack carry a leading `layers` axis on every parameter (`stack`).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from glm_jax.config import ModelConfig
from glm_jax.ops.block_order import BlockOrder
from glm_jax.ops.linear import linear, whole_vector
from glm_jax.parallel.sharding import WeightLayout, active_layout, constrain

LOGICAL_AXES = "logical_axes"
"""Metadata key of a parameter's logical axes; `param` is its only writer."""


def param(rngs: nnx.Rngs, shape: dict[str, int], init, config: ModelConfig) -> nnx.Param:
    """A parameter whose `shape` maps each logical axis to its size, in order."""
    value = init(rngs.params(), tuple(shape.values()), jnp.dtype(config.param_dtype))
    return nnx.Param(value, **{LOGICAL_AXES: tuple(shape)})


def weight_layout(parameter: nnx.Param) -> WeightLayout | None:
    """Where the devices have the values of a parameter of one layer."""
    shape = parameter[...].shape
    return active_layout(shape, parameter.get_metadata()[LOGICAL_AXES][-len(shape) :])


def vector(parameter: nnx.Param, dtype) -> jax.Array:
    """The values of a scale or bias, in every device."""
    return whole_vector(parameter[...].astype(dtype), weight_layout(parameter))


class Norm(nnx.Module):
    """Layer or root-mean-square normalisation, computed in float32 (or wider)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: dict[str, int]):
        shape = {**stack, "embed": config.hidden_dim}
        self.scale = param(rngs, shape, jax.nn.initializers.ones, config)
        if config.norm == "layernorm":
            self.bias = param(rngs, shape, jax.nn.initializers.zeros, config)
        self.has_mean = config.norm == "layernorm"
        self.eps = config.norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.has_mean:
            wide = wide - wide.mean(-1, keepdims=True)
        normed = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + self.eps)
        normed = normed * vector(self.scale, wide.dtype)
        normed = normed + vector(self.bias, wide.dtype) if self.has_mean else normed
        return normed.astype(x.dtype)


class Linear(nnx.Module):
    """x [..., *inputs] -> [..., *outputs], with or without a bias over the outputs."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        stack: dict[str, int],
        inputs: dict[str, int],
        outputs: dict[str, int],
        init,
        has_bias: bool,
    ):
        self.kernel = param(rngs, {**stack, **inputs, **outputs}, init, config)
        self.num_inputs, self.has_bias = len(inputs), has_bias
        if has_bias:
            self.bias = param(rngs, {**stack, **outputs}, jax.nn.initializers.zeros, config)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = linear(x, self.kernel[...], self.num_inputs, weight_layout(self.kernel))
        return y + vector(self.bias, x.dtype) if self.has_bias else y


# GELU in its tanh form is what Megatron GLM and ChatGLM-6B were trained with; the hub's GLM class
# and GLM-130B have the exact one.
_NONLINEARITY = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "geglu": functools.partial(jax.nn.gelu, approximate=False),
    "swiglu": jax.nn.silu,
}


class MLP(nnx.Module):
    """down(f(up(x))), or down(f(gate(x)) * up(x)) where it is gated (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: dict[str, int]):
        embed, hidden = {"embed": config.hidden_dim}, {"mlp": config.mlp_dim}
        init, bias = initializers(config), config.linear_bias
        self.is_gated = config.is_gated
        if self.is_gated:
            self.gate = Linear(config, rngs, stack, embed, hidden, init["up"], bias)
        self.up = Linear(config, rngs, stack, embed, hidden, init["up"], bias)
        self.down = Linear(config, rngs, stack, hidden, embed, init["down"], bias)
        self.nonlinearity = _NONLINEARITY[config.activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self._project(self.up, x)
        if self.is_gated:
            gate = self._project(self.gate, x)
            return self.down(self.nonlinearity(gate) * hidden)
        return self.down(self.nonlinearity(hidden))

    def _project(self, to_hidden: Linear, x: jax.Array) -> jax.Array:
        return checkpoint_name(constrain(to_hidden(x), "batch", "sequence", "mlp"), "mlp_hidden")


def dropout(
    x: jax.Array, rate: float, key: jax.Array | None, order: BlockOrder | None = None
) -> jax.Array:
    """Inverted dropout of x [B, T, D], which is arranged by `order`; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    if order is not None:  # what is dropped does not depend on who has which slots
        keep = order.arrange(keep)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def initializers(config: ModelConfig) -> dict:
    """Initializer of each weight.

    Pre-LN (Megatron GLM) and sandwich: N(0, init_std), the two projections onto the residual
    stream divided by sqrt(2 L). DeepNorm (GLM-130B): Xavier normal, with gain (2 L)^-1/2 for
    everything but query and key. Embeddings are N(0, init_std) in all.
    """
    normal = jax.nn.initializers.normal
    depth = (2 * config.num_layers) ** -0.5
    embedding = normal(config.init_std)
    if config.residual != "deepnorm":
        out = normal(config.init_std * depth)
        weights = dict.fromkeys(("query_key", "value", "up"), embedding) | {"out": out, "down": out}
    else:
        square = config.hidden_dim**-0.5
        mlp = (2 / (config.hidden_dim + config.mlp_dim)) ** 0.5
        weights = {
            "query_key": normal(square),
            "value": normal(square * depth),
            "out": normal(square * depth),
            "up": normal(mlp * depth),
            "down": normal(mlp * depth),
        }
    return weights | {"embedding": embedding}
