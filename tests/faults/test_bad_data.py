"""Rows that blow up: skipped, counted, named; and what happens when there are many."""

import json

import jax
import numpy as np
import pytest
from faults.processes import lines
from training.samples import changed

from glm_jax import prepare, train
from glm_jax.data.rows import Rows
from glm_jax.errors import UserError
from glm_jax.training.stopping import Stopping

pytestmark = pytest.mark.slow


@pytest.fixture
def poison(monkeypatch):
    """A function that makes the loss of the given training rows NaN."""
    build = Rows.build

    def poison_rows(bad: range) -> None:
        def poisoned(self, indices):
            rows = build(self, indices)
            for place, index in enumerate(indices):
                if self._split == "train" and index in bad:
                    rows.weights[place] *= np.nan
            return rows

        monkeypatch.setattr(Rows, "build", poisoned)

    return poison_rows


def run(config, workdir):
    return train.run(config, workdir, devices=jax.devices()[:1])


def test_planted_rows_are_skipped_and_named(run_config, poison, tmp_path, capsys):
    poison(range(13, 14))  # one row of the fourth step
    workdir = tmp_path / "run"
    state = run(run_config, workdir)
    assert int(state.step) == 10
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    (bad,) = lines(workdir, "bad_step")
    assert (bad["step"], bad["rows"], bad["reason"]) == (4, [12, 16], "not finite")
    assert bad["loss"] is None
    counted = {line["step"]: line["bad_steps"] for line in lines(workdir, "train")}
    assert counted == {step: int(step == 4) for step in range(1, 11)}

    capsys.readouterr()
    prepare.show_rows("12:16", prepare.rows_of_run(workdir))
    printed = capsys.readouterr().out
    assert [f"row {index} " in printed for index in (11, 12, 15, 16)] == [False, True, True, False]
    assert "[MASK:" in printed or "[sMASK:" in printed or "[gMASK:" in printed
    prepare.check_run(12, prepare.rows_of_run(workdir))
    assert "12 rows hold their text whole" in capsys.readouterr().out
    with pytest.raises(UserError, match="^row 13, slot 0: the weight is nan"):
        prepare.check_run(20, prepare.rows_of_run(workdir))


def test_too_many_in_a_row_stop_the_run(run_config, poison, tmp_path):
    poison(range(24, 10_000))
    config = changed(run_config, "bad_steps", max_consecutive=3)
    with pytest.raises(UserError, match="3 bad steps in a row, from step 7 on; metrics.jsonl"):
        run(config, tmp_path / "run")
    assert lines(tmp_path / "run", "stopped")[-1]["reason"] == "bad steps"
    saved = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").glob("[0-9]*"))
    assert saved[-1] >= 9


def test_going_back_leaves_the_rows_out(run_config, poison, tmp_path):
    poison(range(24, 36))
    config = changed(
        run_config, "bad_steps", max_consecutive=2, action="rewind", rewind_skip_steps=6
    )
    state = run(config, tmp_path / "run")
    assert int(state.step) == 10
    (rewound,) = lines(tmp_path / "run", "rewound")
    # Steps 7 and 8 were bad, the checkpoint is of step 5 (row 20), and six batches are left out.
    assert (rewound["step"], rewound["next_row"]) == (5, 44)
    assert rewound["skipped_rows"] == [20, 44]
    assert [line["step"] for line in lines(tmp_path / "run", "bad_step")] == [7, 8]
    meta = json.loads((tmp_path / "run/checkpoints/10/meta/metadata").read_text())
    assert meta["next_row"] == 44 + 5 * config.training.batch_size


def test_going_back_too_often_stops(run_config, poison, tmp_path):
    poison(range(24, 10_000))
    config = changed(
        run_config,
        "bad_steps",
        max_consecutive=1,
        action="rewind",
        rewind_skip_steps=1,
        max_rewinds=2,
    )
    with pytest.raises(UserError, match="1 bad steps in a row"):
        run(config, tmp_path / "run")
    assert len(lines(tmp_path / "run", "rewound")) == 2


def test_without_a_checkpoint_there_is_no_way_back(run_config, poison, tmp_path):
    poison(range(0, 10_000))
    config = changed(run_config, "bad_steps", max_consecutive=1, action="rewind")
    with pytest.raises(UserError, match="no checkpoint before it to go back to"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("which", ["0", "5:5", "7:3", "a:b", "-1:4"])
def test_a_malformed_range_of_rows_is_refused(which):
    with pytest.raises(UserError, match="FIRST:END"):
        prepare.show_rows(which, prepare.TrainingRows(rows=[], tokenizer=None))


def test_a_stop_names_every_bad_row(run_config, poison, tmp_path):
    """Also of the step that was in flight, and with no report due."""
    poison(range(24, 10_000))
    config = changed(run_config, "bad_steps", max_consecutive=2)
    config = changed(config, "training", log_every=100)
    with pytest.raises(UserError, match="2 bad steps in a row, from step 7 on"):
        run(config, tmp_path / "run")
    bad = [tuple(line["rows"]) for line in lines(tmp_path / "run", "bad_step")]
    assert bad == [(24, 28), (28, 32), (32, 36)]
    (window,) = lines(tmp_path / "run", "train")
    assert (window["step"], window["bad_steps"]) == (9, 3)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_streak_goes_on_after_a_resume(run_config, poison, tmp_path, log_every):
    poison(range(24, 32))
    config = changed(
        run_config, "bad_steps", max_consecutive=2, action="rewind", rewind_skip_steps=1
    )
    config = changed(config, "training", log_every=log_every)
    undisturbed = run(config, tmp_path / "undisturbed")
    with Stopping(max_steps=7) as stopping:
        train.run(config, tmp_path / "run", stopping, devices=jax.devices()[:1])
    resumed = run(config, tmp_path / "run")
    for workdir in ("undisturbed", "run"):
        (rewound,) = lines(tmp_path / workdir, "rewound")
        assert (rewound["step"], rewound["next_row"]) == (5, 32)
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_within_a_streak_does_not_push_out_the_one_before(
    run_config, poison, tmp_path
):
    poison(range(24, 36))
    config = changed(run_config, "checkpoint", every=1, keep_latest=1, keep_best=0)
    config = changed(config, "bad_steps", max_consecutive=3, action="rewind", rewind_skip_steps=3)
    run(config, tmp_path / "run")
    (rewound,) = lines(tmp_path / "run", "rewound")
    assert (rewound["step"], rewound["next_row"]) == (6, 36)
