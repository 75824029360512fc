"""What the rows of a batch are expected to ask for, before there is any data."""

from glm_jax.config import Config, ObjectiveConfig
from glm_jax.training.flops import Counts


def text_rows(rows: float, length: int, target_share: float) -> Counts:
    """The counts of full rows that each hold one text, a share of it blanked and then answered.

    Args:
      length: slots of a row.
      target_share: of the slots; 1 is a causal text.
    """
    context = round(length * (1 - target_share))
    answer = length - context
    pairs = length * context + answer * (answer + 1) / 2
    slots = rows * length
    return Counts(slots, slots, rows * answer, rows * pairs, length)


def expected_counts(config: Config, rows: float) -> Counts:
    """The counts of rows of the config's objectives, by their weights: an estimate.

    Each row is one text without padding, which is the most pairs that it can have, and every
    objective blanks its mean share.
    """
    objective, length = config.objective, config.data.seq_length
    total = sum(objective.weights.values())
    mixed = Counts(0.0, 0.0, 0.0, 0.0, length)
    for name, weight in objective.weights.items():
        share = weight / total
        counts = text_rows(rows * share, length, _target_share(objective, name))
        if config.model.context == "causal":
            counts = counts._replace(pairs=rows * share * length * (length + 1) / 2)
        elif name == "masked":
            counts = counts._replace(pairs=rows * share * length**2)
        summed = [a + b for a, b in zip(mixed[:-1], counts[:-1], strict=True)]
        mixed = Counts(*summed, row_length=length)
    return mixed


def _target_share(objective: ObjectiveConfig, name: str) -> float:
    """The mean share of a text that rows of an objective predict."""
    return {
        "document": (1 + objective.document_min_ratio) / 2,  # uniform from there to all of it
        "causal": 1.0,
        "prefix": 0.5,  # cut at a uniform place
    }.get(name, objective.mask_ratio)
