"""Where the time of a run went."""

import pytest

from glm_jax.reporting.goodput import CAUSES, goodput, goodput_of_session
from glm_jax.reporting.history import Line, read_history
from glm_jax.training.writers import MetricsLog


def nonzero(spent: dict) -> dict:
    assert tuple(spent) == CAUSES
    return {name: seconds for name, seconds in spent.items() if seconds}


@pytest.fixture
def history_at(tmp_path, monkeypatch):
    """A function that writes lines (time, step, kind, values) and reads them as a history."""

    def write(*lines):
        log = MetricsLog(tmp_path)
        for time, step, kind, values in lines:
            monkeypatch.setattr("time.time", lambda time=time: float(time))
            log.write(step, kind, values)
        log.close()
        return read_history(tmp_path / "metrics.jsonl")

    return write


KILLED_AND_RESUMED = [
    (1010, 0, "started", {"start_seconds": 10}),
    (1040, 10, "train", {"compile_seconds": 11, "seconds": 18, "input_wait": 0.5}),
    (1043, 10, "validation", {"seconds": 2}),
    (1044, 10, "samples", {"seconds": 1}),
    (1046, 10, "saved", {"seconds": 2}),
    (1066, 20, "train", {"seconds": 20, "skipped_seconds": 4, "input_wait": 0.1, "bad_steps": 2}),
    (1086, 30, "train", {"seconds": 20}),
    # killed
    (1123, 25, "fallback", {}),
    (1126, 20, "resumed", {"start_seconds": 7}),
    (1150, 30, "train", {"compile_seconds": 4, "seconds": 19}),
    (1160, 30, "rewound", {"from_step": 33, "lost_seconds": 6, "seconds": 3}),
    (1170, 40, "train", {"seconds": 9}),
    (1175, 40, "stopped", {"reason": "done", "seconds": 5}),
]


def test_every_second_has_one_cause(history_at):
    found = goodput(history_at(*KILLED_AND_RESUMED).lines)
    assert found.wall == 175
    assert nonzero(found.spent) == {
        "steps that stand": 9 + 14 + 19 + 9,
        "steps done again": 20 + 6,
        "bad steps": 4,
        "waiting for input": 9 + 2,
        "saving": 2 + 5,
        "validation and samples": 3,
        "starting and compiling": 10 + 11 + 7 + 4 + 3,
        "between sessions": 1119 - 1086,
        "all else": pytest.approx(175 - 51 - 26 - 4 - 11 - 7 - 3 - 35 - 33),
    }
    assert found.share == pytest.approx(51 / 175)
    assert found.describe().startswith(
        "goodput 29 % of 3 min; lost to: starting and compiling 20 %, between sessions 19 %, steps "
    )


def test_a_session_alone(history_at, tmp_path):
    """From its own beginning, up to the line that is about to be written."""
    history_at(*KILLED_AND_RESUMED[:-1])
    last = Line(40, "stopped", 1176.0, {"seconds": 5.0})
    found = goodput_of_session(tmp_path, last)
    assert found.wall == 1176 - 1119
    assert nonzero(found.spent) == {
        "steps that stand": 19 + 9,
        "steps done again": 6,
        "saving": 5,
        "starting and compiling": 7 + 4 + 3,
        "all else": 57 - 28 - 6 - 5 - 14,
    }
    assert found.values()["goodput"] == pytest.approx(28 / 57)


def test_lines_without_figures_of_time_are_all_else(history_at):
    found = goodput(history_at((5, 0, "started", {}), (9, 4, "train", {"loss": 1.0})).lines)
    assert nonzero(found.spent) == {"all else": 4}
    assert found.share is None
    assert found.describe() == "goodput – of 4 s; lost to: all else 100 %"


def test_a_session_that_did_not_get_to_a_second_step_has_none():
    lines = [Line(0, "started", 9.0, {"start_seconds": 3.0})]
    assert goodput(lines).share == 0.0


def test_no_lines_took_no_time():
    assert (goodput([]).wall, goodput([]).share, nonzero(goodput([]).spent)) == (0.0, None, {})
