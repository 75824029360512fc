"""The PyTorch reference against published numbers, and our training step against the reference."""

import contextlib
import csv
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from safetensors import safe_open
from training.samples import changed

from glm_jax.batch import WHOLE
from glm_jax.data.dataset import equal_batches

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "goldens" / "almanac_curve.csv"
sys.path.insert(0, str(ROOT / "benchmarks"))

import reference_run  # noqa: E402
from reference_run import Update, agree, compare  # noqa: E402

STEPS = 10


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    torch.set_num_threads(1)  # the models are too small to share
    return torch


@pytest.fixture(scope="module")
def published(torch, fixtures) -> tuple:
    """The published tensors in float64, and our PyTorch model with the published weights."""
    import glm_2021_torch

    with safe_open(fixtures / "glm_2021.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sizes = json.loads(file.metadata()["config"])
    width = sizes["hidden_size"]
    shape = glm_2021_torch.Shape(
        sizes["vocab_size"],
        sizes["num_layers"],
        width,
        sizes["num_attention_heads"],
        4 * width,
        sizes["max_sequence_length"],
        gelu="none",
    )
    model = glm_2021_torch.GLM(shape).double()
    weights = {
        name.removeprefix("param.glm."): tensor
        for name, tensor in tensors.items()
        if name.startswith("param.")
    }
    model.load_state_dict(weights)
    return tensors, model


@pytest.mark.torch
def test_pytorch_model_gives_the_published_logits_loss_and_gradients(torch, published):
    """Every number was computed in float64 and stored in float32."""
    import glm_2021_torch

    tensors, model = published
    labels = tensors["labels"].long()
    in_context = torch.arange(labels.shape[1]) < tensors["sep"][:, None]
    mask = glm_2021_torch.attention_mask(in_context, torch.ones_like(labels))
    logits = model(tensors["input_ids"].long(), tensors["position_ids"].long(), mask)
    losses = glm_2021_torch.token_losses(logits, labels.clamp(min=0))
    loss = glm_2021_torch.batch_loss(losses, (labels >= 0).double())
    loss.backward()

    assert logits.dtype == torch.float64
    np.testing.assert_allclose(logits.detach(), tensors["logits"], rtol=0, atol=3e-7)
    np.testing.assert_allclose(loss.item(), tensors["loss"][0], rtol=1e-7)
    gradients = {f"grad.glm.{name}": p.grad for name, p in model.named_parameters()}
    assert set(gradients) == {name for name in tensors if name.startswith("grad.")}
    for name, gradient in gradients.items():
        error = (gradient - tensors[name]).norm() / tensors[name].double().norm()
        assert error <= 1e-7, f"{name}: relative error {error:.1e}"


@pytest.fixture(scope="module")
def initial(run_config) -> reference_run.Start:
    return reference_run.start(changed(run_config, "model", output_dropout=0.0))


@pytest.fixture(scope="module")
def batches(initial) -> list:
    return first_batches(initial, STEPS)


def first_batches(initial: reference_run.Start, number: int) -> list:
    with contextlib.closing(equal_batches(initial.dataset.train, initial.config, WHOLE)) as batches:
        return list(itertools.islice(batches, number))


@pytest.fixture(scope="module")
def ours(initial, batches) -> list[Update]:
    return list(map(reference_run.our_trainer(initial), batches))


@pytest.mark.torch
def test_our_step_is_the_pytorch_step(torch, initial, batches, ours):
    pytorch = list(map(reference_run.pytorch_trainer(initial), batches))
    for a, b in zip(ours, pytorch, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
        assert a.learning_rate == pytest.approx(b.learning_rate, rel=2e-6)
        np.testing.assert_allclose(a.source_losses, b.source_losses, rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    "fields",
    [
        {"warmup_steps": 3},
        {"final_ratio": 0.2},
        {"b1": 0.91},
        {"b2": 0.99},
        {"eps": 1e-4},
        {"weight_decay": 0.11},
        {"clip_norm": 0.5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_another_recipe_is_noticed(torch, initial, batches, ours, fields):
    other = initial._replace(config=changed(initial.config, "optimizer", **fields))
    pytorch = list(map(reference_run.pytorch_trainer(other), batches))
    assert compare(ours, pytorch)["loss"]["largest"] > 2e-5


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, True), (1.0009, True), (1.0011, False), (float("nan"), False)]
)
@pytest.mark.parametrize("figure", ["loss", "learning_rate"])
def test_one_step_decides(figure, factor, expected):
    curve = [Update(3.0, 1.0, 1e-3, np.array([3.0])) for _ in range(60)]
    other = list(curve)
    other[40] = curve[40]._replace(**{figure: factor * getattr(curve[40], figure)})
    assert agree(compare(other, curve)) == expected
    name = {"loss": "loss", "learning_rate": "learning rate"}[figure]
    if factor > 1:
        assert compare(other, curve)[name]["step"] == 41


@pytest.mark.slow
def test_the_almanac_gives_the_golden_losses(tmp_path):
    """A change of rows, initial weights or step that moves the curve is noticed here.

    The golden is two columns of what `python benchmarks/reference_run.py --steps=20 --out=D`
    writes: warm-up and the whole decay of the learning rate.
    """
    with GOLDEN.open() as file:
        golden = [float(line["ours"]) for line in csv.DictReader(file)]
    data = reference_run.prepare_data([], tmp_path / "run")
    initial = reference_run.start(reference_run.reference_config(data, steps=len(golden)))
    ours = map(reference_run.our_trainer(initial), first_batches(initial, len(golden)))
    np.testing.assert_allclose([update.loss for update in ours], golden, rtol=1e-3)


def test_a_folder_in_use_is_refused(tmp_path):
    finished = run_command("benchmarks/reference_run.py", f"--out={tmp_path}")
    assert finished.returncode == 2
    assert finished.stderr == f"error: --out={tmp_path} already exists\n"
