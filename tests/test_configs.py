"""Every recipe loads, passes its own checks, and says what the docstring should say."""

import importlib.util
from pathlib import Path

import pytest

from glm_jax.config import from_dict
from glm_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
VARIANTS = [
    ("glm_tiny", []),
    ("glm_tiny", ["chatglm"]),
    ("glm_tiny", ["almanac"]),
    ("glm_2021", ["base"]),
    ("glm_2021", ["large"]),
]


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {name for name, _ in VARIANTS}


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_recipe(name, arguments):
    module = load(name)
    config = from_dict(module.get_config(*arguments).to_dict())
    assert config.optimizer.warmup_steps < config.training.steps
    for heading in ("What:", "Cost:", "Command:"):
        assert heading in module.__doc__


@pytest.mark.parametrize("name", ["glm_tiny", "glm_2021"])
def test_unknown_variant(name):
    with pytest.raises(UserError, match="has no variant 'huge'"):
        load(name).get_config("huge")
