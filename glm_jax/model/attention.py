"""Attention over key ranges, with an optional cache of keys and values."""

from typing import NamedTuple

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from glm_jax.config import ModelConfig
from glm_jax.model.layers import Linear, initializers
from glm_jax.model.positions import Rotation
from glm_jax.ops.block_bounds import BlockBounds
from glm_jax.ops.block_order import BlockOrder
from glm_jax.ops.range_attention import range_attention
from glm_jax.parallel.sharding import active_mesh, constrain


class Visibility(NamedTuple):
    """Who sees whom: the key range of each query, with what the kernels derive from it once."""

    kv_start: jax.Array
    kv_end: jax.Array
    bounds: BlockBounds | None
    order: BlockOrder | None = None

    def attend(self, q, k, v, backend: str) -> jax.Array:
        return range_attention(
            q,
            k,
            v,
            self.kv_start,
            self.kv_end,
            backend=backend,
            bounds=self.bounds,
            order=self.order,
            mesh=active_mesh(),
        )


class KVCache(NamedTuple):
    """Keys and values [L, B, S, K, d] of all layers (without L inside a layer).

    `length` int32 [B] counts the filled slots of each row; new tokens are written from there.
    Whoever decodes advances it: what lies beyond is overwritten and must not be in any key range.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array

    def write(self, key: jax.Array, value: jax.Array) -> "KVCache":
        put = jax.vmap(lambda slots, new, at: jax.lax.dynamic_update_slice(slots, new, (at, 0, 0)))
        return KVCache(
            put(self.key, key, self.length), put(self.value, value, self.length), self.length
        )


class Attention(nnx.Module):
    """Multi-head attention over key ranges, each query over its own key range."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: dict[str, int]):
        embed = {"embed": config.hidden_dim}
        heads = {"heads": config.num_heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.kv_heads, "head_dim": config.head_dim}
        init, bias = initializers(config), config.qkv_bias
        self.query = Linear(config, rngs, stack, embed, heads, init["query_key"], bias)
        self.key = Linear(config, rngs, stack, embed, kv_heads, init["query_key"], bias)
        self.value = Linear(config, rngs, stack, embed, kv_heads, init["value"], bias)
        self.out = Linear(config, rngs, stack, heads, embed, init["out"], config.linear_bias)
        self.backend = config.attention_backend

    def __call__(self, x, visibility, rotation: Rotation | None, cache):
        """x [B,T,D]; returns [B,T,D] and the updated cache (None without one)."""
        q, k, v = (
            constrain(project(x), "batch", "sequence", heads, "head_dim")
            for project, heads in (
                (self.query, "heads"),
                (self.key, "kv_heads"),
                (self.value, "kv_heads"),
            )
        )
        if rotation is not None:
            q, k = rotation.rotate(q), rotation.rotate(k)
        q, k, v = (checkpoint_name(x, "qkv") for x in (q, k, v))
        if cache is None:
            attended = visibility.attend(q, k, v, self.backend)
        else:
            cache = cache.write(k, v)
            attended = visibility.attend(q, cache.key, cache.value, "reference")
        return self.out(attended), cache
