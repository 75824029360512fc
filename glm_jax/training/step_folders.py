"""What lies in a run's `checkpoints/`.

    <step>/                    a checkpoint: one folder for each of ITEMS, and its manifest
    set_aside/<step>.<why>[.n] a checkpoint that is not used any more; nothing here is ever deleted
    <step>.orbax-checkpoint-tmp, <step>.deleting
                               what a killed process left of a save or of a deletion

Everything else is somebody else's: it is not looked at, and moved only when a checkpoint of the
same name is saved.
"""

import re
import shutil
from pathlib import Path

from glm_jax.config import CheckpointConfig
from glm_jax.errors import UserError
from glm_jax.training import manifest
from glm_jax.training.manifest import Damaged
from glm_jax.training.saved_state import read_meta

ITEMS = ("params", "ema", "opt_state", "history", "meta")
SET_ASIDE = "set_aside"
FOREIGN = "foreign"

_PARTS = (*ITEMS, "_CHECKPOINT_METADATA")
_LEFTOVER = re.compile(r"(\d+)\.(orbax-checkpoint-tmp.*|deleting)")
_SET_ASIDE_NAME = re.compile(r"(\d+)\.([a-z]+)(\.\d+)?")


def step_folders(root: Path) -> dict[int, Path]:
    """The checkpoints by step, ascending, finished or not."""
    if not root.is_dir():
        return {}
    found = {int(path.name): path for path in root.iterdir() if _is_checkpoint(path)}
    return dict(sorted(found.items()))


def finished_steps(root: Path) -> list[int]:
    """The steps that have a manifest, ascending."""
    return [step for step, folder in step_folders(root).items() if manifest.exists(folder)]


def superseded(root: Path, config: CheckpointConfig) -> list[int]:
    """The finished steps that the config does not keep."""
    steps = finished_steps(root)
    kept = set(steps[-config.keep_latest :])
    if config.keep_every:
        kept |= {step for step in steps if step % config.keep_every == 0}
    losses = {step: _validation_loss(root / str(step)) for step in steps}
    ranked = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    kept |= {step for _, step in ranked[: config.keep_best]}
    return [step for step in steps if step not in kept]


def set_aside_folders(root: Path) -> list[tuple[int, str, Path]]:
    """Step, reason and folder of every checkpoint that was set aside, in their order."""
    folder = root / SET_ASIDE
    paths = folder.iterdir() if folder.is_dir() else ()
    matches = [(_SET_ASIDE_NAME.fullmatch(path.name), path) for path in paths]
    return sorted((int(match[1]), match[2], path) for match, path in matches if match)


def set_aside(folder: Path, why: str) -> Path:
    """Moves a step's folder to a name that says why and that nothing has yet.

    Raises:
      UserError: it cannot be moved.
    """
    parent = folder.parent / SET_ASIDE
    target, number = parent / f"{folder.name}.{why}", 1
    try:
        parent.mkdir(exist_ok=True)
        while target.exists():
            number += 1
            target = parent / f"{folder.name}.{why}.{number}"
        folder.rename(target)
    except OSError as error:
        raise UserError(f"{folder} ({why}) cannot be set aside: {error}") from error
    return target


def make_way(folder: Path) -> None:
    """Moves whatever has the name of a step that is about to be saved; nothing is lost.

    Raises:
      UserError: it cannot be moved.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    elif folder.exists():
        set_aside(folder, "replaced" if _is_checkpoint(folder) else FOREIGN)


def delete(folder: Path) -> None:
    """Deletes a checkpoint; one that is half deleted no longer has the name of a step."""
    leftover = folder.with_name(f"{folder.name}.deleting")
    folder.rename(leftover)
    shutil.rmtree(leftover)


def remove_leftovers(root: Path) -> None:
    """Removes what saves and deletions of processes that are gone left behind."""
    for path in root.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path)


def bytes_of(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if somebody is deleting it."""
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:
        return 0


def _validation_loss(folder: Path) -> float | None:
    try:
        return (read_meta(folder).get("validation") or {}).get("loss")
    except Damaged:
        return None


def _is_checkpoint(path: Path) -> bool:
    """A folder named as a step with something of a checkpoint in it."""
    if not (re.fullmatch(r"0|[1-9][0-9]*", path.name) and path.is_dir()):
        return False
    return any((path / part).exists() for part in _PARTS) or manifest.exists(path)
