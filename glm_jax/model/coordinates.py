"""Positions and key ranges of a text that is read piece by piece, as `objective.infill` has them.

Slots count from the first token of Part A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from glm_jax.config import ModelConfig


class Blank(NamedTuple):
    """One blank of each of R texts."""

    position: jax.Array  # int32 [R], index of the mask token, -1 where a text has no such blank
    in_slots: jax.Array  # bool [R], see `ModelConfig.answers_in_slots`


class Coordinates(NamedTuple):
    """What the model is told of each token beside its id: int32 [B, T] each."""

    position: jax.Array
    block_position: jax.Array
    kv_start: jax.Array
    kv_end: jax.Array


def of_context(config: ModelConfig, slot: jax.Array, length: jax.Array) -> Coordinates:
    """Part A of `length` tokens, int32 [B], at slots int32 [B or 1, T]; zeros after its end."""
    inside = slot < length[:, None]
    kv_end = slot + 1 if config.context == "causal" else length[:, None]
    zeros = jnp.zeros(inside.shape, jnp.int32)
    return Coordinates(jnp.where(inside, slot, 0), zeros, zeros, jnp.where(inside, kv_end, 0))


def of_answer(config: ModelConfig, slot: jax.Array, start: jax.Array, blank: Blank) -> Coordinates:
    """Answers whose sop is at slot `start`, int32 [B], at slots int32 [B or 1, T]."""
    block_position = slot - start[:, None] + 1
    if not config.block_positions:
        block_position = jnp.ones_like(block_position)
    position = jnp.where(blank.in_slots[:, None], slot, blank.position[:, None])
    zeros = jnp.zeros_like(block_position)
    return Coordinates(position, block_position, zeros, jnp.broadcast_to(slot + 1, zeros.shape))
