"""Rotary positions in two dimensions (ChatGLM-6B)."""

import jax
import jax.numpy as jnp


def rope_2d(
    position: jax.Array, block_position: jax.Array, head_dim: int, base: float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for heads split in two halves, one coordinate each.

    The first half of a head turns with `position`, the second with `block_position`, each an
    independent rotary embedding of head_dim / 2 dimensions (ChatGLM-6B).

    Args:
      position, block_position: int32 [B, T].

    Returns:
      cos and sin, float32 [B, T, 2, head_dim / 4]: the angle of each pair of dimensions.
    """
    half = head_dim // 2
    inverse_frequency = base ** (-jnp.arange(0, half, 2, dtype=jnp.float32) / half)
    coordinates = jnp.stack([position, block_position], axis=-1).astype(jnp.float32)
    angle = coordinates[..., None] * inverse_frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, T, H, d] by the angles of `rope_2d`, pairing dimension i with i + d/4."""
    parts = x.reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4)
    first, second = parts[..., 0, :], parts[..., 1, :]
    cos, sin = cos[:, :, None].astype(x.dtype), sin[:, :, None].astype(x.dtype)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return turned.reshape(x.shape)
