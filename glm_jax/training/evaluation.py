"""Figures on the validation split."""

from collections.abc import Callable, Iterator, Sequence

import jax

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.parallel.sharding import Sharding
from glm_jax.training.metrics import summarise, total
from glm_jax.training.step import make_eval_step


def check_batch_size(config: Config, sharding: Sharding) -> None:
    """Refuses batches that do not divide over the mesh.

    Raises:
      UserError: a micro-batch would not give every device the same number of rows, or several
        processes share the mesh, for which rows are not handed out yet.
    """
    rows = config.training.batch_size // config.training.accumulation_steps
    if rows % sharding.batch_size:
        raise UserError(
            f"config.training.batch_size / accumulation_steps = {rows} rows are not divisible by "
            f"the {sharding.batch_size} devices of mesh axes data x fsdp"
        )
    if jax.process_count() > 1:
        raise UserError(f"one process can train, JAX was started with {jax.process_count()}")


def make_validation(
    config: Config, languages: Sequence[str], sharding: Sharding
) -> Callable[[dict, Iterator[Batch], int], dict[str, float]]:
    """Compiles to a function that evaluates parameters on the first rows of a split.

    The function takes parameters on the mesh, this host's batches of `training.batch_size` rows,
    and the rows in one pass; it reads `training.eval_rows` rows or one pass, in whole batches, at
    least one.
    """
    step = make_eval_step(config, sharding, len(languages))

    def validate(params: dict, batches: Iterator[Batch], pass_rows: int) -> dict[str, float]:
        rows = min(config.training.eval_rows, pass_rows)
        num_batches = max(1, rows // config.training.batch_size)
        sums = [step(params, sharding.place(next(batches))) for _ in range(num_batches)]
        return summarise(total(jax.device_get(sums)), languages)

    return validate
