"""Runs the commands of the README in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    """`python ARGUMENTS` on one CPU device, from the root of the repository."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": _ONE_DEVICE}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


_ONE_DEVICE = "--xla_backend_optimization_level=0"
