"""The memory that `fit` predicts is what steps on CPUs use."""

import json
import os
import subprocess
import sys

import pytest
from commands import ROOT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_predicted_is_used_to_15_percent():
    options = ["--case=fsdp=4", "--width=128", "--rows=8"]
    finished = subprocess.run(
        [sys.executable, f"{ROOT}/benchmarks/fit_memory.py", *options],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        check=True,
    )
    predicted, used = json.loads(finished.stdout.splitlines()[-1])
    assert predicted > 100  # MiB: small things do not hide it
    assert predicted == pytest.approx(used, rel=0.15)
