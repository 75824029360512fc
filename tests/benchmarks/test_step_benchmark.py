"""The benchmark of the training step: both sides take the same steps; the figures of its table."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import step
from packed_rows import glm_rows
from step_case import Case, measure

CASE = Case(
    side="jax", remat="none", options=[], rows=16, model="1.3b", length=2048, documents=4,
    dtype="bfloat16", rounds=3, steps=2, seed=0,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("remat", ["none", "full"])
def test_both_sides_take_the_same_steps(remat):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    torch.set_num_threads(1)  # the models are too small to share
    import step_check

    assert step_check.check("float32", remat)


@pytest.mark.torch
def test_pytorch_has_one_rule_for_both_of_its_attentions():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    import step_torch
    from torch.nn.attention.flex_attention import create_mask

    rows = glm_rows(np.random.default_rng(0), 2, 96, 3, vocab_size=16)
    start, end = map(torch.tensor, (rows.kv_start, rows.kv_end))
    visibility = step_torch.Visibility((2, 96), "cpu")
    dense = visibility.of(start, end)
    visibility.start.copy_(start)
    visibility.end.copy_(end)
    assert torch.equal(create_mask(visibility.rule, 2, None, 96, 96, device="cpu"), dense)


@pytest.mark.torch
@pytest.mark.parametrize("remat", ["none", "full"])
def test_pytorch_has_one_graph_for_all_layers(remat):
    """A break would slow it down without a word; so would a compilation for each layer."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    import step_torch
    from torch._dynamo.utils import counters
    from torch.nn.attention.flex_attention import create_block_mask

    case = dataclasses.replace(CASE, remat=remat, model="tiny", rows=1, length=128)
    (batch, *_), model = case.batches(), step_torch.GLM(case.config.model)
    visibility = step_torch.Visibility(batch.tokens.shape, "cpu")
    mask = create_block_mask(visibility.rule, 1, None, 128, 128, device="cpu")
    tokens, position, block_position, _, _, slots, *_ = step_torch.place(batch, 256, "cpu")
    torch._dynamo.reset()
    counters.clear()
    for layer in model.layers:
        layer.compile(backend="eager", dynamic=False, fullgraph=True)
    with torch.no_grad():
        model(tokens, position, block_position, mask, slots)
    assert counters["stats"]["unique_graphs"] == 1
    whole = torch.compile(
        step_torch.GLM(case.config.model), backend="eager", dynamic=False, fullgraph=True
    )
    with torch.no_grad():
        whole(tokens, position, block_position, mask, slots)
    assert counters["stats"]["unique_graphs"] == 2


def test_rows_are_those_of_training():
    rows = glm_rows(np.random.default_rng(0), 200, 512, 4, vocab_size=16)
    slot = np.arange(512)
    is_target = rows.weights > 0
    assert 0.17 < is_target.mean() < 0.2
    assert 3.5 < rows.segment.max(axis=1).mean() < 4.5
    np.testing.assert_array_equal(rows.kv_end[is_target], (0 * rows.kv_end + slot)[is_target] + 1)
    np.testing.assert_array_equal(rows.block_position > 0, is_target)
    for row in range(3):
        for segment in range(1, rows.segment[row].max() + 1):
            of_segment = rows.segment[row] == segment
            (context_end,) = set(rows.kv_end[row][of_segment & ~is_target[row]])
            assert context_end == slot[of_segment & ~is_target[row]].max() + 1
            assert set(rows.kv_start[row][of_segment]) == {slot[of_segment].min()}


class Clock:
    """A trainer whose first step is slow."""

    def __init__(self, loss: float):
        self.steps, self.loss = 0, loss

    def step(self) -> None:
        self.steps += 1

    def wait(self) -> float:
        return self.loss

    def peak_bytes(self) -> int:
        return 2**31

    def device(self) -> str:
        return "NVIDIA H200"


def test_a_case_is_measured_in_rounds_of_steps():
    trainer = Clock(loss=1.0)
    figures = measure(trainer, CASE)
    assert len(figures["seconds"]) == CASE.rounds
    assert trainer.steps == 1 + 4 + CASE.rounds * CASE.steps
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        measure(Clock(loss=float("nan")), CASE)


def test_figures_of_a_case_follow_from_its_seconds():
    figures = {"first": 20.0, "seconds": [0.5, 0.4, 0.6], "peak_bytes": 2**36}
    _, cells = step.evaluated(CASE, figures | {"device": "NVIDIA H200"})
    milliseconds, spread, tokens, useful, palm, hardware, peak, first = cells
    assert (milliseconds, spread, tokens) == ("500.0", "1.500", "65,536")
    assert (peak, first) == ("64.0", "20.0")
    weights, head, slots = 24 * (4 + 8) * 2048**2, 65_024 * 2048, 16 * 2048
    by_hand = (6 * (weights + head) + 12 * 24 * 2048 * 2048) * slots / 0.5 / 989.4e12
    assert palm == f"{by_hand:.1%}"
    assert float(useful[:-1]) < float(hardware[:-1]) < float(palm[:-1])
    _, cells = step.evaluated(CASE, figures | {"device": "cpu", "peak_bytes": None})
    assert cells[3:7] == ["-"] * 4
