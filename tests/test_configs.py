"""Every recipe loads, passes its own checks, and costs what its docstring and the docs say."""

import dataclasses
import functools
import importlib.util
import math
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from glm_jax.config import Config, from_dict, with_vocab_size
from glm_jax.errors import UserError
from glm_jax.mesh_rules import with_mesh_rules
from glm_jax.model import glm
from glm_jax.model.presets import PRESETS
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.parallel.mesh import AXES, fill_in
from glm_jax.parallel.sharding import Sharding, rules_of
from glm_jax.planning.estimate import estimate
from glm_jax.planning.plan import largest, parts_of
from glm_jax.stages import BatchGrid
from glm_jax.training.evaluation import check_batches
from glm_jax.training.schedules import make_schedule

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER_SIZE = {"glm_tiny": 8000, "glm_modern": 32_000}


@functools.cache
def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# configs/continued.py reads its model from a folder: tests/test_init_from.py runs it.
FILES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"continued"})
RECIPES = [(name, variant) for name in FILES for variant in getattr(load(name), "VARIANTS", [""])]


@functools.cache
def recipe(name: str, variant: str) -> Config:
    return from_dict(load(name).get_config(*filter(None, [variant])).to_dict())


def slots(config: Config) -> int:
    return BatchGrid(config).row_of_step(config.training.steps) * config.data.seq_length


@functools.cache
def parameters(name: str, variant: str) -> int:
    config = recipe(name, variant)
    model = with_vocab_size(config, TOKENIZER_SIZE.get(name, config.model.vocab_size)).model
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(glm.abstract_params(model)[0]))


def rounded(parameters: int) -> str:
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def power(number: float) -> str:
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.0f} MB"


def cost(name: str, variant: str) -> list[str]:
    """Parameters, slots, FLOPs and memory as they are written down."""
    count, seen = parameters(name, variant), slots(recipe(name, variant))
    return [rounded(count), power(seen), power(6 * count * seen), size(16 * count)]


@pytest.mark.parametrize(("name", "variant"), RECIPES)
def test_recipe(name, variant):
    config = recipe(name, variant)
    schedule = make_schedule(config.optimizer, config.training.steps)
    assert schedule(config.optimizer.warmup_steps) == pytest.approx(
        config.optimizer.learning_rate, rel=1e-3
    )
    tokenizer_size = TOKENIZER_SIZE.get(name, 20_000)
    assert with_vocab_size(config, tokenizer_size).model.vocab_size >= tokenizer_size
    if config.model.position != "learned_2d":
        assert config.data.seq_length <= config.model.max_positions


@pytest.mark.parametrize("name", FILES)
def test_docstring(name):
    headings = ["What:", "Cost:", "Command:", "Expected"]
    if name != "glm_tiny":
        headings.append("Source:")
    for heading in headings:
        assert f"\n{heading}" in load(name).__doc__
    assert f"configs/{name}.py" in load(name).__doc__


@pytest.mark.parametrize(("name", "variant"), RECIPES)
def test_cost(name, variant):
    written = cost(name, variant)
    if name != "glm_tiny":
        line = f"\n  {variant or name.removeprefix('glm_')}: {', '.join(written)}"
        assert line in load(name).__doc__
    o = recipe(name, variant).objective
    weights = (o.token_weight, o.sentence_weight, o.document_weight)
    shares = " / ".join(f"{100 * weight / sum(weights):.0f}" for weight in weights)
    title = f"`{name}:{variant}`" if variant else f"`{name}`"
    row = f"| {title} | {written[0]} | {shares} | {' | '.join(written[1:])} |"
    assert row in (ROOT / "docs" / "recipes.md").read_text()


DEVICES = [("TPU v5 lite", 256), ("TPU v5p", 32), ("NVIDIA H200", 8)]


@pytest.mark.parametrize(("name", "variant"), [p for p in RECIPES if recipe(*p).mesh_rules])
def test_mesh_rules_divide_and_should_fit(name, variant):
    """By arithmetic; docs/pods.md has what was compiled."""
    run, used = recipe(name, variant), set()
    for device, count in DEVICES:
        config, rule = with_mesh_rules(run, device, count)
        if rule:
            used.add(rule)
            sizes = fill_in([getattr(config.mesh, axis) for axis in AXES], count)
            mesh = AbstractMesh(sizes, AXES)
            check_batches(config, Sharding(mesh, rules_of(config.mesh)))
            step = largest(parts_of(config)).config
            assert estimate(step, sizes).total < device_kind(device).hbm_bytes
    assert used == set(run.mesh_rules)


@pytest.mark.parametrize("variant", load("glm_modern").VARIANTS)
def test_about_twenty_tokens_a_parameter(variant):
    ratio = slots(recipe("glm_modern", variant)) / parameters("glm_modern", variant)
    assert 20 <= ratio <= 22


def test_every_preset_has_a_recipe():
    used = {dataclasses.replace(recipe(*pair).model, remat="none") for pair in RECIPES}
    assert {name for name, model in PRESETS.items() if model not in used} == set()


@pytest.mark.parametrize("name", [name for name in FILES if hasattr(load(name), "VARIANTS")])
def test_unknown_variant(name):
    with pytest.raises(UserError, match="has no variant 'huge'"):
        load(name).get_config("huge")
