"""The least time that a compiled step can take: predicted, never run."""

from typing import NamedTuple

from glm_jax.config import Config
from glm_jax.parallel.device_kinds import DeviceKind
from glm_jax.planning.compiled_step import CompiledStep
from glm_jax.training.flops import Counts, model_costs


class Roofline(NamedTuple):
    """Seconds of a step by what limits it, each at the vendor's figure and nothing else waiting.

    (Williams et al. 2009, "Roofline: an insightful visual performance model".) Real steps are
    slower: matrix products do not reach the peak, and what is sent does not hide completely.
    """

    compute: float  # all that the matrix units are given, recomputed layers too
    memory: float  # see `_memory_bytes`
    network: float  # what collectives send, over all fast links of a device; not between slices
    mfu: float  # useful FLOPs in `seconds`, as a share of the peak: a bound from above

    @property
    def seconds(self) -> float:
        """The slowest of the three, the others hidden behind it."""
        return max(self.compute, self.memory, self.network)


def roofline(config: Config, step: CompiledStep, device: DeviceKind, counts: Counts) -> Roofline:
    """The bound of a step.

    Args:
      step: `compile_step` of this config.
      device: what one of its devices can do.
      counts: what one device's share of a batch asks for.
    """
    flops = model_costs(config.model).of_step(counts)
    sent = sum(sent for kind, sent in step.sent.items() if kind != "send")
    bound = Roofline(
        compute=flops.hardware / device.peak_flops,
        memory=_memory_bytes(step, sent) / device.hbm_bandwidth,
        network=sent / device.link_bandwidth,
        mfu=0.0,
    )
    return bound._replace(mfu=flops.useful / (device.peak_flops * bound.seconds))


def _memory_bytes(step: CompiledStep, sent: int) -> int:
    """A floor: the state is read and written once, and what is sent and received passes once."""
    return step.memory.arguments + step.memory.outputs + 2 * sent
