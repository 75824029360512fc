"""Settings for every test: four virtual CPU devices, a persistent compilation cache."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

# More than one virtual device on few cores can deadlock with asynchronous dispatch.
jax.config.update("jax_cpu_enable_async_dispatch", False)

_FIXTURES = ROOT.parent / "shared" / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of reference numbers; it is not part of the repository."""
    if not _FIXTURES.exists():
        pytest.skip(f"reference numbers are absent: {_FIXTURES}")
    return _FIXTURES
