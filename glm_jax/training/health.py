"""What a run's checkpoints are worth: the report's view of `checkpoints/`."""

from pathlib import Path
from typing import NamedTuple

from glm_jax.errors import UserError
from glm_jax.training import saved_state
from glm_jax.training import step_folders as folders
from glm_jax.training.manifest import Damaged


class Health(NamedTuple):
    """What is known of one checkpoint on disk."""

    step: int
    good: bool  # its files are those of its manifest, and it was not set aside
    reason: str  # why it is not good; empty if it is
    bytes: int
    saved_at: float | None  # seconds since the epoch; None if that cannot be read


def health(workdir: Path) -> list[Health]:
    """Every checkpoint by step, those that were set aside too; reads all bytes of the others."""
    root = workdir / "checkpoints"
    found = [_examined(step, folder) for step, folder in folders.step_folders(root).items()]
    for step, why, folder in folders.set_aside_folders(root):
        reason = f"{why}: set aside as {folder.relative_to(root)}"
        found.append(Health(step, False, reason, folders.bytes_of(folder), _saved_at(folder)))
    return sorted(found, key=lambda one: (one.step, one.reason))


def _examined(step: int, folder: Path) -> Health:
    try:
        saved_state.verified_meta(folder)
        reason = ""
    except (Damaged, UserError) as error:
        reason = str(error)
    return Health(step, not reason, reason, folders.bytes_of(folder), _saved_at(folder))


def _saved_at(folder: Path) -> float | None:
    try:
        return saved_state.read_meta(folder).get("saved_at")
    except Damaged:
        return None
