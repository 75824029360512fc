"""What a run and its checkpoints say they were made with."""

import hashlib
import importlib.metadata
from pathlib import Path

import glm_jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")


def versions() -> dict[str, str]:
    """Version by name of this program and of the packages that decide its numbers."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"glm-jax": glm_jax.__version__} | packages


def code_digest() -> str:
    """Of all modules of this program."""
    folder, digest = Path(glm_jax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
