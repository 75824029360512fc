"""A run whose mixture, row length and batch size change: resumed, rewound, reported."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_train import lines, losses, run

from glm_jax import train
from glm_jax.config import StageConfig
from glm_jax.errors import UserError
from glm_jax.training.stopping import Stopping

pytestmark = pytest.mark.slow

STAGES = {
    "first": StageConfig(source_weights={"zh": 1.0}, objective_weights={"token": 1.0}),
    "second": StageConfig(from_step=5, batch_size=16, accumulation_steps=2, mask_ratio=0.3),
}


@pytest.fixture(scope="module")
def config(run_config):
    training = dataclasses.replace(run_config.training, steps=9, log_every=2, eval_every=0)
    return dataclasses.replace(run_config, stages=STAGES, training=training)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("staged") / "run"
    return workdir, run(config, workdir)


def test_stages_are_logged_with_their_figures(config, whole):
    workdir, _ = whole
    stages = lines(workdir, "stage")
    assert [(line["step"], line["name"], line["next_row"]) for line in stages] == [
        (0, "first", 0),
        (5, "second", 5 * config.training.batch_size),
    ]
    assert stages[0]["shares"] == {"zh token": 1.0}
    assert stages[1]["tokens_read"]["zh"] > 0 == stages[1]["tokens_read"]["en"]
    train_lines = lines(workdir, "train")
    assert [(line["step"], line["stage"]) for line in train_lines] == [
        (2, "first"),
        (4, "first"),
        (5, "first"),
        (6, "second"),
        (8, "second"),
        (9, "second"),
    ]
    assert "loss/en" not in train_lines[0]
    assert "loss/en" in train_lines[-2]
    assert lines(workdir, "stopped")[-1]["reason"] == "done"


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_resumed_bit_for_bit(config, whole, tmp_path, stop):
    with Stopping(max_steps=stop, max_minutes=None) as stopping:
        train.run(config, tmp_path / "run", stopping, devices=jax.devices()[:1])
    state = run(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state.params, whole[1].params)
    assert losses(tmp_path / "run")[9] == losses(whole[0])[9]


def test_the_batch_size_of_the_past_cannot_change(config, tmp_path, capsys):
    """Sources would not go on where they stood; with the flag that is said."""
    with Stopping(max_steps=6, max_minutes=None) as stopping:
        train.run(config, tmp_path / "run", stopping, devices=jax.devices()[:1])
    training = dataclasses.replace(config.training, batch_size=2 * config.training.batch_size)
    doubled = dataclasses.replace(config, training=training)
    with pytest.raises(UserError, match=r"tokens_read.zh: \d+ -> \d+; --allow_config_change"):
        run(doubled, tmp_path / "run")
    stages = STAGES | {"second": dataclasses.replace(STAGES["second"], from_step=1)}
    moved = dataclasses.replace(config, stages=stages)
    train.run(moved, tmp_path / "run", devices=jax.devices()[:1], allow_config_change=True)
    assert "changed since step 6: tokens_read.zh: " in capsys.readouterr().out


def test_more_epochs_than_allowed_leave_no_folder(config, tmp_path):
    source = dataclasses.replace(config.data.sources["zh"], max_epochs=0.001)
    data = dataclasses.replace(config.data, sources=config.data.sources | {"zh": source})
    with pytest.raises(UserError, match=r"sources.zh.max_epochs is 0.001, and the run would read"):
        run(dataclasses.replace(config, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_change_of_stages_is_said_and_refused(config, whole, tmp_path):
    with Stopping(max_steps=2, max_minutes=None) as stopping:
        train.run(config, tmp_path / "run", stopping, devices=jax.devices()[:1])
    later = STAGES | {"third": StageConfig(from_step=8)}
    with pytest.raises(UserError, match="config.stages.third.from_step: None -> 8"):
        run(dataclasses.replace(config, stages=later), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(saved["stages"]) == {"first", "second"}
