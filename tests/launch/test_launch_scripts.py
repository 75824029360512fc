"""`local.sh` and `entrypoint.sh`, which start the supervisor."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

pytestmark = pytest.mark.faults

SCRIPTS = ["common.sh", "local.sh", "entrypoint.sh", "supervise.py", "attempts.py", "processes.py"]


@pytest.fixture
def clone(tmp_path) -> Path:
    """The scripts alone, whose virtual environment says of itself that it is one."""
    (tmp_path / "launch").mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nOF_VENV=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    stamp = 'touch "$VENV/.installed-$(what_is_installed | cksum | cut -d" " -f1)-"'
    subprocess.run(["bash", "-c", f"source {tmp_path}/launch/common.sh; {stamp}"], check=True)
    return tmp_path


def run(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )


SHOW = "import os; print(os.environ['OF_VENV'], os.environ.get('JAX_NUM_PROCESSES'))"


def test_python_is_that_of_the_clone(clone):
    finished = run(clone / "launch" / "local.sh", "--num_processes=2", "--", "python", "-c", SHOW)
    assert finished.returncode == 0, finished.stderr
    assert sorted(finished.stdout.splitlines()) == ["[0] yes 2", "[1] yes 2"]


def test_a_dry_run_makes_no_environment(clone):
    shutil.rmtree(clone / ".venv")
    arguments = ["--num_processes=2", "--dry-run", "--", "python", "-m", "glm_jax.train"]
    finished = run(clone / "launch" / "local.sh", *arguments, PYTHON=sys.executable)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [
        f"JAX_COORDINATOR_ADDRESS=localhost:PORT JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={index} "
        "python -m glm_jax.train"
        for index in (0, 1)
    ]
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("options", [[], ["--max_restarts=0", "--"]])
def test_a_container_runs_its_command_under_the_supervisor(clone, options):
    command = [*options, "python", "-c", "raise SystemExit(2)"]
    path = f"{clone}/.venv/bin:{os.environ['PATH']}"
    finished = run(clone / "launch" / "entrypoint.sh", *command, PATH=path)
    assert finished.returncode == 2
    assert finished.stdout == "supervise: ends with 2: process ended with 2\n"


def test_a_container_without_a_command_says_so(clone):
    finished = run(clone / "launch" / "entrypoint.sh")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: nothing to run: give the command after --")
