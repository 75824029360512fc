"""Who may import whom. The rows are ordered: a package may import itself and the named ones."""

import ast
from pathlib import Path

import pytest
from commands import run_command

PACKAGE = Path(__file__).resolve().parent.parent / "glm_jax"
BASE = {"errors", "batch", "config", "config_checks", "mesh_rules", "stages"}
TEXT = BASE | {"tokenizer", "language", "documents"}
ALLOWED = {
    "errors": set(),
    "batch": set(),
    "language": set(),
    "folders": {"errors"},
    "versions": set(),
    "recipes": set(),
    "compilation_cache": set(),
    "config": {"errors", "config_checks"},
    "config_checks": {"errors", "config", "mesh_rules", "stages"},
    "mesh_rules": {"errors", "config"},
    "stages": {"errors", "config"},
    "documents": {"errors", "language"},
    "text_units": set(),
    "decontamination": {"errors", "documents", "text_units", "tokenizer"},
    "tokenizer": {"errors", "folders", "language"},
    "cli": BASE | {"compilation_cache", "parallel"},
    "objective": TEXT,
    "data": TEXT | {"objective"},
    "preparation": TEXT | {"folders", "data", "decontamination"},
    "parallel": BASE,
    "ops": BASE | {"parallel"},
    "model": BASE | {"tokenizer", "parallel", "ops"},
    "training": BASE | {"tokenizer", "folders", "versions", "parallel", "ops", "model"},
    "reporting": BASE | {"language", "training"},
    "tasks": TEXT | {"model", "parallel"},
    "layouts": BASE | {"folders", "model"},
    "hub": TEXT | {"folders", "layouts", "model", "objective"},
    "first_state": BASE | {"tokenizer", "parallel", "training", "layouts", "hub"},
    "almanac": BASE | {"cli", "folders", "language"},
    "planning": BASE | {"parallel", "model", "training"},
    "same_program": TEXT | {"data", "parallel", "versions"},
    "session": TEXT | {"data", "parallel", "training", "reporting"},
}
VERBS = {"prepare", "train", "evaluate", "fill", "export", "report", "fit"}
NO_JAX = {"objective", "config", "config_checks", "tokenizer", "documents", "language"}
NO_JAX |= {
    "errors",
    "batch",
    "text_units",
    "decontamination",
    "preparation",
    "stages",
    "mesh_rules",
}
LIGHT = {"config", "config_checks", "objective", "ops", "model", "batch", "tokenizer", "parallel"}
HEAVY = {"tensorflow_datasets", "grain", "orbax", "ml_collections", "tensorflow"}

FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("glm_jax.")}
    roots = {name.split(".")[0] for name in names}
    assert "tensorflow" not in roots
    if part(path) in ALLOWED:
        assert ours <= ALLOWED[part(path)] | {part(path)}
        assert not ours & VERBS
    if part(path) in NO_JAX:
        assert "jax" not in roots
    if part(path) in LIGHT:
        assert not roots & HEAVY
    if "flax" in roots:
        assert part(path) == "model"


def test_the_training_step_runs_without_the_data_and_checkpoint_libraries():
    code = (
        "import sys, glm_jax.training.step, glm_jax.objective.infill, glm_jax.model.presets;"
        f"print(*sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    finished = run_command("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == ""


def test_every_part_has_a_rule():
    assert {part(path) for path in FILES} - {"__init__"} == set(ALLOWED) | VERBS
