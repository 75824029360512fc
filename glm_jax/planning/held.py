"""What a device has to hold, known before anything is compiled."""

import math
from typing import NamedTuple

import jax

from glm_jax.config import Config
from glm_jax.parallel.sharding import Sharding, param_name
from glm_jax.planning.compiled_step import abstract_batch, abstract_state
from glm_jax.training.optimizer import treatments


class Held(NamedTuple):
    """Bytes on each device, without what a compiler adds to fill its tiles."""

    parameters: int
    average: int  # of the parameters, with `optimizer.ema_decay`
    optimizer: int
    others: int  # the step's number, and past losses that spikes are judged by
    batch: int
    gradients: int  # once; all are there together, as their norm decides what becomes of a step

    @property
    def state(self) -> int:
        return self.parameters + self.average + self.optimizer + self.others

    @property
    def arguments(self) -> int:
        """What a step takes in."""
        return self.state + self.batch


def held_bytes(config: Config, sharding: Sharding) -> Held:
    """State, batch and gradients of a step of the config, as they are laid out.

    Raises:
      UserError: a parameter does not divide over the mesh.
    """
    state = abstract_state(config, sharding)
    rules = treatments(config.optimizer, state.params)
    named = jax.tree_util.tree_leaves_with_path(state.params)
    trained = [leaf for path, leaf in named if rules[param_name(path)].rule != "frozen"]
    return Held(
        parameters=_bytes(state.params),
        average=_bytes(state.ema),
        optimizer=_bytes(state.opt_state),
        others=_bytes((state.history, state.step)),
        batch=_bytes(abstract_batch(config, sharding)),
        gradients=_bytes(trained),
    )


def _bytes(tree) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
