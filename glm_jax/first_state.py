"""The first state of a run: fresh parameters, or those of a released checkpoint (`init_from`)."""

from pathlib import Path
from typing import NamedTuple

from glm_jax.config import Config
from glm_jax.hub.origin import save_origin, token_differences
from glm_jax.layouts.folder import Checkpoint
from glm_jax.layouts.init_from import load_sharded, open_init
from glm_jax.parallel.hosts import ALONE, Hosts
from glm_jax.parallel.sharding import Sharding
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.step import TrainState, init_state, state_from_params, state_shardings
from glm_jax.training.step_folders import step_folders


class ReleasedParams(NamedTuple):
    """Parameters of a released checkpoint, laid out on the mesh."""

    checkpoint: Checkpoint
    params: dict


def released_params(
    config: Config, sharding: Sharding, workdir: Path, tokenizer: Tokenizer
) -> ReleasedParams | None:
    """What `config.init_from` holds; None without one, or if the run has checkpoints of its own.

    Raises:
      UserError: it cannot be read, or holds another model.
    """
    if not config.init_from or step_folders(workdir / "checkpoints"):
        return None
    checkpoint, source, lines = open_init(config)
    print("\n".join([*lines, *token_differences(checkpoint, tokenizer.special)]))
    _, shardings = state_shardings(config, sharding)
    params = load_sharded(source, shardings.params, config.model.param_dtype)
    return ReleasedParams(checkpoint, params)


def first_state(
    config: Config,
    sharding: Sharding,
    workdir: Path,
    init: ReleasedParams | None,
    hosts: Hosts = ALONE,
) -> TrainState:
    """Fresh parameters, or released ones, whose papers go into the run's folder."""
    if init is None:
        return init_state(config, sharding)
    if hosts.is_first:
        save_origin(init.checkpoint, workdir)
    return state_from_params(config, sharding, init.params)
