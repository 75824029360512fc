"""The training step, compiled for devices that need not exist."""

import dataclasses
import functools
import math
import re
import time
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.parallel.sharding import Sharding, make_sharding
from glm_jax.planning.collectives import Collective, census
from glm_jax.training.evaluation import check_batches
from glm_jax.training.step import TrainState, make_train_step, state_shardings


class Memory(NamedTuple):
    """Bytes on each device, as the compiler laid them out."""

    arguments: int  # the state and a batch
    outputs: int  # the next state lies where the last one was
    temporaries: int
    generated_code: int
    peak: int  # the most that lives at once, arguments among it; on CPUs the sum of all


class DoesNotFit(UserError):
    """The step needs more memory than a device has.

    Attributes:
      needed: bytes on each device; infinite where the compiler does not say.
    """

    def __init__(self, what: str, device: str, problem: str, needed: float):
        super().__init__(f"{what} does not fit the memory of {device}: {problem}")
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    lower_seconds: float
    compile_seconds: float
    memory: Memory
    hlo: str  # text of the optimised program of one device

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """What its devices send to each other, each collective of the text once."""
        return census(self.hlo)

    @property
    def sent(self) -> dict[str, int]:
        """Bytes that a device sends in a step, by kind of collective."""
        sent = Counter()
        for collective in self.collectives:
            sent[collective.kind] += collective.total_bytes
        return dict(sent)

    @property
    def num_kernels(self) -> int:
        """Calls of our own kernels in the text."""
        return len(re.findall(r'custom_call_target="(?:tpu_custom_call|mosaic_gpu)', self.hlo))


def compile_step(config: Config, devices: list[jax.Device]) -> CompiledStep:
    """Compiles a whole training step as `make_train_step` has it, its state donated.

    Args:
      config: with `model.vocab_size`.
      devices: of this machine or of `described_devices`.

    Raises:
      UserError: the config does not fit the devices.
      DoesNotFit: nor does the step their memory, where that is known
        (`glm_jax.parallel.device_kinds`).
    """
    if config.model.vocab_size == 0:
        raise UserError("config.model.vocab_size is 0, and there is no tokenizer here to tell it")
    sharding = make_sharding(config.mesh, devices)
    check_batches(config, sharding)
    step = make_train_step(config, sharding, max(1, len(config.data.sources)))
    start = time.perf_counter()
    lowered = step.lower(abstract_state(config, sharding), abstract_batch(config, sharding))
    lowered_at = time.perf_counter()
    compiled = _compile(lowered, devices[0])
    compiled_at = time.perf_counter()
    memory = _memory(compiled, devices[0].platform)
    # The compiler for TPUs has refused what does not fit; that for GPUs takes everything.
    check_fits("the step", memory.peak, devices[0].device_kind)
    return CompiledStep(
        lower_seconds=lowered_at - start,
        compile_seconds=compiled_at - lowered_at,
        memory=memory,
        hlo=compiled.as_text(),
    )


def check_fits(what: str, needed: float, device: str) -> None:
    """Refuses bytes that a device of this kind does not have, where that is known.

    Raises:
      DoesNotFit: saying by how much.
    """
    kind = device_kind(device)
    if kind and needed > kind.hbm_bytes:
        raise DoesNotFit(what, device, _too_much(needed, kind.hbm_bytes), needed)


def _too_much(needed: float, has: float) -> str:
    needed, has = needed / 2**30, has / 2**30
    return f"it needs {needed:.1f} GiB of {has:.4g}, {needed - has:.1f} too much"


def _compile(lowered: jax.stages.Lowered, device: jax.Device) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        raise _refusal(message.splitlines()[0], device.device_kind) from error


_NEEDED = (
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
)
"""How the compiler for TPUs says what is needed and what there is; the latter of temporaries."""


def _refusal(message: str, device: str) -> DoesNotFit:
    for pattern in _NEEDED:
        if found := re.search(pattern, message):
            needed, has = (float(found[i]) * 1024 ** "_KMGT".index(found[i + 1]) for i in (1, 3))
            return DoesNotFit("the step", device, _too_much(needed, has), needed)
    return DoesNotFit("the step", device, message, math.inf)


def abstract_state(config: Config, sharding: Sharding) -> TrainState:
    """Shapes, dtypes and layout of the state that a step takes."""
    shapes, shardings = state_shardings(config, sharding)
    return jax.tree.map(
        lambda x, laid: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=laid), shapes, shardings
    )


def abstract_batch(config: Config, sharding: Sharding) -> Batch:
    """Shapes, dtypes and layout of the batch [B, T] that a step takes."""
    rows, length = config.training.batch_size, config.data.seq_length
    dtypes = Batch(*[jnp.int32] * len(Batch._fields))._replace(weights=jnp.float32)
    return jax.tree.map(
        lambda dtype: jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding.slots), dtypes
    )


def _memory(compiled: jax.stages.Compiled, platform: str) -> Memory:
    stats = compiled.memory_analysis()
    peak = stats.peak_memory_in_bytes
    if platform == "cpu":  # its compiler leaves temporaries out of the peak
        fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
        peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes + fresh
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        generated_code=stats.generated_code_size_in_bytes,
        peak=peak,
    )
