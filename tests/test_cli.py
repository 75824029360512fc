"""Mistakes at the command line: exit code 2 and one line, before any compile."""

from pathlib import Path

import pytest
from commands import ROOT, run_command

CONFIG = f"--config={ROOT}/configs/glm_tiny.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("train", [CONFIG], "--workdir is required"),
        ("train", ["--workdir=x"], "--config is required"),
        ("train", [CONFIG, "--config.model.hiden_dim=3", "--workdir=x"], "hiden_dim"),
        ("train", [CONFIG, "--config.model.num_layers=many", "--workdir=x"], "num_layers"),
        ("train", [CONFIG, "--config.model.num_heads=3", "--workdir=x"], "num_heads 3"),
        ("train", [CONFIG, "--config.data.dir=/nowhere", "--workdir=x"], "/nowhere/tokenizer"),
        ("train", ["--config=missing.py", "--workdir=x"], "missing.py"),
        ("train", [f"{CONFIG}:huge", "--workdir=x"], "no variant 'huge'"),
        ("train", [CONFIG, "--wrokdir=x"], "wrokdir"),
        ("fill", ["--workdir=/nowhere"], "/nowhere holds no run"),
        ("fill", ["stray"], "unexpected argument 'stray'"),
        ("evaluate", ["--workdir=/nowhere", "--task=dance"], "dance"),
        ("train", [CONFIG, "--config.model.vocab_multiple=0", "--workdir=x"], "vocab_multiple"),
    ],
)
def test_mistake(name, flags, message):
    finished = run_command("-m", f"glm_jax.{name}", *flags)
    assert finished.returncode == 2, finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in finished.stderr
    assert not Path("x").exists()


@pytest.mark.slow
def test_debug_shows_the_traceback():
    finished = run_command("-m", "glm_jax.fill", "--workdir=/nowhere", "--debug")
    assert finished.returncode == 2
    assert "Traceback" in finished.stderr
    finished = run_command("-m", "glm_jax.train", CONFIG, "--config.model.hiden_dim=3", "--debug")
    assert "Traceback" in finished.stderr
