"""Meshes by pattern of the devices."""

import pytest

from glm_jax.config import from_dict
from glm_jax.errors import UserError
from glm_jax.mesh_rules import parse_rule, with_mesh_rules

RULES = (
    "TPU v5p x (64|128): fsdp=-1 data=2 model=8 remat=full accumulation_steps=4",
    "TPU v5.* x .*: rules=fsdp",
    "NVIDIA H200 x 8: fsdp=8 data=1",
)


def config(*rules: str):
    return from_dict({"mesh_rules": rules, "training": {"batch_size": 64}, "mesh": {"fsdp": 2}})


def test_the_first_that_matches_is_applied():
    changed, rule = with_mesh_rules(config(*RULES), "TPU v5p", 64)
    assert rule == RULES[0]
    assert (changed.mesh.data, changed.mesh.fsdp, changed.mesh.model) == (2, -1, 8)
    assert (changed.model.remat, changed.training.accumulation_steps) == ("full", 4)
    changed, rule = with_mesh_rules(config(*RULES), "TPU v5p", 256)
    assert rule == RULES[1]
    assert (changed.mesh.rules, changed.mesh.fsdp, changed.model.remat) == ("fsdp", 2, "none")


def test_what_the_command_line_says_goes_before_a_rule():
    rule = parse_rule(RULES[0]).without({"mesh.fsdp", "model.remat", "seed"})
    assert rule == "TPU v5p x (64|128): data=2 model=8 accumulation_steps=4"
    assert parse_rule(rule).without(()) == rule
    changed, _ = with_mesh_rules(config(rule), "TPU v5p", 64)
    assert (changed.mesh.fsdp, changed.mesh.model) == (2, 8)


def test_what_no_rule_matches_stays():
    run = config(*RULES)
    assert with_mesh_rules(run, "NVIDIA H200", 80) == (run, "")
    assert with_mesh_rules(config(), "cpu", 1) == (config(), "")


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("TPU v5p", "it is not of the form 'PATTERN: name=value ...'"),
        ("TPU (: fsdp=1", "the pattern is no regular expression"),
        ("TPU.*: fdsp=1", "'fdsp=1' is none of data=, fsdp=,"),
        ("TPU.*: fsdp", "'fsdp' is none of"),
        ("TPU.*: fsdp=many", "fsdp must be a positive number or -1, got 'many'"),
        ("TPU.*: data=0", "data must be a positive number or -1, got '0'"),
        ("TPU.*: fsdp=2 fsdp=4", "it sets a field twice"),
        ("TPU.*: accumulation_steps=-1", "accumulation_steps must be positive"),
        ("TPU.*: remat=some", "config.model.remat must be one of"),
        ("TPU.*: accumulation_steps=7", "accumulation_steps"),
    ],
)
def test_a_rule_that_cannot_be_is_one_line(rule, reason):
    with pytest.raises(UserError) as caught:
        config(rule)
    assert str(caught.value).startswith("config.mesh_rules: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
