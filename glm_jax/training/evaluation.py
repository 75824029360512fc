"""Sums over the validation split."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Sequence

import jax

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.parallel.sharding import SEQUENCE_AXIS, Sharding
from glm_jax.stages import BatchGrid
from glm_jax.training.metrics import Sums
from glm_jax.training.step import make_eval_step


def check_batches(config: Config, sharding: Sharding) -> None:
    """Refuses batches of a run, in any of its stages, that cannot be handed out over the mesh.

    Raises:
      UserError: a micro-batch, or one of validation, would not give every device the same number of
        rows, slots or heads.
    """
    check_validation_batch(config, sharding)
    _check_heads(config.model.num_heads, sharding)
    grid = BatchGrid(config)
    for stage in grid.stages:
        _check_slots(f"stages.{stage.name}", stage.config.data.seq_length, sharding)
    for part in grid.parts:
        _check_rows(part.size, part.accumulation_steps, f" (from step {part.first_step})", sharding)


def check_validation_batch(config: Config, sharding: Sharding) -> None:
    """Refuses validation batches that cannot be handed out over the mesh; see `check_batches`."""
    _check_slots("data", config.data.seq_length, sharding)
    _check_rows(config.training.batch_size, 1, "", sharding)


def _check_heads(num_heads: int, sharding: Sharding) -> None:
    devices = sharding.mesh.shape["model"]
    if num_heads % devices:
        raise UserError(
            f"config.model.num_heads {num_heads} is not divisible by the {devices} devices of mesh "
            "axis model"
        )


def _check_slots(section: str, seq_length: int, sharding: Sharding) -> None:
    devices = sharding.mesh.shape[SEQUENCE_AXIS]
    if seq_length % devices:
        raise UserError(
            f"config.{section}.seq_length {seq_length} is not divisible by the {devices} devices "
            "of mesh axis context"
        )


def _check_rows(size: int, accumulation_steps: int, when: str, sharding: Sharding) -> None:
    rows = size // accumulation_steps
    if rows % sharding.batch_size:
        raise UserError(
            f"config.training.batch_size / accumulation_steps = {size} / {accumulation_steps} = "
            f"{rows} rows{when} are not divisible by the {sharding.batch_size} devices of mesh "
            "axes data x fsdp"
        )


def make_validation(
    config: Config,
    num_sources: int,
    sharding: Sharding,
    read: Callable[[Sequence[Batch]], Generator[Batch, None, None]],
) -> Callable[..., list[Sums] | None]:
    """Compiles to a function of parameters on the mesh and the rows of a split.

    It reads the first `training.eval_rows` rows, or one pass if that is shorter, in whole batches
    and at least one, and returns the sums of each batch; or None if its third argument, asked
    before every batch, says to give up.

    Args:
      read: makes this host's share of batches of `training.batch_size` rows from row 0 on.
    """
    step = make_eval_step(config, sharding, num_sources)

    def validate(
        params: dict, rows: Sequence[Batch], give_up: Callable[[], bool] = lambda: False
    ) -> list[Sums] | None:
        num_batches = max(
            1, min(config.training.eval_rows, len(rows)) // config.training.batch_size
        )
        sums = []
        with contextlib.closing(read(rows)) as batches:
            for batch in itertools.islice(batches, num_batches):
                if give_up():
                    return None
                sums.append(step(params, sharding.place(batch)))
        return jax.device_get(sums)

    return validate
