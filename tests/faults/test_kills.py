"""Runs that are killed, ended and resumed: nothing is lost but what the save interval allows."""

import random
import signal
import time

import pytest
from faults.processes import Training, curve, is_saving, last_step, lines

pytestmark = [pytest.mark.slow, pytest.mark.faults]

EVERY, STEPS = 5, 100


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """Folder of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    training = Training(data_dir, workdir)
    assert training.wait() == 0, training.printed()
    return workdir


def assert_same_run(workdir, undisturbed):
    assert curve(workdir) == curve(undisturbed)
    ours, theirs = (lines(path, "validation")[-1] for path in (workdir, undisturbed))
    assert (ours["step"], ours["loss"], ours["loss_ema"]) == (
        theirs["step"],
        theirs["loss"],
        theirs["loss_ema"],
    )


def test_kill_minus_nine_ten_times(data_dir, undisturbed, tmp_path):
    """Half of the kills hit a save. A resumed run starts at most two intervals back: one that was
    being saved, and the steps that were trained meanwhile.
    """
    workdir = tmp_path / "run"
    rng = random.Random(0)
    inside_a_save = 0
    for kill in range(10):
        before = last_step(workdir)
        training = Training(data_dir, workdir)
        training.wait_until(lambda start=before: last_step(workdir) > start)
        if kill % 2 == 0:
            training.wait_until(lambda: is_saving(workdir))
        else:
            time.sleep(rng.uniform(0.0, 0.1))
        assert training.signal(signal.SIGKILL) == -signal.SIGKILL
        inside_a_save += is_saving(workdir)
        if kill:
            sessions = lines(workdir, "started") + lines(workdir, "resumed")
            begun = max(sessions, key=lambda line: line["time"])["step"]
            assert begun >= before - 2 * EVERY
    assert inside_a_save >= 5
    assert last_step(workdir) < STEPS
    training = Training(data_dir, workdir)
    assert training.wait() == 0, training.printed()
    assert not is_saving(workdir)
    assert_same_run(workdir, undisturbed)


def _in_a_step(training):
    training.wait_until(lambda: last_step(training.workdir) >= 7)


def _in_a_save(training):
    training.wait_until(lambda: is_saving(training.workdir))


def _in_evaluation(training):
    training.wait_until(lambda: last_step(training.workdir) >= 50)


def _before_the_first_step(training):
    training.wait_until(lambda: lines(training.workdir, "started") != [])


def test_sigterm_saves_and_ends_with_zero(data_dir, undisturbed, tmp_path):
    """One run, which is ended and resumed at every moment."""
    workdir, resumed_from = tmp_path / "run", []
    for moment in (_before_the_first_step, _in_a_step, _in_a_save, _in_evaluation):
        training = Training(data_dir, workdir)
        moment(training)
        assert training.signal(signal.SIGTERM) == 0, training.printed()
        *_, stopped = lines(workdir, "stopped")
        assert stopped["reason"] == "SIGTERM", moment
        if moment is _before_the_first_step:
            assert (stopped["step"], last_step(workdir)) == (0, 0)
        if moment is _in_evaluation:
            assert lines(workdir, "validation") == []
        resumed_from.append(stopped["step"])
    training = Training(data_dir, workdir)
    assert training.wait() == 0, training.printed()
    assert [line["step"] for line in lines(workdir, "resumed")] == resumed_from[1:]
    assert_same_run(workdir, undisturbed)


def test_limits_of_a_session_save_too(data_dir, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    assert Training(data_dir, workdir, "--max_steps=13").wait() == 0
    assert (lines(workdir, "stopped")[-1]["reason"], last_step(workdir)) == ("max_steps", 13)
    assert Training(data_dir, workdir, "--max-minutes=0.0001").wait() == 0
    assert (lines(workdir, "stopped")[-1]["reason"], last_step(workdir)) == ("max_minutes", 13)
    assert Training(data_dir, workdir).wait() == 0
    assert lines(workdir, "resumed")[-1]["step"] == 13
    assert_same_run(workdir, undisturbed)


def test_a_signal_to_the_whole_group_saves_too(data_dir, undisturbed, tmp_path):
    """As terminals and schedulers send it: the processes that build rows get it as well."""
    workdir = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGINT):
        before = last_step(workdir)
        training = Training(data_dir, workdir, "--config.data.num_workers=1")
        training.wait_until(lambda start=before: last_step(workdir) >= start + 7)
        assert training.signal_group(number) == 0, training.printed()
        assert lines(workdir, "stopped")[-1]["reason"] == number.name
    training = Training(data_dir, workdir)
    assert training.wait() == 0, training.printed()
    assert_same_run(workdir, undisturbed)
