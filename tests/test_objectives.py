"""A run of every objective and option: trained, validated, evaluated, checked and shown."""

import json

import jax
import numpy as np
import pytest
from commands import run_command
from faults.processes import lines
from training.samples import changed

from glm_jax import prepare, train
from glm_jax.batch import IN_PLACE, TEXT_OBJECTIVES
from glm_jax.errors import UserError
from glm_jax.training.run_folder import save_config
from glm_jax.training.trained_params import check_fills_blanks

WITHOUT_BLANKS = {f"{name}_weight": float(name in ("causal", "t5")) for name in TEXT_OBJECTIVES}


@pytest.fixture(scope="module")
def workdir(run_config, tmp_path_factory):
    options = {
        "single_span_prob": 0.2,
        "short_sequence_prob": 0.2,
        "block_mask_prob": 0.1,
        "context_mask_ratio": 0.05,
        "random_position": True,
        "sample_length": 32,
    }
    weights = {f"{name}_weight": 1.0 for name in TEXT_OBJECTIVES}
    config = changed(run_config, "objective", **weights, **options)
    config = changed(config, "training", eval_rows=56)
    path = tmp_path_factory.mktemp("objectives") / "run"
    train.run(config, path, devices=jax.devices()[:1])
    return path


def test_every_objective_has_its_metrics(workdir):
    (*_, validation) = lines(workdir, "validation")
    for name in TEXT_OBJECTIVES:
        assert np.isfinite(validation[f"loss/{name}"])
        assert (f"exact_match/{name}" in validation) == (name not in IN_PLACE)


def test_rows_of_the_run_are_checked_and_shown(workdir, capsys):
    prepare.check_run(56, prepare.rows_of_run(workdir))
    assert "56 rows hold their text whole" in capsys.readouterr().out
    prepare.show_rows("0:56", prepare.rows_of_run(workdir))
    shown = capsys.readouterr().out
    for name in TEXT_OBJECTIVES:
        assert f", {name}: " in shown


def test_a_run_without_blanks_is_not_asked_to_fill_any(run_config, tmp_path):
    save_config(tmp_path, changed(run_config, "objective", **WITHOUT_BLANKS))
    with pytest.raises(UserError, match="does not learn to fill blanks: all rows are causal, t5$"):
        check_fills_blanks(tmp_path)
    save_config(tmp_path, run_config)
    check_fills_blanks(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["evaluate", "fill"])
def test_the_commands_refuse_it(run_config, tmp_path, module):
    save_config(tmp_path, changed(run_config, "objective", **WITHOUT_BLANKS))
    (tmp_path / "input.txt").write_text("Gold is [MASK].")
    task = ["--task=fill"] if module == "evaluate" else []
    finished = run_command(
        "-m", f"glm_jax.{module}", f"--workdir={tmp_path}", f"--input={tmp_path}/input.txt", *task
    )
    assert finished.returncode == 2, finished.stderr
    assert "does not learn to fill blanks" in finished.stderr.splitlines()[-1]


@pytest.mark.slow
def test_loss_by_objective(workdir):
    finished = run_command("-m", "glm_jax.evaluate", f"--workdir={workdir}", "--task=loss")
    assert finished.returncode == 0, finished.stderr
    figures = json.loads(finished.stdout.splitlines()[-1])
    (*_, validation) = lines(workdir, "validation")
    for name in TEXT_OBJECTIVES:
        assert figures[f"loss/{name}"] == pytest.approx(validation[f"loss/{name}"], rel=1e-5)
        assert figures["n"][name] > 0
