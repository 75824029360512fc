"""GLM: one module for the family; a member is a `ModelConfig`.

Everything outside `glm_jax.model` sees plain pytrees: parameters are nested dicts of arrays with
the names of `abstract_params`, and the functions below take them.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from glm_jax.config import ModelConfig
from glm_jax.model.attention import Attention, KVCache, Visibility
from glm_jax.model.layers import (
    LOGICAL_AXES,
    MLP,
    Norm,
    dropout,
    initializers,
    param,
    weight_layout,
)
from glm_jax.model.positions import rotation
from glm_jax.model.remat import remat
from glm_jax.ops.block_order import BlockOrder
from glm_jax.ops.embedding import embedding_lookup
from glm_jax.ops.range_attention import block_bounds
from glm_jax.parallel.sharding import active_mesh, constrain

Params = dict


class Embedding(nnx.Module):
    """A table of `num` rows."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, axis: str, num: int):
        shape = {axis: num, "embed": config.hidden_dim}
        self.embedding = param(rngs, shape, initializers(config)["embedding"], config)

    def __call__(self, index: jax.Array, dtype) -> jax.Array:
        """Rows [B, T, D] of the table at index int32 [B, T]."""
        return embedding_lookup(self.embedding[...], index, dtype, weight_layout(self.embedding))


class Head(nnx.Module):
    """The untied output projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = {"embed": config.hidden_dim, "vocab": config.vocab_size}
        self.kernel = param(rngs, shape, initializers(config)["embedding"], config)


class Block(nnx.Module):
    """One layer, attention and mlp: twice one of three residual forms.

    `pre`: x + f(norm(x)). `deepnorm`: alpha * norm(x) + f(norm(x)) (GLM-130B). `sandwich`:
    x + norm'(f(norm(x))) (GLM-4-0414).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: dict[str, int]):
        self.attention_norm = Norm(config, rngs, stack)
        self.attention = Attention(config, rngs, stack)
        self.mlp_norm = Norm(config, rngs, stack)
        self.mlp = MLP(config, rngs, stack)
        self.is_sandwich = config.residual == "sandwich"
        if self.is_sandwich:
            self.attention_out_norm = Norm(config, rngs, stack)
            self.mlp_out_norm = Norm(config, rngs, stack)
        self.dropout = config.output_dropout
        self.deepnorm_scale = config.residual_scale if config.residual == "deepnorm" else None

    def __call__(self, x, visibility, rotation, dropout_key, cache):
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        normed = self.attention_norm(x)
        out, cache = self.attention(normed, visibility, rotation, cache)
        out = dropout(self._out(out, "attention"), self.dropout, keys[0], visibility.order)
        x = checkpoint_name(self._add(x, normed, out), "residual")
        normed = self.mlp_norm(x)
        out = dropout(self._out(self.mlp(normed), "mlp"), self.dropout, keys[1], visibility.order)
        return self._add(x, normed, out), cache

    def _out(self, x, sublayer: str):
        if not self.is_sandwich:
            return x
        return getattr(self, f"{sublayer}_out_norm")(checkpoint_name(x, "residual"))

    def _add(self, x, normed, out):
        residual = x if self.deepnorm_scale is None else self.deepnorm_scale * normed
        return constrain(residual + out, "batch", "norm_sequence", "embed")


class GLM(nnx.Module):
    """Embeddings, L blocks and a final norm. `__call__` returns hidden states, not logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = Embedding(config, rngs, "vocab", config.vocab_size)
        if config.position == "learned_2d":
            rows = config.max_positions + 1
            self.position_embedding = Embedding(config, rngs, "positions", rows)
            self.block_position_embedding = Embedding(config, rngs, "positions", rows)
        self.layers = Block(config, rngs, {"layers": config.num_layers})
        self.final_norm = Norm(config, rngs, {})
        if not config.tie_embeddings:
            self.head = Head(config, rngs)

    def __call__(
        self,
        tokens,
        position,
        block_position,
        visibility,
        dropout_key=None,
        cache=None,
        embedding_gradient_share=None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states [B, T, D] after the final norm, and the updated cache.

        Args:
          tokens, position, block_position: int32 [B, T].
          visibility: key ranges [B, T]; with a cache they count its slots.
          dropout_key: None switches dropout off.
          cache: keys and values of earlier slots; this call writes its own after them.
          embedding_gradient_share: see `apply_hidden`.
        """
        config = self.config
        embedding_key, layers_key = (
            (None, None) if dropout_key is None else jax.random.split(dropout_key)
        )
        x = self._embed(tokens, position, block_position, embedding_gradient_share)
        x = dropout(x, config.embedding_dropout, embedding_key, visibility.order)
        turn = rotation(config, position, block_position)
        x, cache = self._run_layers(x, visibility, turn, layers_key, cache)
        return self.final_norm(x), cache

    def _embed(self, tokens, position, block_position, share):
        dtype = jnp.dtype(self.config.dtype)
        x = self.token_embedding(tokens, dtype)
        if share is not None:
            x = _scale_gradient(x, share)
        if self.config.position == "learned_2d":
            x = x + self.position_embedding(position, dtype)
            x = x + self.block_position_embedding(block_position, dtype)
        return constrain(x, "batch", "norm_sequence", "embed")

    def _run_layers(self, x, visibility, rotation, dropout_key, cache):
        config = self.config
        graph, stacked = nnx.split(self.layers)
        keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)
        start = None if cache is None else cache.length

        def layer(x, inputs):
            weights, key, key_value = inputs
            layer_cache = None if key_value is None else KVCache(*key_value, start)
            block = nnx.merge(graph, weights)
            x, layer_cache = block(x, visibility, rotation, key, layer_cache)
            return x, None if layer_cache is None else layer_cache[:2]

        key_values = None if cache is None else cache[:2]
        unroll = 1 if config.scan_layers else config.num_layers
        x, key_values = jax.lax.scan(
            remat(layer, config), x, (stacked, keys, key_values), unroll=unroll
        )
        if cache is None:
            return x, None
        return x, KVCache(*key_values, start)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters as a nested dict of arrays of `config.param_dtype`."""
    return nnx.to_pure_dict(nnx.state(GLM(config, nnx.Rngs(key)), nnx.Param))


def abstract_params(config: ModelConfig) -> tuple[Params, Params]:
    """Shapes and logical axes of every parameter, without allocating any.

    Returns:
      Two nested dicts of the same structure: `jax.ShapeDtypeStruct` and tuples of axis names.
    """
    state = nnx.state(nnx.eval_shape(lambda: GLM(config, nnx.Rngs(0))), nnx.Param)
    axes = jax.tree.map(
        lambda p: p.get_metadata()[LOGICAL_AXES], state, is_leaf=lambda p: isinstance(p, nnx.Param)
    )
    return nnx.to_pure_dict(state), nnx.to_pure_dict(axes)


def apply_hidden(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    position: jax.Array,
    block_position: jax.Array,
    kv_start: jax.Array,
    kv_end: jax.Array,
    dropout_key: jax.Array | None = None,
    embedding_gradient_share: jax.Array | None = None,
    order: BlockOrder | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] of rows; all integer arguments are int32 [B, T].

    Args:
      dropout_key: None switches dropout off.
      embedding_gradient_share: a scalar in [0, 1], the share of the gradient that reaches the token
        table through the input (GLM-130B, arXiv 2210.02414, section 2.2); None for all of it.
      order: the arguments and the result are arranged by it, see `ops.range_attention`.
    """
    bounds = block_bounds(
        kv_start,
        kv_end,
        tokens.shape[1],
        backend=config.attention_backend,
        order=order,
        mesh=active_mesh(),
    )
    visibility = Visibility(kv_start, kv_end, bounds, order)
    hidden, _ = _bind(config, params)(
        tokens,
        position,
        block_position,
        visibility,
        dropout_key,
        embedding_gradient_share=embedding_gradient_share,
    )
    return hidden


def apply_cached(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    tokens: jax.Array,
    position: jax.Array,
    block_position: jax.Array,
    kv_start: jax.Array,
    kv_end: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Logits [B, T, V] of tokens that follow what the cache holds, and the cache with them.

    `cache.length` stays as it was: the caller knows how many of the T tokens count.
    """
    model = _bind(config, params)
    visibility = Visibility(kv_start, kv_end, None)
    hidden, cache = model(tokens, position, block_position, visibility, cache=cache)
    return _logits(hidden, output_kernel(config, params)), cache


def apply_logits(
    config: ModelConfig, params: Params, tokens, position, block_position, kv_start, kv_end
) -> jax.Array:
    """Logits [B, T, V] in float32 (float64 for float64 models); see `apply_hidden`."""
    hidden = apply_hidden(config, params, tokens, position, block_position, kv_start, kv_end)
    return _logits(hidden, output_kernel(config, params))


def empty_cache(config: ModelConfig, batch: int, slots: int) -> KVCache:
    """A cache for `slots` tokens in each of `batch` rows."""
    shape = (config.num_layers, batch, slots, config.kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
    return KVCache(zeros, zeros, jnp.zeros(batch, jnp.int32))


def output_kernel(config: ModelConfig, params: Params) -> jax.Array:
    """The output projection [D, V]: the transposed token table, or the head's own kernel."""
    if config.tie_embeddings:
        return params["token_embedding"]["embedding"].T
    return params["head"]["kernel"]


def _bind(config: ModelConfig, params: Params) -> GLM:
    graph, state = nnx.split(nnx.eval_shape(lambda: GLM(config, nnx.Rngs(0))), nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.dot(hidden, kernel.astype(hidden.dtype), preferred_element_type=wide)


@jax.custom_vjp
def _scale_gradient(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x, with `scale` times its gradient; exact in the forward pass in any dtype."""
    del scale
    return x


def _scale_gradient_fwd(x, scale):
    return x, scale


def _scale_gradient_bwd(scale, gradient):
    return (gradient * scale).astype(gradient.dtype), jnp.zeros_like(scale)


_scale_gradient.defvjp(_scale_gradient_fwd, _scale_gradient_bwd)
