"""Figures on the validation split."""

from collections.abc import Callable, Iterator, Sequence

import jax

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.parallel.sharding import Sharding
from glm_jax.training.metrics import summarise, total
from glm_jax.training.step import make_eval_step


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
