"""Rates over steps whose duration is known."""

import dataclasses

import jax
import numpy as np
import pytest

from glm_jax.batch import OBJECTIVES
from glm_jax.config import MeshConfig
from glm_jax.model.presets import preset
from glm_jax.parallel.sharding import make_sharding
from glm_jax.training.bad_steps import GOOD, Streak
from glm_jax.training.flops import Costs, Counts
from glm_jax.training.metrics import Sums
from glm_jax.training.speed import Machine, make_machine
from glm_jax.training.step import StepMetrics
from glm_jax.training.window import Window

COSTS = Costs(
    layer_weights=1000, head_weights=300, attention_width=20, weights_again=0, attends_again=False
)
H200 = Machine(COSTS, "NVIDIA H200", num_devices=4)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def metrics(counts: Counts, verdict: int = GOOD) -> StepMetrics:
    """A step with these counts over two rows; half of each count is of either source."""
    shape = (2, len(OBJECTIVES))
    halves = {name: np.zeros(shape, np.float32) for name in Sums._fields}
    for name in ("slots", "tokens", "targets", "pairs"):
        halves[name][:, 0] = getattr(counts, name) / 2
    halves["weight"] = halves["targets"]
    scalars = np.float32(1), np.float32(0.1), np.int32(verdict)
    return StepMetrics(Sums(**halves), *scalars, noise=None)


SHORT = Counts(slots=64.0, tokens=60.0, targets=10.0, pairs=500.0, row_length=32.0)
LONG = Counts(slots=128.0, tokens=100.0, targets=30.0, pairs=4000.0, row_length=64.0)


def make_window(machine: Machine) -> Window:
    return Window({"en": "en", "zh": "zh"}, Streak(10), machine)


def take(window: Window, clock, seconds: float, step: StepMetrics, waited: float = 0.0) -> None:
    """A step that ends `seconds` after the one before."""
    clock[0] += seconds
    window.add(0, range(2), step, waited)
    window.catch_up()


def test_rates_add_up_the_steps_one_by_one(clock):
    """Rows of two lengths; the first step, which compiles, and what is no step are left out."""
    window = make_window(H200)
    take(window, clock, 30.0, metrics(SHORT), waited=7.0)
    take(window, clock, 2.0, metrics(SHORT), waited=0.5)
    with window.paused():
        clock[0] += 50.0
    take(window, clock, 4.0, metrics(LONG), waited=1.0)
    clock[0] += 1.0  # the report itself: part of the next step's time
    figures = window.close()
    flops = COSTS.of_step(SHORT) + COSTS.of_step(LONG)
    peak = 6.0 * 4 * 989.4e12
    assert figures["tokens_per_second"] == pytest.approx(160 / 6)
    assert (figures["step_seconds"], figures["seconds"]) == (pytest.approx(3), pytest.approx(6))
    assert figures["input_wait"] == pytest.approx(0.25)
    assert figures["compile_seconds"] == pytest.approx(30)
    assert figures["useful_tflops"] == pytest.approx(flops.useful / 6 / 4 / 1e12)
    assert figures["mfu"] == pytest.approx(flops.useful / peak)
    assert figures["mfu_palm"] == pytest.approx(flops.palm / peak)
    assert figures["hfu"] == pytest.approx(flops.hardware / peak)
    assert "skipped_seconds" not in figures
    take(window, clock, 3.0, metrics(SHORT))
    assert window.close()["step_seconds"] == pytest.approx(4)


def test_a_step_that_compiles_within_a_window_is_left_out(clock):
    window = make_window(H200)
    take(window, clock, 30.0, metrics(SHORT))
    take(window, clock, 2.0, metrics(SHORT))
    window.expect_compilation()
    take(window, clock, 20.0, metrics(LONG))
    take(window, clock, 4.0, metrics(LONG))
    assert window.unreported_seconds == pytest.approx(56)
    figures = window.close()
    assert figures["step_seconds"] == pytest.approx(3)
    assert figures["compile_seconds"] == pytest.approx(50)
    assert window.unreported_seconds == 0.0


def test_the_time_of_bad_steps_is_told_apart(clock):
    window = make_window(H200)
    take(window, clock, 30.0, metrics(SHORT))
    take(window, clock, 2.0, metrics(SHORT))
    take(window, clock, 3.0, metrics(SHORT, verdict=1), waited=1.0)
    figures = window.close()
    assert figures["skipped_seconds"] == pytest.approx(2)
    assert figures["seconds"] == pytest.approx(5)


def test_without_a_known_peak_there_is_no_mfu(clock):
    machine = make_machine(preset("glm_tiny"), make_sharding(MeshConfig(), jax.devices()[:2]))
    assert (machine.device, machine.num_devices, machine.peak_flops) == ("cpu", 2, None)
    assert machine.describe().endswith("no peak known for cpu: no MFU")
    window = make_window(machine)
    take(window, clock, 1.0, metrics(SHORT))
    take(window, clock, 1.0, metrics(SHORT))
    figures = window.close()
    assert figures["useful_tflops"] > 0
    assert not {"mfu", "mfu_palm", "hfu"} & set(figures)


def test_the_formula_is_said_with_the_peak():
    said = H200.describe()
    assert "6 N tokens + 6 V D targets + 12 L H d pairs, N=1,000 V D=300 L H d=20" in said
    assert said.endswith("/ s / 4 devices / 989.4 TFLOP/s (bf16, NVIDIA H200)")
    assert (
        dataclasses.replace(H200, device="TPU v5").describe().endswith("459 TFLOP/s (bf16, TPU v5)")
    )
