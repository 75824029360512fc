"""What training a config takes on given devices: memory, traffic, FLOPs, the least time."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax

from glm_jax.config import Config
from glm_jax.parallel.device_kinds import DeviceKind, device_kind
from glm_jax.parallel.sharding import make_sharding
from glm_jax.planning.compiled_step import CompiledStep, Memory, check_fits, compile_step
from glm_jax.planning.expected import expected_counts
from glm_jax.planning.held import Held, held_bytes
from glm_jax.planning.roofline import Roofline, roofline
from glm_jax.stages import BatchGrid
from glm_jax.training.flops import Flops, model_costs


class Part(NamedTuple):
    """What a run does in one of its stages.

    Attributes:
      config: of the stage alone; its batches are those after a ramp.
      rows: that it trains on.
    """

    name: str
    config: Config
    rows: int

    @property
    def steps(self) -> float:
        """Its rows in steps of full batches."""
        return self.rows / self.config.training.batch_size

    @property
    def slots(self) -> int:
        return self.rows * self.config.data.seq_length


class StepPlan(NamedTuple):
    """A step as it was compiled; all figures are of one device.

    Attributes:
      lower_seconds: tracing the step to the compiler's input.
      compile_seconds: what the compiler then took, less where it finds the program kept.
      flops: of a step, by rows as `expected_counts` has them.
      sent: bytes that the collectives of a step send, by kind.
      bound: None where the rates of the device are not known.
    """

    held: Held
    lower_seconds: float
    compile_seconds: float
    memory: Memory
    flops: Flops
    sent: dict[str, int]
    device: DeviceKind | None
    bound: Roofline | None


def parts_of(config: Config) -> list[Part]:
    """The stages of a run that `training.steps` reaches, in order."""
    grid = BatchGrid(config)
    last = grid.row_of_step(config.training.steps)
    parts = []
    for index, stage in enumerate(grid.stages):
        first, end = grid.rows_of_stage(index)
        rows = (last if end is None else min(end, last)) - first
        if rows > 0:
            parts.append(Part(stage.name, _alone(stage.config), rows))
    return parts


def _alone(config: Config) -> Config:
    training = dataclasses.replace(config.training, batch_ramp=())
    return dataclasses.replace(config, stages={}, training=training)


def largest(parts: list[Part]) -> Part:
    """The part whose micro-batches have the most slots."""
    return max(
        parts,
        key=lambda part: (
            part.config.training.batch_size
            // part.config.training.accumulation_steps
            * part.config.data.seq_length
        ),
    )


def plan_parts(parts: list[Part], devices: list[jax.Device]) -> Iterator[StepPlan]:
    """The plan of each part; those whose batches have one shape share one compilation.

    Raises:
      UserError: a part does not fit the devices.
      DoesNotFit: nor does its step their memory.
    """
    steps: dict[tuple, CompiledStep] = {}
    for part in parts:
        training, length = part.config.training, part.config.data.seq_length
        shape = training.batch_size, training.accumulation_steps, length
        if shape not in steps:
            steps[shape] = compile_for(part.config, devices)
        yield describe_step(part.config, steps[shape], devices)


def compile_for(config: Config, devices: list[jax.Device]) -> CompiledStep:
    """`compile_step` of a config whose state and gradients alone fit the devices.

    Raises:
      UserError: the config does not fit the devices.
      DoesNotFit: nor do these, before anything is compiled, or the step their memory.
    """
    held = held_bytes(config, make_sharding(config.mesh, devices))
    least = held.arguments + held.gradients
    check_fits("the state with gradients and a batch", least, devices[0].device_kind)
    return compile_step(config, devices)


def describe_step(config: Config, step: CompiledStep, devices: list[jax.Device]) -> StepPlan:
    """The figures of a compiled step."""
    kind = device_kind(devices[0].device_kind)
    counts = expected_counts(config, config.training.batch_size / len(devices))
    return StepPlan(
        held=held_bytes(config, make_sharding(config.mesh, devices)),
        lower_seconds=step.lower_seconds,
        compile_seconds=step.compile_seconds,
        memory=step.memory,
        flops=model_costs(config.model).of_step(counts),
        sent=step.sent,
        device=kind,
        bound=kind and roofline(config, step, kind, counts),
    )
