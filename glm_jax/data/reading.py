"""Tables of what a run is going to read, before it does."""

import math
from collections.abc import Iterator

from glm_jax.config import Config
from glm_jax.data.lanes import PackedLane
from glm_jax.data.rows import Rows, StageRows
from glm_jax.errors import UserError
from glm_jax.stages import BatchGrid


def describe_rows(rows: Rows) -> str:
    """The kinds of rows of each stage: share, stream tokens S, blanks K.

    For rows of whole documents also the share of documents that they hold whole, in the first group
    of rows of the source.

    Raises:
      UserError: a source cannot be read.
    """
    lines = []
    for stage in rows.stages:
        if len(rows.stages) > 1:
            lines.append(f"stage {stage.name}, from row {stage.first_row:,}")
        lines += _kinds(stage)
    return "\n".join(lines)


def _kinds(stage: StageRows) -> Iterator[str]:
    mixture = stage.mixture
    yield f"{'source':16} {'objective':11} {'share':>7} {'tokens':>7} {'blanks':>7}"
    for kind in mixture.kinds:
        yield (
            f"{kind.source:16} {kind.objective:11} {kind.rows / mixture.cycle_rows:7.2%} "
            f"{kind.stream_tokens:7} {kind.max_blanks:7}"
        )
    for source, lane in mixture.lanes.items():
        if isinstance(lane, PackedLane) and lane.num_rows != 0:
            yield f"{source}: rows hold whole documents, {lane.whole_share():.1%} of them uncut"


def describe_reading(rows: Rows, config: Config, num_params: int) -> str:
    """What a run of `training.steps` reads: tokens, their share, and epochs, by stage and source.

    Raises:
      UserError: it is more than `max_epochs` of a source.
    """
    grid = BatchGrid(config)
    end = grid.row_of_step(config.training.steps)
    lines = [f"{'stage':12} {'source':16} {'tokens':>18} {'share':>7} {'epochs':>9}"]
    for stage in rows.stages:
        if stage.first_row < end:
            stop = math.inf if stage.num_rows is None else stage.first_row + stage.num_rows
            lines += _reads(rows, stage.name, stage.first_row, min(stop, end))
    if len(rows.stages) > 1:
        lines += _reads(rows, "all", 0, end)
    tokens = sum(rows.taken(end).values())
    lines.append(
        f"{config.training.steps:,} steps read {tokens:,} tokens, {tokens / num_params:.3g} per "
        "parameter"
    )
    _check_epochs(rows, config, end)
    return "\n".join(lines)


def _reads(rows: Rows, name: str, first: int, end: int) -> list[str]:
    before, after = rows.taken(first), rows.taken(end)
    taken = {source: after[source] - before[source] for source in after}
    total = sum(taken.values())
    return [
        f"{name:12} {source:16} {tokens:18,} {tokens / total:7.2%} "
        f"{tokens / rows.streams[source].length:9.3f}"
        for source, tokens in taken.items()
        if tokens
    ]


def stage_values(rows: Rows, grid: BatchGrid, row: int) -> dict:
    """What the training row `row` and those after it are made of, for the log."""
    part = grid.part_at(row)
    stage, data = grid.stages[part.stage], grid.stages[part.stage].config.data
    taken = rows.taken(row)
    mixture = rows.stages[part.stage].mixture
    shares = {
        f"{kind.source} {kind.objective}": round(kind.rows / mixture.cycle_rows, 6)
        for kind in mixture.kinds
    }
    return {
        "name": stage.name,
        "next_row": row,
        "batch_size": part.size,
        "seq_length": data.seq_length,
        "mask_ratio": stage.config.objective.mask_ratio,
        "shares": shares,
        "tokens_read": taken,
        "epochs_read": {
            source: round(tokens / rows.streams[source].length, 6)
            for source, tokens in taken.items()
        },
    }


def _check_epochs(rows: Rows, config: Config, end: int) -> None:
    for source, tokens in rows.taken(end).items():
        limit = config.data.sources[source].max_epochs
        epochs = tokens / rows.streams[source].length
        if limit and epochs > limit:
            raise UserError(
                f"config.data.sources.{source}.max_epochs is {limit:g}, and the run would read "
                f"{epochs:.3f} epochs: lower its weight or config.training.steps"
            )
