"""Mixtures change, and every source goes on where it stood."""

import collections
import dataclasses

import numpy as np
import pytest
from test_rows import MIXED, text_of

from glm_jax.batch import OBJECTIVES
from glm_jax.config import Config, from_dict, to_dict
from glm_jax.data.reading import describe_reading, describe_rows, stage_values
from glm_jax.errors import UserError
from glm_jax.stages import BatchGrid

STAGES = {
    "first": {"source_weights": {"zh": 1.0}, "objective_weights": {"token": 1.0}},
    "second": {
        "from_step": 7,
        "seq_length": 200,
        "batch_size": 6,
        "objective_weights": {"token": 1.0, "sentence": 2.0},
        "mask_ratio": 0.3,
    },
    "third": {"from_step": 20, "source_weights": {"en": 1.0, "zh": 4.0}},
}


def with_stages(config: Config, stages=STAGES, **data) -> Config:
    values = to_dict(config)
    values["training"]["batch_size"] = 4
    values["training"]["steps"] = 50
    values["data"] |= data
    return from_dict(values | {"stages": stages})


def texts_by_source(rows, count: int) -> dict[int, list[list[int]]]:
    texts = collections.defaultdict(list)
    for index in range(count):
        row = rows[index]
        texts[int(row.source[0])].append(text_of(row))
    return texts


@pytest.mark.parametrize("shuffle", [True, False])
def test_nothing_is_repeated_or_skipped_across_stages(dataset, make_config, open_rows, shuffle):
    config = with_stages(make_config(**MIXED), shuffle=shuffle)
    rows = open_rows(config)
    end = BatchGrid(config).rows_of_stage(2)[0]
    texts = texts_by_source(rows, end)
    for number, name in enumerate(("en", "zh")):
        taken = sum(map(len, texts[number]))
        assert taken == rows.taken(end)[name] > 0
        read = np.resize(dataset.tokens[name]["train"], taken).tolist()
        found = [token for text in texts[number] for token in text]
        assert found == read if not shuffle else sorted(found) == sorted(read)


def test_a_stage_does_what_it_says(make_config, open_rows):
    config = with_stages(make_config(**MIXED))
    rows, grid = open_rows(config), BatchGrid(config)
    ends = [grid.rows_of_stage(stage)[1] for stage in (0, 1)]
    assert ends == [28, 28 + 13 * 6]
    first, second = ([rows[i] for i in part] for part in (range(28), range(*ends)))
    assert {(len(r.tokens), OBJECTIVES[r.objective[0]], int(r.source[0])) for r in first} == {
        (128, "token", 1)
    }
    assert {len(r.tokens) for r in second} == {200}
    counts = collections.Counter(OBJECTIVES[r.objective[0]] for r in second)
    assert counts == {"token": 26, "sentence": 52}
    masked = [r.weights.sum() / (r.segment > 0).sum() for r in second if r.objective[0] == 0]
    assert np.mean(masked) > 0.3
    third = [rows[i] for i in range(ends[1], ends[1] + 50)]
    assert collections.Counter(int(r.source[0]) for r in third) == {0: 10, 1: 40}


def test_validation_rows_have_no_stages(make_config, open_rows):
    plain = open_rows(make_config(**MIXED), "validation")
    staged = open_rows(with_stages(make_config(**MIXED)), "validation")
    assert all(map(np.array_equal, plain[5], staged[5]))


def test_a_later_stage_leaves_earlier_rows_alone(make_config, open_rows):
    """So a run may be given another stage while it is on, but for the rows of one shuffle."""
    two = {name: STAGES[name] for name in ("first", "second")}
    before, after = (
        open_rows(with_stages(make_config(**MIXED), stages, shuffle_rows=20))
        for stages in (two, STAGES)
    )
    for index in (0, 27, 28, 60, 87):
        assert all(map(np.array_equal, before[index], after[index])), index


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("weight", 0.5), ("tokens", None), ("temperature", None)],
)
def test_shares_of_sources(dataset, make_config, open_rows, weighting, expected):
    config = make_config(sources={"en": {}, "zh": {}})
    data = dataclasses.replace(config.data, weighting=weighting, temperature=2.0)
    rows = open_rows(dataclasses.replace(config, data=data))
    lengths = {name: len(dataset.tokens[name]["train"]) for name in ("en", "zh")}
    exponent = {"weight": 0, "tokens": 1, "temperature": 0.5}[weighting]
    shares = {name: length**exponent for name, length in lengths.items()}
    expected = shares["en"] / sum(shares.values())
    kinds = {kind.source: kind.rows for kind in rows.kinds}
    assert kinds["en"] / sum(kinds.values()) == pytest.approx(expected, rel=2e-3)


def test_dozens_of_rare_kinds(make_config, open_rows):
    """Shares that no short cycle has are kept to half a row in 20,000."""
    sources = {"en": {"weight": 0.9993}, "zh": {"weight": 0.0007}}
    rows = open_rows(make_config(sources=sources, **MIXED))
    cycle = rows.stages[0].mixture.cycle_rows
    shares = {(kind.source, kind.objective): kind.rows / cycle for kind in rows.kinds}
    for objective in ("token", "sentence", "document"):
        expected = 0.0007 * MIXED[f"{objective}_weight"]
        assert shares["zh", objective] == pytest.approx(expected, abs=2.5e-5)


def test_the_tables_before_a_run(make_config, open_rows):
    config = with_stages(make_config(**MIXED))
    rows = open_rows(config)
    kinds = describe_rows(rows)
    assert "stage second, from row 28" in kinds
    assert "zh               token       100.00%" in kinds
    reading = describe_reading(rows, config, num_params=1000).splitlines()
    end = BatchGrid(config).row_of_step(50)
    taken = rows.taken(end)
    assert reading[-1] == (
        f"50 steps read {sum(taken.values()):,} tokens, {sum(taken.values()) / 1000:.3g} per "
        "parameter"
    )
    last = reading[-2].split()
    assert last[:3] == ["all", "zh", f"{taken['zh']:,}"]
    assert float(last[4]) == pytest.approx(taken["zh"] / rows.streams["zh"].length, abs=1e-3)
    by_stage = [int(line.split()[2].replace(",", "")) for line in reading[1:-3]]
    assert sum(by_stage) == sum(taken.values())


def test_more_epochs_than_allowed_are_refused(make_config, open_rows):
    sources = {"en": {}, "zh": {"max_epochs": 0.5}}
    config = with_stages(make_config(sources=sources), {})
    with pytest.raises(UserError, match=r"sources.zh.max_epochs is 0.5, and the run would read \d"):
        describe_reading(open_rows(config), config, num_params=1)


def test_what_the_log_says_of_a_stage(make_config, open_rows):
    config = with_stages(make_config(**MIXED))
    rows = open_rows(config)
    values = stage_values(rows, BatchGrid(config), 28)
    assert values["name"] == "second"
    assert (values["seq_length"], values["batch_size"], values["mask_ratio"]) == (200, 6, 0.3)
    assert sum(values["shares"].values()) == pytest.approx(1.0, abs=1e-5)
    assert values["tokens_read"] == rows.taken(28)
