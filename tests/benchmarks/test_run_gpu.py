"""The script for a GPU, at shapes that a CPU can run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_every_part_reports(tmp_path):
    environment = os.environ | {"SMOKE": "1", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "benchmarks" / "run_gpu.sh"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    page = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0, page + (tmp_path / "errors.log").read_text()
    assert "ok: chunked T 130 d 64: relative error out" in page
    assert page.count("| range_attention, chunked |") == 3  # beside the peers, and two areas
    assert "| target_cross_entropy |" in page
    assert "ok: bfloat16, allowed are" in page
    assert "| glm_jax | none | 1 |" in page
    assert "| PyTorch | none | 1 |" in page
    assert "glm_jax makes " in page
    assert "| jax | " in page
    assert page == done.stdout
