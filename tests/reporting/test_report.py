"""`python -m glm_jax.report` on a real run, damaged and not, and on folders that hold none."""

import shutil

import jax
import pytest
from commands import run_command
from training.samples import changed

from glm_jax import report, train
from glm_jax.errors import UserError


@pytest.fixture(scope="module")
def workdir(run_config, tmp_path_factory):
    """A run of four steps with samples and two checkpoints."""
    folder = tmp_path_factory.mktemp("reported") / "tiny"
    config = changed(run_config, "training", steps=4, eval_every=2)
    config = changed(config, "checkpoint", every=2)
    config = changed(config, "logging", samples=("The capital of France is [MASK].",))
    train.run(config, folder, devices=jax.devices()[:1])
    return folder


def test_report_of_a_run(workdir, tmp_path):
    out = tmp_path / "page.html"
    finished = run_command("-m", "glm_jax.report", f"--workdir={workdir}", f"--out={out}")
    assert finished.returncode == 0, finished.stderr
    assert "finished" in finished.stdout
    assert "2 good" in finished.stdout
    assert str(out) in finished.stdout.replace("\n", "")
    page = out.read_text(encoding="utf-8")
    assert page.count('class="panel"') >= 10
    assert "The capital of France is " in page
    assert page.count("✓ good") == 2


def test_a_damaged_checkpoint_is_named(workdir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    largest = max(copy.glob("checkpoints/2/params/**/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    report.report(copy, copy / "report.html")
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 good, not good: 2" in shown
    assert largest.name in (copy / "report.html").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_one_line(tmp_path):
    finished = run_command("-m", "glm_jax.report", f"--workdir={tmp_path}")
    assert finished.returncode == 2
    assert finished.stderr.strip() == (
        f"error: {tmp_path} holds no run: {tmp_path / 'config.json'} is missing"
    )
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written(workdir, tmp_path):
    with pytest.raises(UserError, match="--out .* cannot be written"):
        report.report(workdir, tmp_path / "absent" / "page.html")
