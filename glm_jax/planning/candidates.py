"""Ways to lay a run out over devices, the promising ones first, by arithmetic alone."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

from glm_jax.config import Config, ModelConfig
from glm_jax.parallel.device_kinds import DeviceKind
from glm_jax.parallel.mesh import AXES
from glm_jax.parallel.sharding import rules_of
from glm_jax.planning.collectives import fsdp_minimum
from glm_jax.planning.expected import expected_counts
from glm_jax.training.flops import model_costs

LONG_ROW = 8192
"""Slots from which on rows are split over devices, which costs traffic and saves activations."""

REMAT = ("none", "selective", "full")

_costs = functools.cache(model_costs)


class Candidate(NamedTuple):
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

    def overrides(self) -> str:
        """The values on the command line."""
        values = {f"mesh.{axis}": getattr(self, axis) for axis in AXES}
        values["training.accumulation_steps"] = self.accumulation_steps
        values["model.remat"] = self.remat
        return " ".join(f"--config.{name}={value}" for name, value in values.items())


def candidates(
    config: Config, num_devices: int, num_slices: int, device: DeviceKind | None
) -> list[Candidate]:
    """What divides, in the order in which it is worth compiling.

    First what should fit the memory by `estimated_bytes`, of that what computes least, of that what
    sends least, of that what keeps most.

    Args:
      config: one part of a run, with no stages.
      device: None where its memory is not known.
    """
    limit = math.inf if device is None else device.hbm_bytes
    found = [
        candidate
        for mesh in _meshes(config, num_devices, num_slices)
        for accumulation in _accumulations(config, mesh)
        for candidate in [Candidate(*mesh, accumulation, remat) for remat in REMAT]
    ]

    def worth(candidate: Candidate) -> tuple:
        changed = candidate.within(config)
        too_large = estimated_bytes(changed, candidate) > limit
        counts = expected_counts(changed, changed.training.batch_size / num_devices)
        compute = _costs(changed.model).of_step(counts).hardware
        return too_large, compute, _sent(changed, candidate), REMAT.index(candidate.remat)

    return sorted(found, key=worth)


def _meshes(config: Config, num_devices: int, num_slices: int) -> Iterator[tuple[int, ...]]:
    """Sizes of `AXES` that use every device; an axis that the rules leave idle is 1."""
    rules, model = rules_of(config.mesh), config.model
    length = config.data.seq_length
    for size in _divisors(num_devices):
        idle = size > 1 and not rules.get("heads")
        if idle or any(
            width % size for width in (model.num_heads, model.mlp_dim, model.vocab_size)
        ):
            continue
        if model.kv_heads % size and size % model.kv_heads:
            continue
        for context in _divisors(num_devices // size):
            if context > 1 and (length < LONG_ROW or not rules.get("embed") or length % context):
                continue
            for fsdp in _divisors(num_devices // size // context):
                idle = fsdp > 1 and not rules.get("embed")
                data = num_devices // size // context // fsdp
                if not idle and model.hidden_dim % (fsdp * context) == 0 and data % num_slices == 0:
                    yield data, fsdp, context, size


def _accumulations(config: Config, mesh: tuple[int, ...]) -> Iterator[int]:
    data, fsdp, *_ = mesh
    for steps in _divisors(config.training.batch_size):
        if config.training.batch_size // steps % (data * fsdp) == 0:
            yield steps


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def estimated_bytes(config: Config, candidate: Candidate) -> float:
    """About what a device needs: its state, gradients in float32, what the layers keep.

    For an order to try things in; what fits, the compiler says. Without remat a layer keeps more
    than the results of its products: all temporaries of `glm_2021:base` on v5e:4x4, which libtpu
    0.0.42.1 refused, were 4.7 times those.
    """
    model, costs = config.model, _costs(config.model)
    rules = rules_of(config.mesh)
    parts = math.prod(
        [candidate.fsdp * candidate.context] * bool(rules.get("embed"))
        + [candidate.model] * bool(rules.get("heads"))
    )
    weights = costs.layer_weights + costs.head_weights
    state = 16 * weights / parts  # parameter, gradient and two moments
    slots = config.training.batch_size * config.data.seq_length / candidate.accumulation_steps
    slots /= candidate.data * candidate.fsdp * candidate.context
    kept = model.num_layers * _kept_width(model) / candidate.model
    return state + 2 * slots * kept


def _kept_width(model: ModelConfig) -> int:
    """Elements that a layer keeps of a slot for its backward pass."""
    if model.remat == "full":
        return model.hidden_dim
    products = (3 + 2 * model.is_gated) * model.hidden_dim + model.mlp_dim * (1 + model.is_gated)
    attention = (model.num_heads + 2 * model.kv_heads) * model.head_dim
    return (products + attention) * (4 if model.remat == "none" else 1)


def _sent(config: Config, candidate: Candidate) -> float:
    """About what a device sends in a step: its share of weights, and slots that it splits.

    Between the devices of `model` a layer gathers and scatters its slots twice each, forward and
    backward; between those of `context` it gathers keys and values.
    """
    model = config.model
    data, fsdp, context, size = candidate.mesh
    weights = _costs(model).layer_weights // model.num_layers // size
    times = candidate.accumulation_steps
    sent = times * fsdp_minimum(weights, fsdp * context, data, compute_bytes=2)
    slots = config.training.batch_size * config.data.seq_length / (data * fsdp)
    sent += 8 * 2 * slots / context * model.hidden_dim * (size - 1) / size
    sent += 4 * 2 * slots * 2 * model.kv_heads * model.head_dim * (context - 1) / context / size
    return model.num_layers * sent
