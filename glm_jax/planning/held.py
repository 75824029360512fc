"""What a device holds all the time, known before anything is compiled."""

import math
from typing import NamedTuple

import jax

from glm_jax.config import Config
from glm_jax.parallel.sharding import Sharding
from glm_jax.planning.compiled_step import abstract_batch, abstract_state


class Held(NamedTuple):
    """Bytes on each device, without what a compiler adds to fill its tiles."""

    parameters: int
    average: int  # of the parameters, with `optimizer.ema_decay`
    optimizer: int
    others: int  # the step's number, and past losses that spikes are judged by
    batch: int

    @property
    def state(self) -> int:
        return sum(self) - self.batch


def held_bytes(config: Config, sharding: Sharding) -> Held:
    """The state of a step and a batch of the config, as they are laid out.

    Raises:
      UserError: a parameter does not divide over the mesh.
    """
    state = abstract_state(config, sharding)
    return Held(
        parameters=_bytes(state.params),
        average=_bytes(state.ema),
        optimizer=_bytes(state.opt_state),
        others=_bytes((state.history, state.step)),
        batch=_bytes(abstract_batch(config, sharding)),
    )


def _bytes(tree) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
