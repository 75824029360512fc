"""How fast steps are, and what share of the device's peak that is."""

import dataclasses
import time

import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.parallel.sharding import Sharding
from glm_jax.training.flops import NO_FLOPS, Costs, Counts, Flops, model_costs
from glm_jax.training.metrics import Sums

USEFUL = "6 N tokens + 6 V D targets + 12 L H d pairs"
"""The formula behind `mfu`, as people read it; `glm_jax.training.flops` has the others."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A model on devices of one kind.

    Attributes:
      device: `jax.Device.device_kind`.
    """

    costs: Costs
    device: str
    num_devices: int

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s of one device; None where that is not known."""
        kind = device_kind(self.device)
        return kind and kind.peak_flops

    def describe(self) -> str:
        """The formula of the speed that is reported, for people."""
        costs = self.costs
        formula = (
            f"useful FLOPs = {USEFUL}, N={costs.layer_weights:,} V D={costs.head_weights:,} "
            f"L H d={costs.attention_width:,}"
        )
        if self.peak_flops is None:
            return f"speed: {formula}; no peak known for {self.device}: no MFU"
        peak = f"{self.peak_flops / 1e12:,.5g} TFLOP/s (bf16, {self.device})"
        return f"speed: {formula}; MFU = useful FLOPs / s / {self.num_devices} devices / {peak}"

    def figures(self, flops: Flops, seconds: float) -> dict[str, float]:
        """`useful_tflops` a device, and the shares of its peak where that is known."""
        rate = 1.0 / (seconds * self.num_devices)
        figures = {"useful_tflops": flops.useful * rate / 1e12}
        if self.peak_flops is not None:
            share = rate / self.peak_flops
            figures["mfu"] = flops.useful * share
            figures["mfu_palm"] = flops.palm * share
            figures["hfu"] = flops.hardware * share
        return figures


def make_machine(config: ModelConfig, sharding: Sharding) -> Machine:
    """The model on the devices of the mesh."""
    mesh = sharding.mesh
    return Machine(model_costs(config), mesh.devices.flat[0].device_kind, mesh.size)


class Stopwatch:
    """Adds up what the steps since the last report took and did.

    A lap runs from the end of one step to the end of the next. The laps of steps that compile are
    kept apart, and no rate knows of them.
    """

    def __init__(self, machine: Machine):
        self._machine = machine
        self._lap_began, self._lap_waited = time.perf_counter(), 0.0
        self.clear()

    def clear(self) -> None:
        """Forgets the steps; the lap goes on."""
        self._steps, self._flops = 0, NO_FLOPS
        self._seconds = self._tokens = self._waited = 0.0
        self._skipped_seconds = self._compile_seconds = 0.0

    def wait(self, seconds: float) -> None:
        """So much of this lap was spent waiting for its input."""
        self._lap_waited += seconds

    def leave_out(self) -> None:
        """Begins the lap again: what it did up to now was no step."""
        self._lap_began, self._lap_waited = time.perf_counter(), 0.0

    def add_compilation(self) -> None:
        """The lap is over, and its step had to be compiled first."""
        self._compile_seconds += time.perf_counter() - self._lap_began
        self.leave_out()

    def add(self, sums: Sums, num_rows: int, *, stands: bool) -> None:
        """The lap is over.

        Args:
          sums: of the step's batch, on the host.
          num_rows: rows of the batch.
          stands: the step changed the parameters.
        """
        seconds = time.perf_counter() - self._lap_began
        counts = _counts(sums, num_rows)
        self._steps += 1
        self._seconds += seconds
        self._waited += self._lap_waited
        self._tokens += counts.tokens
        self._flops += self._machine.costs.of_step(counts)
        if not stands:
            self._skipped_seconds += seconds - self._lap_waited
        self.leave_out()

    @property
    def total_seconds(self) -> float:
        """Since the last report, with the lap that is not over."""
        lap = time.perf_counter() - self._lap_began
        return self._seconds + self._compile_seconds + lap

    def figures(self) -> dict[str, float]:
        """Rates over the timed steps, and where their seconds went."""
        figures = {}
        if self._steps:
            figures["tokens_per_second"] = self._tokens / self._seconds
            figures["step_seconds"] = self._seconds / self._steps
            figures |= self._machine.figures(self._flops, self._seconds)
            figures["input_wait"] = self._waited / self._seconds
            figures["seconds"] = self._seconds
        if self._skipped_seconds:
            figures["skipped_seconds"] = self._skipped_seconds
        if self._compile_seconds:
            figures["compile_seconds"] = self._compile_seconds
        return figures


def _counts(sums: Sums, num_rows: int) -> Counts:
    names = ("slots", "tokens", "targets", "pairs")
    totals = {name: float(np.sum(getattr(sums, name), dtype=np.float64)) for name in names}
    return Counts(**totals, row_length=totals["slots"] / num_rows)
