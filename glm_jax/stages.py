"""The stages of a run and the batches in them: which rows a step trains on, and how many.

Rows are numbered through a run. Batches lie on a fixed grid over the rows, so that a row belongs to
one stage whatever steps came before it: a rewind that leaves batches out moves a run along the
grid, and stages begin after so many batches, read or left out.
"""

from __future__ import annotations

import bisect
import dataclasses
import typing
from collections.abc import Iterator
from typing import NamedTuple

from glm_jax.errors import UserError

if typing.TYPE_CHECKING:
    from glm_jax.config import Config, StageConfig


class Stage(NamedTuple):
    """One part of a run.

    Attributes:
      config: the run's config with the values of the stage in their sections.
    """

    name: str
    from_step: int
    config: Config


class Batches(NamedTuple):
    """Consecutive batches of one size in one stage; the last ones of a run have no end.

    Attributes:
      stage: index of the stage.
      first_step: batches before them.
      first_row: rows before them.
      size: rows of each.
      accumulation_steps: micro-batches of each.
    """

    stage: int
    first_step: int
    first_row: int
    size: int
    accumulation_steps: int

    def row_of(self, step: int) -> int:
        return self.first_row + (step - self.first_step) * self.size


FIRST_STAGE = "start"
"""Name of the stage before the first configured one."""


def stages_of(config: Config) -> list[Stage]:
    """The stages of a run in order, at least one; the first begins at step 0."""
    stages = [
        Stage(name, stage.from_step, _within(config, stage))
        for name, stage in config.stages.items()
    ]
    stages.sort(key=lambda stage: stage.from_step)
    if not stages or stages[0].from_step > 0:
        stages.insert(0, Stage(FIRST_STAGE, 0, config))
    return stages


def _within(config: Config, stage: StageConfig) -> Config:
    objective, data, training = config.objective, config.data, config.training
    if stage.objective_weights:
        weights = dict.fromkeys(objective.weights, 0.0) | stage.objective_weights
        fields = {f"{name}_weight": weight for name, weight in weights.items()}
        objective = dataclasses.replace(objective, **fields)
    if stage.mask_ratio:
        objective = dataclasses.replace(objective, mask_ratio=stage.mask_ratio)
    if stage.source_weights:
        sources = {
            name: dataclasses.replace(source, weight=stage.source_weights.get(name, 0.0))
            for name, source in data.sources.items()
        }
        data = dataclasses.replace(data, sources=sources)
    if stage.seq_length:
        data = dataclasses.replace(data, seq_length=stage.seq_length)
    size = stage.batch_size or training.batch_size
    accumulation = stage.accumulation_steps or micro_batches(config, size)
    training = dataclasses.replace(training, batch_size=size, accumulation_steps=accumulation)
    return dataclasses.replace(config, objective=objective, data=data, training=training)


def longest_row(config: Config) -> int:
    """Slots of the longest rows that a run is trained on."""
    return max(stage.config.data.seq_length for stage in stages_of(config))


def micro_batches(config: Config, size: int) -> int:
    """How many micro-batches of the configured size, or less, a batch of `size` rows takes."""
    return -(-size * config.training.accumulation_steps // config.training.batch_size)


class BatchGrid:
    """All batches of a run.

    Attributes:
      stages: what `stages_of` returns.
      parts: batches of one size, in order.
    """

    def __init__(self, config: Config):
        self.stages = stages_of(config)
        self.parts = list(_parts(config, self.stages))

    def part_at(self, row: int) -> Batches:
        """The batches that hold a row."""
        place = bisect.bisect_right(self.parts, row, key=lambda part: part.first_row)
        return self.parts[place - 1]

    def check(self, row: int) -> None:
        """Refuses a row that no batch begins with.

        Where all batches are of one size and stage, any row may be the first of one: nothing hangs
        on it.

        Raises:
          UserError: naming the row.
        """
        part = self.part_at(row)
        if len(self.parts) > 1 and (row - part.first_row) % part.size:
            raise UserError(
                f"row {row} is not the first of a batch of {part.size} rows: in a run with stages "
                "or a ramp, config.training.batch_size and those of stages passed cannot change"
            )

    def batch(self, row: int) -> range:
        """The rows of the batch that begins with `row`."""
        return range(row, row + self.part_at(row).size)

    def later(self, row: int, batches: int) -> int:
        """The first row of the batch that comes `batches` after the one that begins with `row`."""
        while batches > 0:
            place = bisect.bisect_right(self.parts, row, key=lambda part: part.first_row) - 1
            size = self.parts[place].size
            end = self.parts[place + 1].first_row if place + 1 < len(self.parts) else None
            here = batches if end is None else min(batches, (end - row) // size)
            row, batches = row + here * size, batches - here
        return row

    def row_of_step(self, step: int) -> int:
        """The first row of a step, if none before it was left out."""
        place = bisect.bisect_right(self.parts, step, key=lambda part: part.first_step)
        return self.parts[place - 1].row_of(step)

    def step_of_row(self, row: int) -> int:
        """The step whose batch holds a row, if none before it was left out."""
        part = self.part_at(row)
        return part.first_step + (row - part.first_row) // part.size

    def rows_of_stage(self, stage: int) -> tuple[int, int | None]:
        """The first row of a stage and one past its last; None for that of the last stage."""
        first = next(part for part in self.parts if part.stage == stage)
        later = (part for part in self.parts if part.stage == stage + 1)
        end = next(later, None)
        return first.first_row, end and end.first_row


def _parts(config: Config, stages: list[Stage]) -> Iterator[Batches]:
    row = 0
    for index, stage in enumerate(stages):
        last = index + 1 == len(stages)
        end = None if last else stages[index + 1].from_step
        step = stage.from_step
        for size, until_row in _ramp(config, stage.config.training.batch_size):
            if until_row is not None and until_row <= row:
                continue  # an earlier stage, or the last batch, went past it
            steps = None if until_row is None else -(-(until_row - row) // size)
            if end is not None:
                steps = end - step if steps is None else min(steps, end - step)
            if steps == 0:
                break  # the stage has ended
            accumulation = stage.config.training.accumulation_steps
            if size != stage.config.training.batch_size:
                accumulation = micro_batches(config, size)
            yield Batches(index, step, row, size, accumulation)
            if steps is None:
                return
            step, row = step + steps, row + steps * size


def _ramp(config: Config, full: int) -> Iterator[tuple[int, int | None]]:
    """The batch sizes, each with the row until which it holds (None: no end)."""
    if config.training.batch_ramp:
        start, increment, rows = config.training.batch_ramp
        count = (full - start) // increment
        for number in range(count):
            yield start + number * increment, (number + 1) * rows // count
    yield full, None


def check_stages(config: Config) -> None:
    """Refuses stages and ramps that cannot be laid out.

    Raises:
      UserError: naming the field and its value.
    """
    _check_ramp(config)
    seen: dict[int, str] = {}
    for name, stage in config.stages.items():
        _check_stage(config, name, stage)
        if stage.from_step in seen:
            raise UserError(
                f"config.stages.{name}.from_step {stage.from_step} is that of "
                f"config.stages.{seen[stage.from_step]} too"
            )
        seen[stage.from_step] = name
    if FIRST_STAGE in config.stages and 0 not in seen:
        raise UserError(
            f"config.stages.{FIRST_STAGE}: the steps before the first stage have this name"
        )
    grid = BatchGrid(config)
    for part in grid.parts:
        if part.size % part.accumulation_steps:
            raise UserError(
                f"config: the batches of {part.size} rows of stage {grid.stages[part.stage].name} "
                f"are not divisible by {part.accumulation_steps} accumulation steps"
            )


def _check_ramp(config: Config) -> None:
    ramp, full = config.training.batch_ramp, config.training.batch_size
    if not ramp:
        return
    if len(ramp) != 3 or min(ramp) < 1:
        raise UserError(
            "config.training.batch_ramp must be three positive numbers (start, increment, rows), "
            f"got {ramp}"
        )
    if ramp[0] >= full or (full - ramp[0]) % ramp[1]:
        raise UserError(
            f"config.training.batch_ramp {ramp}: increments of {ramp[1]} do not lead from "
            f"{ramp[0]} to config.training.batch_size {full}"
        )
    for name, stage in config.stages.items():
        if stage.batch_size:
            raise UserError(
                f"config.stages.{name}.batch_size {stage.batch_size}: with "
                "config.training.batch_ramp the stages have no batch sizes of their own"
            )


def _check_stage(config: Config, name: str, stage: StageConfig) -> None:
    where = f"config.stages.{name}"
    for field in ("from_step", "seq_length", "batch_size", "accumulation_steps", "mask_ratio"):
        value = getattr(stage, field)
        if value < 0:
            raise UserError(f"{where}.{field} must not be negative, got {value}")
    for field, known in (
        ("source_weights", config.data.sources),
        ("objective_weights", config.objective.weights),
    ):
        weights = getattr(stage, field)
        for key, weight in weights.items():
            if known and key not in known:
                raise UserError(
                    f"{where}.{field} has no {key!r} to weigh; known: {', '.join(known)}"
                )
            if weight < 0:
                raise UserError(f"{where}.{field}.{key} must not be negative, got {weight}")
        if weights and not any(weights.values()):
            raise UserError(f"{where}.{field} are all 0")
