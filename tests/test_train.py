"""A run: resumed bit for bit, restored on another mesh, kept and refused as promised."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from training.samples import changed

from glm_jax import train
from glm_jax.config import Config, SourceConfig
from glm_jax.errors import UserError
from glm_jax.training.trained_params import load_params


def run(config: Config, workdir: Path, num_devices: int = 1):
    return train.run(config, workdir, devices=jax.devices()[:num_devices])


def lines(workdir: Path, kind: str) -> list[dict]:
    log = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, log) if line["kind"] == kind]


def losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(workdir, "train")}


@pytest.fixture(scope="module")
def ten_steps(run_config, tmp_path_factory):
    """(workdir, state) of a run of ten steps on one device."""
    workdir = tmp_path_factory.mktemp("ten") / "run"
    return workdir, run(run_config, workdir)


@pytest.fixture(scope="module")
def first_five_steps(run_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("five") / "run"
    run(changed(run_config, "training", steps=5), workdir)
    return workdir


@pytest.fixture
def five_steps(first_five_steps, tmp_path):
    """A run that stopped after five of its ten steps."""
    return shutil.copytree(first_five_steps, tmp_path / "run")


def test_ten_steps_are_five_resume_and_five(run_config, ten_steps, five_steps):
    workdir, state = ten_steps
    resumed = run(run_config, five_steps)
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert losses(five_steps) == losses(workdir)
    assert len(losses(workdir)) == 10


def test_log_and_checkpoint_say_what_was_done(run_config, ten_steps):
    workdir, state = ten_steps
    assert [line["step"] for line in lines(workdir, "validation")] == [5, 10]
    figures = set().union(*lines(workdir, "train"))
    assert {"loss/en", "loss/zh", "loss/token", "loss/document", "padding"} <= figures
    assert {"step_seconds", "useful_tflops", "tokens_per_second", "input_wait"} <= figures
    assert not {"mfu", "mfu_palm", "hfu"} & figures, "no peak is known for this device"
    meta = json.loads((workdir / "checkpoints" / "10" / "meta" / "metadata").read_text())
    assert meta["next_row"] == 10 * run_config.training.batch_size
    assert meta["config"]["model"]["num_layers"] == 2
    assert meta["versions"]["jax"] == jax.__version__
    config, params, step = load_params(workdir)
    assert (step, config.model.vocab_size % 8) == (10, 0)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_samples_are_filled_at_every_validation(run_config, ten_steps, tmp_path):
    config = changed(run_config, "logging", samples=("Gold is [MASK], 金是[MASK]。",))
    config = changed(config, "optimizer", ema_decay=0.5)
    run(config, tmp_path / "run")
    filled = {line["step"]: line["filled"] for line in lines(tmp_path / "run", "samples")}
    assert set(filled) == {5, 10}
    ((first, _, second, _, third),) = filled[10]
    assert (first, second, third) == ("Gold is", ", 金是", "。")
    figures = lines(tmp_path / "run", "validation")[-1]
    assert figures["loss"] == lines(ten_steps[0], "validation")[-1]["loss"]
    assert figures["loss_ema"] != figures["loss"]


def test_a_session_ends_with_its_goodput(ten_steps):
    (stopped,) = lines(ten_steps[0], "stopped")
    spent, wall = stopped["spent_seconds"], stopped["wall_seconds"]
    assert sum(spent.values()) == pytest.approx(wall)
    assert 0 < spent["steps that stand"] < spent["starting and compiling"]
    assert stopped["goodput"] == pytest.approx(spent["steps that stand"] / wall)
    assert spent["steps done again"] == spent["between sessions"] == 0
    saved = [line["seconds"] for line in lines(ten_steps[0], "saved")]
    assert spent["saving"] == pytest.approx(sum(saved) + stopped["seconds"])
    timed = [line["seconds"] for line in lines(ten_steps[0], "train")[1:]]
    assert sum(timed) == pytest.approx(spent["steps that stand"] + spent["waiting for input"])
    assert spent["all else"] < 0.3 * wall


@pytest.mark.slow
def test_a_run_says_how_it_began_and_ended(ten_steps, five_steps, run_config):
    (started,) = lines(ten_steps[0], "started")
    assert started["versions"]["jax"] == jax.__version__
    assert (started["num_devices"], started["mesh"]) == (1, "data=1 x fsdp=1 x context=1 x model=1")
    assert [line["reason"] for line in lines(ten_steps[0], "stopped")] == ["done"]
    assert [line["step"] for line in lines(ten_steps[0], "saved")] == [5, 10]
    run(run_config, five_steps)
    (resumed,) = lines(five_steps, "resumed")
    assert (resumed["step"], resumed["next_row"]) == (5, 20)
    assert resumed["num_params"] == started["num_params"]


def test_running_again_after_the_end_changes_nothing(run_config, ten_steps):
    workdir, state = ten_steps
    before = (workdir / "metrics.jsonl").read_text()
    again = run(run_config, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before
    np.testing.assert_array_equal(
        again.params["final_norm"]["scale"], state.params["final_norm"]["scale"]
    )


@pytest.mark.multidevice
def test_a_checkpoint_goes_on_on_another_mesh(run_config, ten_steps, five_steps):
    config = changed(run_config, "mesh", data=2, fsdp=1, model=2)
    run(config, five_steps, num_devices=4)
    expected = losses(ten_steps[0])
    for step, loss in losses(five_steps).items():
        assert loss == pytest.approx(expected[step], rel=1e-5)


@pytest.mark.slow
@pytest.mark.multidevice
def test_a_run_whose_devices_share_rows(run_config, tmp_path):
    """With its validation and samples, which are rows of other lengths."""
    config = changed(run_config, "model", remat="selective")
    config = changed(config, "logging", samples=("Gold is [MASK].",))
    config = changed(config, "training", steps=5)
    run(config, tmp_path / "one")
    run(changed(config, "mesh", data=1, fsdp=2, context=2), tmp_path / "shared", num_devices=4)
    for kind in ("train", "validation"):
        pairs = zip(lines(tmp_path / "shared", kind), lines(tmp_path / "one", kind), strict=True)
        for ours, theirs in pairs:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["exact_match"] == theirs["exact_match"]
    filled = [lines(tmp_path / name, "samples")[-1]["filled"] for name in ("one", "shared")]
    assert filled[0] == filled[1]


def test_a_row_that_devices_cannot_share_is_refused(run_config, tmp_path):
    config = changed(run_config, "mesh", data=1, fsdp=1, context=4)
    config = changed(config, "data", seq_length=66)
    message = "config.data.seq_length 66 is not divisible by the 4 devices of mesh axis context"
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run", num_devices=4)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_checkpoints_kept_are_the_latest_the_best_and_every_nth(run_config, tmp_path):
    config = changed(run_config, "checkpoint", every=1, keep_latest=2, keep_every=4, keep_best=1)
    config = changed(config, "training", eval_every=3)
    run(config, tmp_path / "run")
    best = min(lines(tmp_path / "run", "validation"), key=lambda line: line["loss"])["step"]
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {9, 10, 4, 8, best}


@pytest.mark.slow
def test_the_best_checkpoint_survives_a_resume(run_config, tmp_path):
    config = changed(run_config, "checkpoint", every=1, keep_latest=1, keep_best=1)
    config = changed(config, "training", eval_every=1)
    workdir = tmp_path / "run"
    run(changed(config, "training", steps=3), workdir)
    harmful = changed(config, "optimizer", learning_rate=1.0, decay_steps=30)
    run(changed(harmful, "training", steps=6), workdir)
    loss = {line["step"]: line["loss"] for line in lines(workdir, "validation")}
    best = min(loss, key=loss.get)
    assert best <= 3
    assert {int(path.name) for path in (workdir / "checkpoints").iterdir()} == {best, 6}


def test_a_foreign_folder_among_the_checkpoints_is_ignored(run_config, five_steps):
    (five_steps / "checkpoints" / "99").mkdir()
    assert load_params(five_steps)[2] == 5


@pytest.mark.slow
def test_bfloat16_with_everything_on(run_config, ten_steps, tmp_path):
    """Close to float32 for ten steps: bfloat16 keeps eight bits of each activation."""
    config = changed(run_config, "model", dtype="bfloat16", remat="full")
    config = changed(config, "training", accumulation_steps=2)
    state = run(config, tmp_path / "run")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32"}
    expected = [line["loss"] for line in lines(ten_steps[0], "validation")]
    found = [line["loss"] for line in lines(tmp_path / "run", "validation")]
    np.testing.assert_allclose(found, expected, rtol=2e-2)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("model", {"num_layers": 3}, "config.model.num_layers: 2 -> 3 .its checkpoints do not fit"),
        (
            "objective",
            {"mask_ratio": 0.2},
            "config.objective.mask_ratio: 0.15 -> 0.2 .--allow_config",
        ),
        ("data", {"seq_length": 80}, "config.data.seq_length: 64 -> 80 .--allow_config_change"),
    ],
)
def test_a_workdir_of_another_run_is_refused(run_config, ten_steps, section, fields, message):
    with pytest.raises(UserError, match=message):
        run(changed(run_config, section, **fields), ten_steps[0])


def test_other_mistakes_are_found_before_training(run_config, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run(run_config, tmp_path)
    with pytest.raises(UserError, match="6 rows are not divisible by the 4 devices"):
        run(changed(run_config, "training", batch_size=6), tmp_path / "a", num_devices=4)
    with pytest.raises(UserError, match="vocab_size 99 is smaller than the tokenizer"):
        run(changed(run_config, "model", vocab_size=99), tmp_path / "b")
    with pytest.raises(UserError, match=r"config.data.dir is empty"):
        run(changed(run_config, "data", dir=""), tmp_path / "c")
    with pytest.raises(UserError, match=r"attention backend 'foo' is not one of"):
        run(changed(run_config, "model", attention_backend="foo"), tmp_path / "d")
    with pytest.raises(UserError, match=r"notes.txt is not empty and holds no run"):
        run(run_config, tmp_path / "notes.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}


def test_another_dataset_is_refused(run_config, ten_steps, tmp_path, data_dir):
    workdir = tmp_path / "run"
    shutil.copytree(ten_steps[0], workdir)
    metadata = tmp_path / "data" / "en" / "2.0.0" / "metadata.json"
    shutil.copytree(data_dir, tmp_path / "data")
    values = json.loads(metadata.read_text())
    values["splits"]["train"]["shards"][0]["documents"] += 1
    metadata.write_text(json.dumps(values))
    with pytest.raises(
        UserError,
        match="the checkpoint of step 10 .* other data .*: data.en/train: ",
    ):
        run(changed(run_config, "data", dir=str(tmp_path / "data")), workdir)


def test_sources_that_are_not_named_are_all_of_the_folder(run_config, ten_steps, tmp_path):
    run(changed(changed(run_config, "data", sources={}), "training", steps=1), tmp_path / "run")
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    default = dataclasses.asdict(SourceConfig())
    assert resolved["data"]["sources"] == {"en": default, "zh": default}
    assert losses(tmp_path / "run")[1] == losses(ten_steps[0])[1]


def test_a_run_without_checkpoint_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: .*config\.json is missing"):
        load_params(tmp_path)
