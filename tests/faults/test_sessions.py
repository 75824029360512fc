"""What a session owes the next one: validations, messages, and its folder to itself."""

import errno
import fcntl
import json
import shutil

import jax
import pytest
from faults.processes import last_step, lines
from training.samples import changed

from glm_jax import session, train
from glm_jax.errors import UserError
from glm_jax.training import checkpoint, manifest
from glm_jax.training.stopping import Stopping

pytestmark = pytest.mark.slow


def run(config, workdir, stopping=None):
    return train.run(config, workdir, stopping, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def sessions(run_config, tmp_path_factory):
    """Folders of a run that is finished and of one that has done a step; copy what you change."""
    folder = tmp_path_factory.mktemp("sessions")
    run(run_config, folder / "finished")
    with Stopping(max_steps=1) as stopping:
        run(run_config, folder / "one_step", stopping)
    return folder


class EndedInItsLastValidation(Stopping):
    """A signal that arrives in the last validation."""

    def __init__(self, workdir):
        super().__init__()
        self._workdir = workdir

    def wish(self):
        return "SIGTERM" if last_step(self._workdir) == 10 else None


def test_a_validation_that_was_given_up_is_done_by_the_next_session(run_config, tmp_path):
    workdir = tmp_path / "run"
    run(changed(run_config, "training", eval_every=0), workdir, EndedInItsLastValidation(workdir))
    assert lines(workdir, "validation") == []
    assert lines(workdir, "stopped")[-1]["reason"] == "SIGTERM"
    run(run_config, workdir)
    assert [line["step"] for line in lines(workdir, "validation")] == [10]
    assert lines(workdir, "stopped")[-1]["reason"] == "done"
    before = (workdir / "metrics.jsonl").read_text()
    run(run_config, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_fewer_steps_than_are_done_are_nothing_to_do(run_config, sessions, tmp_path, capsys):
    workdir = shutil.copytree(sessions / "finished", tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_text()
    run(changed(run_config, "training", steps=4), workdir)
    assert "nothing to do: step 10 of 4 is done" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_save_that_failed_is_made_again(run_config, tmp_path, monkeypatch):
    """That of the last step until it is there."""
    write, failing = manifest.write, {5: 1, 10: 2}

    def fail_at_first(folder, *arguments):
        step = int(folder.name)
        if failing.get(step, 0) > 0:
            failing[step] -= 1
            raise OSError(errno.EIO, "Input/output error", "manifest-0-of-1.json")
        write(folder, *arguments)

    monkeypatch.setattr(manifest, "write", fail_at_first)
    monkeypatch.setattr(checkpoint, "_SHORTEST_PAUSE", 0.01)
    workdir = tmp_path / "run"
    run(changed(run_config, "checkpoint", keep_latest=10), workdir)
    failed = lines(workdir, "save_failed")
    assert [line["step"] for line in failed] == [5, 10, 10]
    assert "5 was not saved: OSError: [Errno 5] Input/output error" in failed[0]["reason"]
    saved = [line["step"] for line in lines(workdir, "saved")]
    assert saved[-3:] == [10, 10, 10]
    assert (workdir / "checkpoints/10/manifest-0-of-1.json").exists()


def test_damage_is_said_before_anything_can_refuse(run_config, sessions, tmp_path, monkeypatch):
    workdir = shutil.copytree(sessions / "finished", tmp_path / "run")
    meta = workdir / "checkpoints/10/meta/metadata"
    meta.write_bytes(bytes([meta.read_bytes()[0] ^ 1]) + meta.read_bytes()[1:])

    def refuse(*_, **__):
        raise UserError("other data")

    monkeypatch.setattr(session, "check_same_data", refuse)
    with pytest.raises(UserError, match="other data"):
        run(run_config, workdir)
    (fallback,) = lines(workdir, "fallback")
    assert (fallback["bad_step"], fallback["moved_to"].split("/")[-1]) == (10, "10.changed")


def test_two_processes_cannot_train_in_one_folder(run_config, sessions, tmp_path):
    workdir = shutil.copytree(sessions / "one_step", tmp_path / "run")
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process trains in --workdir"):
            run(run_config, workdir)
    assert len(lines(workdir, "resumed")) == 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (("no blank",), r"config.logging.samples: no \[MASK\], \[sMASK\] or \[gMASK\] in the text"),
        (("so long " * 40 + "[MASK]",), "the longest row has 64"),
    ],
)
def test_samples_that_cannot_be_filled_are_refused_first(run_config, tmp_path, samples, message):
    with pytest.raises(UserError, match=message):
        run(changed(run_config, "logging", samples=samples), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_config_is_told_and_kept(run_config, sessions, tmp_path):
    workdir = shutil.copytree(sessions / "one_step", tmp_path / "run")
    with Stopping(max_steps=2) as stopping:
        run(changed(run_config, "training", steps=12), workdir, stopping)
    (resumed,) = lines(workdir, "resumed")
    assert resumed["changes"] == ["config.training.steps: 10 -> 12"]
    assert json.loads((workdir / "config.json").read_text())["training"]["steps"] == 12


def test_a_folder_that_is_there_and_empty_becomes_the_run(run_config, tmp_path):
    """It may be a mount point: it is filled, not replaced."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    inode = workdir.stat().st_ino
    with Stopping(max_steps=1) as stopping:
        run(run_config, workdir, stopping)
    assert workdir.stat().st_ino == inode
    assert (workdir / "config.json").exists()
