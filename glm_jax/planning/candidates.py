"""Ways to lay a run out over devices, the promising ones first, by arithmetic alone."""

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import NamedTuple

from glm_jax.config import Config
from glm_jax.parallel.device_kinds import DeviceKind
from glm_jax.parallel.mesh import AXES
from glm_jax.parallel.sharding import rules_of
from glm_jax.planning.collectives import fsdp_minimum
from glm_jax.planning.estimate import Estimate, costs_of, estimate
from glm_jax.planning.expected import expected_counts
from glm_jax.planning.plan import largest, parts_of
from glm_jax.stages import BatchGrid, stages_of

LONG_ROW = 8192
"""Slots from which on rows are split over devices, which costs traffic and saves activations."""

REMAT = ("none", "selective", "full")


class Layout(NamedTuple):
    """Values of fields that decide how a run is laid out, and not what it learns."""

    data: int
    fsdp: int
    context: int
    model: int
    accumulation_steps: int
    remat: str

    @property
    def mesh(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES)

    def within(self, config: Config) -> Config:
        """The config with these values."""
        sizes = dict(zip(AXES, self.mesh, strict=True))
        training = dataclasses.replace(config.training, accumulation_steps=self.accumulation_steps)
        return dataclasses.replace(
            config,
            mesh=dataclasses.replace(config.mesh, **sizes),
            training=training,
            model=dataclasses.replace(config.model, remat=self.remat),
        )

    def largest_step(self, run: Config) -> Config:
        """The config, of one stage, of the run's largest micro-batches under these values."""
        return largest(parts_of(self.within(run))).config

    def overrides(self, besides: "Layout | None" = None) -> str:
        """The values on the command line, those alone that differ from `besides`."""
        values = {f"mesh.{axis}": getattr(self, axis) for axis in AXES}
        values["training.accumulation_steps"] = self.accumulation_steps
        values["model.remat"] = self.remat
        return " ".join(
            f"--config.{name}={value}"
            for name, value in values.items()
            if besides is None or getattr(besides, name.rpartition(".")[2]) != value
        )


class Candidate(NamedTuple):
    layout: Layout
    estimate: Estimate  # of the run's largest step


class _Batching(NamedTuple):
    """The micro-batches of a run with some `training.accumulation_steps`."""

    steps: int
    rows: set[int]  # of each that there is, and of validation's
    largest: Config  # of one stage


def candidates(
    run: Config, num_devices: int, num_slices: int, device: DeviceKind | None
) -> list[Candidate]:
    """What divides, in the order in which it is worth compiling.

    First what should fit the memory by `estimate`, of that what computes least, of that what sends
    least, of that what keeps most.

    Args:
      device: None where its memory is not known.
    """
    limit = math.inf if device is None else device.hbm_bytes
    batchings = list(_batchings(run))
    found = []
    for mesh in _meshes(run, num_devices, num_slices):
        for batching in batchings:
            if any(rows % (mesh[0] * mesh[1]) for rows in batching.rows):
                continue
            for remat in REMAT:
                layout = Layout(*mesh, batching.steps, remat)
                model = dataclasses.replace(batching.largest.model, remat=remat)
                step = dataclasses.replace(batching.largest, model=model)
                candidate = Candidate(layout, estimate(step, mesh))
                counts = expected_counts(step, step.training.batch_size / num_devices)
                compute = costs_of(model).of_step(counts).hardware
                too_large = candidate.estimate.total > limit
                worth = (too_large, compute, _sent(step, mesh), REMAT.index(remat))
                found.append((worth, candidate))
    return [candidate for _, candidate in sorted(found, key=operator.itemgetter(0))]


def _batchings(run: Config) -> Iterator[_Batching]:
    """Those that divide the batches of all stages and of a ramp."""
    for steps in _divisors(run.training.batch_size):
        training = dataclasses.replace(run.training, accumulation_steps=steps)
        changed = dataclasses.replace(run, training=training)
        parts = BatchGrid(changed).parts
        if not any(part.size % part.accumulation_steps for part in parts):
            rows = {part.size // part.accumulation_steps for part in parts}
            yield _Batching(
                steps, rows | {run.training.batch_size}, largest(parts_of(changed)).config
            )


def _meshes(run: Config, num_devices: int, num_slices: int) -> Iterator[tuple[int, ...]]:
    """Sizes of `AXES` that use every device; an axis that the rules leave idle is 1."""
    rules, model = rules_of(run.mesh), run.model
    lengths = {run.data.seq_length, *(stage.config.data.seq_length for stage in stages_of(run))}
    for size in _divisors(num_devices):
        idle = size > 1 and not rules.get("heads")
        widths = (model.num_heads, model.mlp_dim, model.vocab_size)
        if idle or any(width % size for width in widths):
            continue
        if model.kv_heads % size and size % model.kv_heads:
            continue
        for context in _divisors(num_devices // size):
            if context > 1 and (max(lengths) < LONG_ROW or not rules.get("embed")):
                continue
            if any(length % context for length in lengths):
                continue
            for fsdp in _divisors(num_devices // size // context):
                idle = fsdp > 1 and not rules.get("embed")
                data = num_devices // size // context // fsdp
                if not idle and model.hidden_dim % (fsdp * context) == 0 and data % num_slices == 0:
                    yield data, fsdp, context, size


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _sent(config: Config, mesh: tuple[int, ...]) -> float:
    """About what a device sends in a step: its share of weights, and slots that it splits.

    Between the devices of `model` a layer gathers and scatters its slots twice each, forward and
    backward; between those of `context` it gathers keys and values.
    """
    model = config.model
    data, fsdp, context, size = mesh
    weights = costs_of(model).layer_weights // model.num_layers // size
    times = config.training.accumulation_steps
    sent = times * fsdp_minimum(weights, fsdp * context, data, compute_bytes=2)
    slots = config.training.batch_size * config.data.seq_length / (data * fsdp)
    sent += 8 * 2 * slots / context * model.hidden_dim * (size - 1) / size
    sent += 4 * 2 * slots * 2 * model.kv_heads * model.head_dim * (context - 1) / context / size
    return model.num_layers * sent
