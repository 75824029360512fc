"""Rotary positions: one coordinate (GLM-130B, GLM-4), or two that share a head (ChatGLM-6B)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from glm_jax.config import ModelConfig


class Rotation(NamedTuple):
    """Angles of the pairs of dimensions that turn, the same in every head.

    cos, sin: float32 [B, T, G, n / 2] for G coordinates that turn n dimensions each.
    """

    cos: jax.Array
    sin: jax.Array
    interleaved: bool

    def rotate(self, x: jax.Array) -> jax.Array:
        """Turns the first G n dimensions of x [B, T, H, d]; the rest stays."""
        groups, pairs = self.cos.shape[-2:]
        turning, rest = jnp.split(x, [2 * groups * pairs], axis=-1)
        # The pair of a dimension is its neighbour, or half a group away.
        split, axis = ((pairs, 2), -1) if self.interleaved else ((2, pairs), -2)
        parts = turning.reshape(*x.shape[:-1], groups, *split)
        first, second = (jax.lax.index_in_dim(parts, i, axis, keepdims=False) for i in (0, 1))
        cos, sin = (angle[:, :, None].astype(x.dtype) for angle in (self.cos, self.sin))
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=axis)
        return jnp.concatenate([turned.reshape(turning.shape), rest], axis=-1)


def rotation(
    config: ModelConfig, position: jax.Array, block_position: jax.Array
) -> Rotation | None:
    """The angles of int32 [B, T] coordinates; None for learned positions.

    `rope_2d`: the first half of a head turns with `position`, the second with `block_position`,
    each an independent rotary embedding (ChatGLM-6B). `rope_1d`: the first `rotary_dim` dimensions
    turn with `position` (arXiv 2104.09864).
    """
    if config.position == "learned_2d":
        return None
    coordinates = [position, block_position][: 2 if config.position == "rope_2d" else 1]
    exponent = jnp.arange(0, config.rotary_dim, 2, dtype=jnp.float32) / config.rotary_dim
    stacked = jnp.stack(coordinates, axis=-1).astype(jnp.float32)
    angle = stacked[..., None] * config.rope_base**-exponent
    return Rotation(jnp.cos(angle), jnp.sin(angle), config.rope_layout == "interleaved")
