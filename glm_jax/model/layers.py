"""The parts of a GLM block and their initial values.

Modules of the layer stack carry a leading `layers` axis on every parameter (`stack`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from glm_jax.config import ModelConfig
from glm_jax.parallel.sharding import constrain

LOGICAL_AXES = "logical_axes"
"""Metadata key of a parameter's logical axes; `param` is its only writer."""


def param(rngs: nnx.Rngs, shape: dict[str, int], init, config: ModelConfig) -> nnx.Param:
    """A parameter whose `shape` maps each logical axis to its size, in order."""
    value = init(rngs.params(), tuple(shape.values()), jnp.dtype(config.param_dtype))
    return nnx.Param(value, **{LOGICAL_AXES: tuple(shape)})


class LayerNorm(nnx.Module):
    """Layer normalisation with statistics in float32 (or wider)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: dict[str, int]):
        shape = {**stack, "embed": config.hidden_dim}
        self.scale = param(rngs, shape, jax.nn.initializers.ones, config)
        self.bias = param(rngs, shape, jax.nn.initializers.zeros, config)
        self.eps = config.norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """x [..., *inputs] -> [..., *outputs], with a bias over the outputs."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        stack: dict[str, int],
        inputs: dict[str, int],
        outputs: dict[str, int],
        init,
    ):
        self.kernel = param(rngs, {**stack, **inputs, **outputs}, init, config)
        self.bias = param(rngs, {**stack, **outputs}, jax.nn.initializers.zeros, config)
        self.num_inputs = len(inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        return jnp.tensordot(x, kernel, self.num_inputs) + bias


class MLP(nnx.Module):
    """Two linear maps around a GELU: tanh (Megatron GLM, ChatGLM) or erf (the hub's GLM class)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: dict[str, int]):
        embed, hidden = {"embed": config.hidden_dim}, {"mlp": config.mlp_dim}
        init = initializers(config)
        self.up = Linear(config, rngs, stack, embed, hidden, init["up"])
        self.down = Linear(config, rngs, stack, hidden, embed, init["down"])
        self.approximate = config.activation == "gelu_tanh"

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = constrain(self.up(x), "batch", "sequence", "mlp")
        return self.down(jax.nn.gelu(hidden, approximate=self.approximate))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def initializers(config: ModelConfig) -> dict:
    """Initializer of each weight.

    Pre-LN (Megatron GLM): N(0, init_std), the two projections onto the residual stream divided by
    sqrt(2 L). DeepNorm (GLM-130B): Xavier normal, with gain (2 L)^-1/2 for everything but query
    and key; embeddings N(0, init_std) in both.
    """
    normal = jax.nn.initializers.normal
    depth = (2 * config.num_layers) ** -0.5
    embedding = normal(config.init_std)
    if config.residual == "pre":
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
