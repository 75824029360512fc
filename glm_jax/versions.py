"""What a run and its checkpoints say they were made with."""

import importlib.metadata

import glm_jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")


def versions() -> dict[str, str]:
    """Version by name of this program and of the packages that decide its numbers."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"glm-jax": glm_jax.__version__} | packages
