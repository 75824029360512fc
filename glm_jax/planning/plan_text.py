"""A plan, as people read it."""

from glm_jax.config import Config
from glm_jax.model import glm
from glm_jax.parallel.sharding import Sharding
from glm_jax.planning.plan import Part, StepPlan
from glm_jax.training.surroundings import count_params, mesh_shape

MIB, MB, DAY = 2**20, 1e6, 86_400


def describe_mesh(config: Config, sharding: Sharding) -> str:
    """The devices, what splits what over them, and the model."""
    device = sharding.mesh.devices.flat[0].device_kind
    return (
        f"mesh {mesh_shape(sharding)} of {device}, rules {config.mesh.rules}, "
        f"remat {config.model.remat}; {_num_params(config):,} parameters, "
        f"vocabulary {config.model.vocab_size:,}"
    )


def describe_shape(part: Part) -> str:
    """What a step of the part takes in."""
    training, length = part.config.training, part.config.data.seq_length
    return f"stage {part.name}: steps of {training.batch_size:,} rows x {length:,} slots"


def describe_part(part: Part, plan: StepPlan, num_devices: int) -> str:
    """Memory, traffic, FLOPs and the bound of the steps of one part."""
    return "\n".join(
        [
            "",
            f"{describe_shape(part)}, in {part.config.training.accumulation_steps} micro-batches",
            _compiled(plan),
            *_memory(plan),
            *_sent(plan),
            *_flops(plan),
            *_bound(part, plan, num_devices),
        ]
    )


def memory_parts(plan: StepPlan) -> dict[str, int]:
    """Bytes of a device at the peak, by what they are for; they add up to the peak."""
    held, memory = plan.held, plan.memory
    parts = {
        "parameters": held.parameters,
        "their average": held.average,
        "optimizer state": held.optimizer,
        "batch": held.batch,
        "other state, padding": memory.arguments - held.arguments + held.others,
        "gradients": held.gradients,
        "activations, temporary": memory.peak - memory.arguments - held.gradients,
    }
    return {name: size for name, size in parts.items() if size}


def _compiled(plan: StepPlan) -> str:
    return f"lowered in {plan.lower_seconds:.1f} s, compiled in {plan.compile_seconds:.1f} s"


def _memory(plan: StepPlan) -> list[str]:
    lines = ["memory of a device, MiB"]
    lines += [_row(name, size / MIB) for name, size in memory_parts(plan).items()]
    of = "" if plan.device is None else _share(plan.memory.peak, plan.device.hbm_bytes)
    return [*lines, _row("peak", plan.memory.peak / MIB, of)]


def _share(peak: int, hbm_bytes: float) -> str:
    return f" of {hbm_bytes / MIB:,.0f}, {peak / hbm_bytes:.0%}"


def _sent(plan: StepPlan) -> list[str]:
    if not plan.sent:
        return ["a device sends nothing"]
    lines = [_row(kind, sent / MB) for kind, sent in sorted(plan.sent.items())]
    return ["sent by a device in a step, MB", *lines]


def _flops(plan: StepPlan) -> list[str]:
    return [
        "operations of a device in a step, GFLOP (estimated: no padding, a text a row, the mean "
        "share of it blanked)",
        _row("useful", plan.flops.useful / 1e9),
        _row("PaLM", plan.flops.palm / 1e9),
        _row("HFU", plan.flops.hardware / 1e9),
    ]


def _row(name: str, value: float, note: str = "") -> str:
    return f"  {name:24} {value:14,.2f}{note}"


def _bound(part: Part, plan: StepPlan, num_devices: int) -> list[str]:
    bound, device = plan.bound, plan.device
    if bound is None:
        return ["no peak is known for this device: no time, no MFU"]
    peak = device.peak_flops * bound.seconds
    tokens = part.config.training.batch_size * part.config.data.seq_length / bound.seconds * DAY
    return [
        f"least time of a step, predicted, never run: {bound.seconds:.4g} s (compute "
        f"{bound.compute:.4g}, memory {bound.memory:.4g}, network {bound.network:.4g})",
        f"at most: MFU {bound.mfu:.1%}, PaLM's {plan.flops.palm / peak:.1%}, HFU "
        f"{plan.flops.hardware / peak:.1%}; {tokens:,.0f} tokens a day on {num_devices} devices",
    ]


def describe_run(config: Config, parts: list[Part], plans: list[StepPlan]) -> str:
    """The length of the run in tokens, and in days where the rates of the device are known."""
    slots = sum(part.slots for part in parts)
    line = (
        f"\n{config.training.steps:,} steps: {slots:,} tokens, {slots / _num_params(config):.3g} "
        "per parameter"
    )
    if any(plan.bound is None for plan in plans):
        return line
    seconds = sum(part.steps * plan.bound.seconds for part, plan in zip(parts, plans, strict=True))
    return f"{line}; at least {seconds / DAY:.3g} days, predicted, never run"


def _num_params(config: Config) -> int:
    return count_params(glm.abstract_params(config.model)[0])
