"""Where compiled programs are kept between processes, so that a verb compiles them once."""

import hashlib
import os
import platform
import sys
from pathlib import Path


def keep_compiled_programs() -> None:
    """Sets JAX's persistent compilation cache to `default_folder`, unless one is set.

    JAX_COMPILATION_CACHE_DIR is the setting that goes before; empty, it means no cache. A verb that
    has not imported jax compiles nothing. Where the folder cannot be made there is no cache.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter where a user has no home at all
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_folder() -> Path:
    """$XDG_CACHE_HOME/glm_jax/compiled, or ~/.cache/..., and in it a folder for this processor.

    Code that XLA compiles for a CPU may use any instruction of the machine that compiled it: in a
    home that unlike machines share it could stop another one with SIGILL. jax's key has a
    fingerprint of the devices, which is not documented to tell processors apart.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "glm_jax" / "compiled" / _processor()


def _processor() -> str:
    """The architecture and, on Linux, a digest of the instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    return f"{platform.machine()}-{hashlib.sha256(''.join(flags).encode()).hexdigest()[:8]}"
