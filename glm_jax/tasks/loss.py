"""How sure a validation loss is: number of targets and standard errors by group."""

from collections.abc import Sequence

import numpy as np

from glm_jax.batch import OBJECTIVES
from glm_jax.tasks.result import ratio


def spread(
    loss: np.ndarray, weight: np.ndarray, targets: np.ndarray, languages: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """`n`, the targets, and `stderr` of the mean loss: of all, by objective and by language.

    The unit is a batch: targets of a row are not independent. A group without a target is left out.

    Args:
      loss, weight, targets: sums over each batch, [batches, sources, len(OBJECTIVES)].
      languages: of the sources.
    """
    groups = {name: group for name, group in _groups(languages).items() if weight[:, group].any()}
    return {
        "n": {name: int(targets[:, group].sum()) for name, group in groups.items()},
        "stderr": {
            name: ratio(loss[:, group].sum(1), weight[:, group].sum(1)).stderr
            for name, group in groups.items()
        },
    }


def _groups(languages: Sequence[str]) -> dict[str, np.ndarray]:
    """Which sources and objectives are in a group: bool [sources, objectives]."""
    source, objective = np.indices((len(languages), len(OBJECTIVES)))
    of_source = np.asarray(languages)[source]
    return {
        "all": np.ones_like(source, bool),
        **{name: objective == i for i, name in enumerate(OBJECTIVES)},
        **{name: of_source == name for name in sorted(set(languages))},
    }
