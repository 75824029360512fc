"""Histories that broke off, went back, or are not what a trainer writes."""

import json

import pytest
from reporting.fake_run import BEGIN, LENGTH, ROWS, write_run

from glm_jax.reporting.events import changes, describe, rows
from glm_jax.reporting.history import Line, read_history
from glm_jax.reporting.overview import overview


def history_of(tmp_path, *lines):
    """Reads lines (step, kind, values), a second apart; a string is written as it is."""
    path = tmp_path / "metrics.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for second, line in enumerate(lines):
            if isinstance(line, str):
                file.write(line)
                continue
            step, kind, values = line
            file.write(json.dumps({"step": step, "kind": kind, "time": BEGIN + second} | values))
            file.write("\n")
    return read_history(path)


def train(*steps, loss=1.0):
    return [(step, "train", {"loss": loss}) for step in steps]


def test_after_a_crash_the_later_lines_stand(tmp_path):
    lines = [*train(1, 2, 3), (2, "resumed", {}), *train(3, 4, loss=2.0)]
    series = history_of(tmp_path, *lines).series("train", "loss")
    assert series.points == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert series.overwritten == [[(3, 1.0)]]


def test_a_rewind_and_a_run_begun_again_overwrite_too(tmp_path):
    rewound = (2, "rewound", {"from_step": 4, "next_row": 9, "skipped_rows": [4, 9]})
    lines = [
        *train(1, 2, 3, 4),
        rewound,
        *train(3, loss=2.0),
        (0, "started", {}),
        *train(1, loss=3.0),
    ]
    history = history_of(tmp_path, *lines)
    series = history.series("train", "loss")
    assert series.points == [(1, 3.0)]
    assert series.overwritten == [[(1, 1.0), (2, 1.0)], [(3, 1.0), (4, 1.0)], [(3, 2.0)]]
    assert [line.kind for line in history.events] == ["rewound", "started"]


def test_events_stay_although_their_steps_were_overwritten(tmp_path):
    bad = (3, "bad_step", {"reason": "not finite", "loss": None, "grad_norm": 1.0, "rows": [8, 12]})
    history = history_of(tmp_path, *train(1, 2), bad, (1, "resumed", {"next_row": 4}))
    assert [line.kind for line in history.events] == ["bad_step", "resumed"]
    assert describe(history.events[0]) == "not finite: loss –, gradient norm 1; rows 8–11"


def test_what_is_not_a_line_is_counted_and_left_out(tmp_path):
    junk = [
        "[1]\n",
        "\n",
        "nonsense\n",
        '{"step": "1", "kind": "train", "time": 1}\n',
        '{"kind": 1}\n',
    ]
    history = history_of(tmp_path, *train(1), *junk, *train(2), '{"step": 3, "kind": "tr')
    assert [line.step for line in history.lines] == [1, 2]
    assert history.unreadable == 5


def test_bytes_that_are_not_utf8_do_no_harm(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "kind": "train", "time": 1}\n\xe5\x8c')
    history = read_history(tmp_path / "metrics.jsonl")
    assert (len(history.lines), history.unreadable) == (1, 1)


@pytest.mark.parametrize("value", ["null", "NaN", "1e999", "1" + 400 * "0", '"2.0"', "true", "[1]"])
def test_a_figure_that_is_no_finite_number_is_a_gap(tmp_path, value):
    line = f'{{"step": 2, "kind": "train", "time": 5, "loss": {value}}}\n'
    series = history_of(tmp_path, *train(1), line, *train(3)).series("train", "loss")
    assert series.points == [(1, 1.0), (2, None), (3, 1.0)]


def test_no_file_is_an_empty_history(tmp_path):
    history = read_history(tmp_path / "metrics.jsonl")
    assert history.lines == []
    assert overview(history, {}, now=0).state == "empty"


def test_groups(tmp_path):
    values = {"loss": 1.0, "loss/zh": 1.0, "loss/token": 1.0, "accuracy/en": 1.0}
    assert history_of(tmp_path, (1, "train", values)).groups("loss") == ["token", "zh"]


def test_tokens_and_progress_are_those_of_surviving_steps(tmp_path):
    history = history_of(
        tmp_path,
        (4, "train", {"tokens": 64, "mfu": 0.4, "tokens_per_second": 8.0}),
        (6, "train", {"tokens": 32, "mfu": 0.9, "tokens_per_second": 99.0}),
        (4, "resumed", {}),
        (10, "train", {"tokens": 96, "mfu": 0.5, "tokens_per_second": 10.0}),
        (10, "stopped", {"reason": "done", "goodput": 0.5}),
    )
    found = overview(history, {"training": {"steps": 10}}, now=BEGIN + 99)
    assert (found.state, found.step, found.steps) == ("finished", 10, 10)
    assert (found.tokens, found.rate, found.mfu) == (160, 9.0, 0.45)
    assert describe(history.events[-1]) == "all steps done; goodput of the session 50 %"


@pytest.mark.parametrize(
    ("last", "later", "state"),
    [
        ((2, "stopped", {"reason": "SIGTERM"}), 1e6, ("stopped", "SIGTERM")),
        ((2, "stopped", {"reason": "done"}), 1e6, ("finished", "all steps done")),
        ((2, "train", {}), 30, ("running", "last line 30 s ago")),
        ((2, "train", {}), 7200, ("killed", "or hung: silent for 2 h 00 min, without a last word")),
    ],
)
def test_state(tmp_path, last, later, state):
    history = history_of(tmp_path, *train(1), last)
    found = overview(history, {}, now=history.lines[-1].time + later)
    assert (found.state, found.why) == state


def test_the_made_up_run(tmp_path):
    write_run(tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    found = overview(history, json.loads((tmp_path / "config.json").read_text()), BEGIN)
    assert history.unreadable == 1
    assert found.tokens == pytest.approx(5000 * ROWS * LENGTH * 0.978, rel=1e-3)
    assert [step for step, _ in history.series("train", "loss").points] == list(range(10, 5010, 10))
    assert len(history.series("train", "loss").overwritten) == 3
    spent = found.goodput.spent
    assert sum(spent.values()) == pytest.approx(found.goodput.wall)
    assert [name for name, seconds in spent.items() if not seconds] == ["bad steps"]
    assert len(history.of("samples")) == 20


def test_what_changed_between_sessions():
    before = {"versions": {"jax": "1", "flax": "2"}, "num_devices": 8, "mesh": "data=8"}
    after = {"versions": {"jax": "2", "flax": "2"}, "num_devices": 4, "mesh": "data=8"}
    assert changes(before, after) == ["jax 1 → 2", "num devices 8 → 4"]
    assert changes({}, after) == []


@pytest.mark.parametrize("values", [None, [1], ["a", "b"], {"first": 1}])
def test_rows_that_are_no_range(values):
    assert rows(values) == "–"


def test_an_unknown_event_is_listed():
    assert describe(Line(1, "moved", 0.0, {"to": "b", "from": "a"})) == "to b, from a"
