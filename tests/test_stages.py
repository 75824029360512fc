"""The grid of batches: which rows a step trains on, by stage and batch size."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from glm_jax import config
from glm_jax.errors import UserError
from glm_jax.stages import BatchGrid, stages_of

TWO = {"first": {"seq_length": 64}, "long": {"from_step": 10, "batch_size": 4, "seq_length": 128}}


def make(stages=None, **training) -> config.Config:
    training = {"batch_size": 8, "steps": 20} | training
    return config.from_dict({"training": training, "stages": stages or {}})


def batches(grid: BatchGrid, count: int, row: int = 0) -> list[range]:
    found = []
    for _ in range(count):
        found.append(grid.batch(row))
        row = found[-1].stop
    return found


def test_without_stages_all_batches_are_alike():
    grid = BatchGrid(make())
    assert batches(grid, 3) == [range(0, 8), range(8, 16), range(16, 24)]
    assert [stage.name for stage in grid.stages] == ["start"]
    assert grid.rows_of_stage(0) == (0, None)
    grid.check(3)  # as of a run whose batch size was changed


def test_a_stage_begins_at_its_step():
    grid = BatchGrid(make(TWO))
    sizes = [len(batch) for batch in batches(grid, 12)]
    assert sizes == [8] * 10 + [4] * 2
    assert grid.rows_of_stage(0) == (0, 80)
    assert grid.rows_of_stage(1) == (80, None)
    assert [grid.row_of_step(step) for step in (0, 9, 10, 11)] == [0, 72, 80, 84]
    assert [stage.config.data.seq_length for stage in grid.stages] == [64, 128]


def test_a_stage_that_begins_later_follows_the_sections():
    stages = stages_of(make({"long": TWO["long"]}))
    assert [(stage.name, stage.from_step) for stage in stages] == [("start", 0), ("long", 10)]
    assert stages[0].config.data.seq_length == 512


def test_a_stage_has_its_weights_and_no_others():
    base = {
        "objective": {"token_weight": 1.0, "document_weight": 1.0},
        "data": {"sources": {"en": {}, "zh": {"weight": 2.0}}},
        "stages": {
            "zh": {
                "from_step": 5,
                "source_weights": {"zh": 3.0},
                "objective_weights": {"sentence": 0.5},
                "mask_ratio": 0.3,
            }
        },
    }
    start, zh = stages_of(config.from_dict(base))
    assert start.config.objective.weights["sentence"] == 0
    assert {name: w for name, w in zh.config.objective.weights.items() if w} == {"sentence": 0.5}
    assert {name: s.weight for name, s in zh.config.data.sources.items()} == {"en": 0.0, "zh": 3.0}
    assert (start.config.objective.mask_ratio, zh.config.objective.mask_ratio) == (0.15, 0.3)


def test_the_published_ramp_of_glm_130b():
    """192 rows, 24 more at a time, to 4224 over the first 5,493,164 rows."""
    grid = BatchGrid(make(batch_size=4224, accumulation_steps=176, batch_ramp=[192, 24, 5_493_164]))
    assert [part.size for part in grid.parts] == list(range(192, 4225, 24))
    assert grid.parts[-1].first_row == pytest.approx(5_493_164, abs=4224)
    assert {part.size // part.accumulation_steps for part in grid.parts} == {24}
    for step in (0, 1, 5000, 100_000):
        assert grid.step_of_row(grid.row_of_step(step)) == step
        assert grid.step_of_row(grid.row_of_step(step + 1) - 1) == step


def test_micro_batches_of_a_ramp_keep_their_size():
    grid = BatchGrid(make(batch_size=8, accumulation_steps=4, batch_ramp=[2, 2, 30]))
    assert [(p.size, p.accumulation_steps) for p in grid.parts] == [(2, 1), (4, 2), (6, 3), (8, 4)]


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_batches_follow_one_another(lengths, skipped, count):
    """From any batch on, also after some were left out."""
    starts = itertools.accumulate((length for length, _ in lengths), initial=0)
    stages = {
        f"s{number}": {"from_step": start, "batch_size": size}
        for number, (start, (_, size)) in enumerate(zip(starts, lengths, strict=False))
    }
    grid = BatchGrid(make(stages))
    all_batches = batches(grid, 81)
    row = all_batches[skipped].start
    grid.check(row)
    assert grid.later(0, skipped) == row
    assert grid.row_of_step(skipped) == row
    assert grid.later(row, count) == all_batches[skipped + count].start
    assert batches(grid, count, row) == all_batches[skipped : skipped + count]


@hypothesis.given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(0, 60),
)
def test_every_ramp_ends_at_the_full_batch(start, increment, count, rows, from_step):
    """Also where a batch is larger than the part of the ramp that it is in."""
    full = start + count * increment
    stages = {"later": {"from_step": from_step, "mask_ratio": 0.3}} if from_step else {}
    grid = BatchGrid(make(stages, batch_size=full, batch_ramp=[start, increment, rows]))
    assert grid.parts[-1].size == full
    sizes = [part.size for part in grid.parts]
    assert sizes == sorted(sizes)
    for part, later in itertools.pairwise(grid.parts):
        assert later.first_row == part.row_of(later.first_step) > part.first_row
        assert later.stage > part.stage or later.size > part.size
    if from_step:
        assert next(part for part in grid.parts if part.stage).first_step == from_step
    assert grid.parts[-1].first_row <= rows + full or grid.parts[-1].stage


def test_a_row_within_a_batch_is_refused():
    grid = BatchGrid(make(TWO))
    with pytest.raises(UserError, match="row 3 is not the first of a batch of 8 rows"):
        grid.check(3)


@pytest.mark.parametrize(
    ("stages", "training", "message"),
    [
        ({"a": {"from_step": -1}}, {}, "stages.a.from_step must not be negative, got -1"),
        ({"a": {}, "b": {}}, {}, "stages.b.from_step 0 is that of config.stages.a too"),
        ({"a": {"seq_length": 8}}, {}, "stages.a: config.data.seq_length must be at least 16"),
        ({"a": {"seq_length": 1024}}, {}, "stages.a: .*seq_length 1024 is longer than the posit"),
        ({"a": {"mask_ratio": 1.5}}, {}, "stages.a: config.objective.mask_ratio must be between"),
        ({"a": {"objective_weights": {"tokn": 1.0}}}, {}, "stages.a.objective_weights has no 'tok"),
        ({"a": {"objective_weights": {"token": -1.0}}}, {}, "objective_weights.token must not be"),
        ({"a": {"objective_weights": {"token": 0.0}}}, {}, "objective_weights are all 0"),
        ({"a": {"batch_size": 9, "accumulation_steps": 2}}, {}, "batches of 9 rows of stage a are"),
        ({"start": {"from_step": 3}}, {}, "stages.start: the steps before the first stage have"),
        ({}, {"batch_ramp": [4, 3, 10]}, r"batch_ramp \(4, 3, 10\): increments of 3 do not lead"),
        ({}, {"batch_ramp": [4, 4]}, "batch_ramp must be three positive numbers"),
        ({"a": {"batch_size": 4}}, {"batch_ramp": [4, 4, 9]}, "stages.a.batch_size 4: with config"),
    ],
)
def test_faults_are_named(stages, training, message):
    with pytest.raises(UserError, match=f"config.*{message}"):
        make(stages, **training)


def test_sources_of_a_stage_are_configured_ones():
    data = {"sources": {"en": {}}}
    stages = {"a": {"source_weights": {"fr": 1.0}}}
    with pytest.raises(UserError, match="stages.a.source_weights has no 'fr' to weigh; known: en"):
        config.from_dict({"data": data, "stages": stages})
