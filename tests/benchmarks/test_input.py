"""The benchmark of the input, at a size that a test can run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_every_figure_is_there():
    command = [sys.executable, str(ROOT / "benchmarks" / "input.py"), "--batch=4", "--turns=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    for name in ("token", "sentence", "document", "mixture"):
        assert done.stdout.count(f"| {name} |") == 2
    for who in ("ours, 0", "ours, 1", "ours, 2", "plain Python, 0"):
        assert f"| {who} workers |" in done.stdout
