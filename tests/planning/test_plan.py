"""Expected counts, stages as parts of a run, and what a search tries: by arithmetic alone."""

import math
import re

import jax
import pytest

from glm_jax.config import Config, from_dict
from glm_jax.errors import UserError
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.planning.candidates import Layout, candidates
from glm_jax.planning.compiled_step import DoesNotFit, Memory
from glm_jax.planning.expected import expected_counts, text_rows
from glm_jax.planning.held import Held
from glm_jax.planning.nearest import nearest_that_fits
from glm_jax.planning.plan import StepPlan, compile_for, largest, parts_of
from glm_jax.planning.plan_text import describe_part, describe_run, memory_parts
from glm_jax.planning.roofline import Roofline
from glm_jax.planning.search import search
from glm_jax.planning.search_text import describe_ranking
from glm_jax.training.flops import Flops

LARGE = {"num_layers": 24, "hidden_dim": 2048, "num_heads": 16, "mlp_dim": 8192}
LARGE |= {"vocab_size": 65_024, "max_positions": 2048}
LONG = {"seq_length": 2048}
ONLY = {f"{name}_weight": 0.0 for name in Config().objective.weights}


def config(**sections: dict) -> Config:
    model = {"vocab_size": 64, "num_layers": 2, "hidden_dim": 16, "num_heads": 4, "mlp_dim": 32}
    values = {"data": {"seq_length": 20}, "optimizer": {"warmup_steps": 1}} | sections
    values["model"] = model | {"max_positions": 32} | sections.get("model", {})
    return from_dict(values)


def layouts(run: Config, num_devices: int, num_slices: int = 1, device=None) -> list[Layout]:
    return [found.layout for found in candidates(run, num_devices, num_slices, device)]


def counts(objective: dict, **model) -> tuple[float, float]:
    """Targets and pairs of one row of 20 slots."""
    expected = expected_counts(config(objective=ONLY | objective, model=model), rows=1)
    assert expected.slots == expected.tokens == expected.row_length == 20
    return expected.targets, expected.pairs


def test_pairs_of_a_text_and_its_answer_by_hand():
    assert text_rows(3, 10, 0.2) == (30, 30, 6, 3 * (10 * 8 + 1 + 2), 10)


@pytest.mark.parametrize(
    ("objective", "targets", "pairs"),
    [
        ({"token_weight": 1.0, "mask_ratio": 0.2}, 4, 20 * 16 + 10),
        ({"document_weight": 1.0, "document_min_ratio": 0.6}, 16, 20 * 4 + 136),
        ({"causal_weight": 1.0}, 20, 210),
        ({"prefix_weight": 1.0}, 10, 20 * 10 + 55),
        ({"masked_weight": 1.0, "mask_ratio": 0.2}, 4, 400),
        ({"causal_weight": 1.0, "masked_weight": 3.0, "mask_ratio": 0.2}, 8, 0.25 * 210 + 300),
    ],
)
def test_what_rows_of_an_objective_are_expected_to_ask_for(objective, targets, pairs):
    assert counts(objective) == (pytest.approx(targets), pytest.approx(pairs))


def test_a_causal_context_is_half_as_many_pairs():
    objective = {"token_weight": 1.0, "mask_ratio": 0.2, "shuffle_spans": False}
    assert counts(objective, context="causal") == (4, 210)


def test_a_run_is_the_rows_of_its_stages():
    run = config(
        training={"batch_size": 8, "steps": 100, "batch_ramp": [4, 4, 40]},
        stages={"long": {"from_step": 60, "seq_length": 32}, "never": {"from_step": 200}},
    )
    start, long = parts_of(run)
    assert (start.name, start.rows, start.slots) == ("start", 10 * 4 + 50 * 8, 440 * 20)
    assert (long.name, long.rows, long.steps) == ("long", 320, 40)
    assert long.config.data.seq_length == 32
    assert not long.config.training.batch_ramp
    assert largest([start, long]) is long


PLAN = StepPlan(
    held=Held(parameters=100, average=0, optimizer=200, others=3, batch=10, gradients=100),
    lower_seconds=1.5,
    compile_seconds=40.0,
    memory=Memory(arguments=320, outputs=310, temporaries=500, generated_code=0, peak=700),
    flops=Flops(useful=6e12, palm=9e12, hardware=12e12),
    sent={"all-gather": 5_000_000},
    device=device_kind("TPU v5e"),
    bound=Roofline(compute=0.5, memory=0.1, network=0.25, mfu=0.06),
)


def test_memory_by_kind_adds_up_to_the_peak():
    kinds = memory_parts(PLAN)
    assert sum(kinds.values()) == 700
    assert kinds["other state, padding"] == 10
    assert kinds["gradients"] == 100
    assert kinds["activations, temporary"] == 280


def test_bounds_and_lengths_are_those_of_the_whole_mesh_and_run():
    run = config(training={"batch_size": 8, "steps": 345_600})
    parts = parts_of(run)
    said = describe_part(parts[0], PLAN, num_devices=4)
    assert "lowered in 1.5 s, compiled in 40.0 s" in said
    assert "predicted, never run: 0.5 s" in said
    assert "MFU 6.0%, PaLM's 9.1%, HFU 12.2%; 27,648,000 tokens a day on 4 devices" in said
    assert "345,600 steps: 55,296,000 tokens" in describe_run(run, parts, [PLAN])
    assert "at least 2 days, predicted, never run" in describe_run(run, parts, [PLAN])


def test_without_known_rates_there_is_no_time():
    unknown = PLAN._replace(device=None, bound=None)
    parts = parts_of(config())
    assert "no peak is known" in describe_part(parts[0], unknown, 4)
    assert "days" not in describe_run(config(), parts, [unknown])


def test_candidates_use_every_device_and_divide():
    run = config(training={"batch_size": 12})
    found = layouts(run, num_devices=8, num_slices=2)
    assert len(set(found)) == len(found) > 3
    for layout in found:
        assert math.prod(layout.mesh) == 8
        assert layout.data % 2 == 0
        assert layout.context == 1  # rows are short
        rows = 12 // layout.accumulation_steps
        assert rows % (layout.data * layout.fsdp) == 0


def test_a_layout_divides_the_batches_of_all_stages_and_of_a_ramp():
    ramp = config(training={"batch_size": 12, "batch_ramp": [4, 4, 40]})
    ways = {(c.accumulation_steps, c.data * c.fsdp) for c in layouts(ramp, 4)}
    assert {(1, 4), (2, 2), (3, 4), (12, 1)} < ways
    # Its batches of 8 rows would be cut into 3 parts; those of 4 rows cannot be cut over 4 devices.
    assert not {(4, 1), (2, 4)} & ways
    twice = config(
        training={"batch_size": 4, "steps": 100},
        stages={"twice": {"from_step": 50, "batch_size": 8, "seq_length": 32}},
    )
    [halves] = {c for c in layouts(twice, 1) if (c.accumulation_steps, c.remat) == (2, "none")}
    step = halves.largest_step(twice)
    assert (step.training.batch_size, step.training.accumulation_steps) == (8, 4)
    assert step.data.seq_length == 32


def test_axes_that_the_rules_leave_idle_are_not_tried():
    run = config(mesh={"rules": "dp"}, training={"batch_size": 8})
    assert {c.mesh for c in layouts(run, 8)} == {(8, 1, 1, 1)}
    run = config(mesh={"rules": "fsdp"}, training={"batch_size": 8})
    assert {c.model for c in layouts(run, 8)} == {1}
    with pytest.raises(UserError, match="config.mesh.rules must be one of .*, got 'none'"):
        layouts(config(mesh={"rules": "none"}), 8)


def test_long_rows_are_split():
    long = {"seq_length": 8192}
    run = config(data=long, model={"max_positions": 8192}, training={"batch_size": 2})
    assert {c.context for c in layouts(run, 8)} >= {4, 8}


def test_what_should_fit_comes_first():
    run = config(model=LARGE, data=LONG, training={"batch_size": 256})
    unlimited = layouts(run, 16)[0]
    first = layouts(run, 16, device=device_kind("TPU v5e"))[0]
    assert (unlimited.remat, unlimited.accumulation_steps) == ("none", 1)
    assert (first.remat, first.accumulation_steps) != ("none", 1)


def test_a_state_that_is_too_large_is_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr("glm_jax.parallel.device_kinds._KINDS", {"cpu": TINY_DEVICE})
    monkeypatch.setattr("glm_jax.planning.plan.compile_step", None)
    with pytest.raises(DoesNotFit, match="the state with gradients .* does not fit .* too much"):
        compile_for(config(training={"batch_size": 4}), jax.devices()[:1])


def test_a_search_in_which_nothing_fits_names_the_nearest(monkeypatch):
    monkeypatch.setattr("glm_jax.parallel.device_kinds._KINDS", {"cpu": TINY_DEVICE})
    run = config(training={"batch_size": 4})
    found = list(search(run, jax.devices()[:1], num_slices=1, max_compiles=5))
    assert [type(tried.problem) for tried in found] == [DoesNotFit] * len(found)
    with pytest.raises(
        UserError, match=r"none of \d fits; nearest is --config.mesh.data=1 .*needs"
    ):
        describe_ranking(found)


def test_what_one_refusal_rules_out_is_not_compiled(monkeypatch):
    """The first needs ten times what there is: so does all of its remat that is not far smaller."""
    monkeypatch.setattr("glm_jax.parallel.device_kinds._KINDS", {"cpu": device_kind("TPU v5e")})
    tried = []

    def refuse(config, devices):
        tried.append(config.model.remat)
        raise DoesNotFit("the step", "cpu", "too much", 160 * 2**30)

    monkeypatch.setattr("glm_jax.planning.search.compile_for", refuse)
    run = config(training={"batch_size": 8})
    found = list(search(run, jax.devices()[:1], num_slices=1, max_compiles=12))
    assert sorted(tried) == ["full", "none", "selective"]
    assert len(candidates(run, 1, 1, None)) == 12
    assert len(found) == 3


def test_the_nearest_that_should_fit_changes_least():
    """16 GiB hold the state, but not what all layers keep of 64 rows of a device."""
    run = config(model=LARGE | {"remat": "full"}, data=LONG, training={"batch_size": 1024})
    v5e = device_kind("TPU v5e")
    said = nearest_that_fits(run, (1, 16, 1, 1), 1, v5e, needed=40 * 2**30)
    assert re.fullmatch(
        r"nearest that should fit, by arithmetic \(about 1\d.\d\d GiB\): "
        "--config.training.accumulation_steps=4",
        said,
    )
    run = config(model=LARGE, data=LONG, training={"batch_size": 16})
    said = nearest_that_fits(run, (1, 16, 1, 1), 1, v5e, needed=18 * 2**30)
    assert said.endswith("GiB): --config.model.remat=selective")
    run = config(model=LARGE, data=LONG, training={"batch_size": 256})
    said = nearest_that_fits(run, (16, 1, 1, 1), 1, v5e, needed=math.inf)
    assert "--config.mesh.data=" in said
    assert "--config.mesh.fsdp=" in said
    assert "mesh.context" not in said


def test_where_nothing_fits_more_devices_do():
    run = config(model=LARGE, data=LONG, training={"batch_size": 64})
    said = nearest_that_fits(run, (1, 1, 1, 1), 1, device_kind("TPU v5e"), needed=25 * 2**30)
    assert said.startswith("by arithmetic no layout of these 1 devices should fit; 2 should (about")
    assert "--config.mesh.model=2" in said
    huge = run.model.__class__(**vars(run.model) | {"num_layers": 10**8})
    said = nearest_that_fits(
        config(model=vars(huge)), (1, 1, 1, 1), 1, device_kind("TPU v5e"), needed=math.inf
    )
    assert said.endswith("nor of up to 16384")


TINY_DEVICE = device_kind("TPU v5e").__class__(1e12, 1000.0, 1e9, 1e9)
