"""One checkpoint folder as arrays: what lies in it, whether it fits, and reading it."""

import json
from collections.abc import Collection
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from glm_jax.errors import UserError
from glm_jax.training import manifest
from glm_jax.training.manifest import UNFINISHED, Damaged
from glm_jax.training.step import TrainState

FORMAT_VERSION = 3
_NAMES_SHOWN = 3


def items_of(state: TrainState) -> dict:
    """The trees that are saved, by the name of their folder; the step is the checkpoint's name."""
    items = {name: tree for name, tree in state._asdict().items() if name != "step"}
    if state.ema is None:
        del items["ema"]
    return items


def array_specs(items: dict) -> dict[str, str]:
    """Dtype and shape of every array by name, such as `float32[2, 3]`.

    A node without arrays has an entry as well: Orbax restores only into the very same structure.
    """
    leaves = jax.tree_util.tree_leaves_with_path(items, is_leaf=_is_empty)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            "empty" if _is_empty(leaf) else f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }


def read_meta(folder: Path) -> dict:
    """The JSON object that was saved with a checkpoint.

    Raises:
      Damaged: it is missing or is no JSON object.
    """
    try:
        meta = json.loads((folder / "meta" / "metadata").read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged("unreadable", f"meta/metadata cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise Damaged("unreadable", "meta/metadata is no JSON object")
    return meta


def verified_meta(
    folder: Path, items: Collection[str] | None = None, process: int = 0, count: int = 1
) -> dict:
    """Compares a checkpoint with its manifest (see `manifest.verify`); returns its meta.

    Raises:
      Damaged: it must not be used.
      UserError: another version of this program wrote it.
    """
    try:
        manifest.verify(folder, items, process, count)
    except Damaged as bad:
        if bad.kind == UNFINISHED:
            _refuse_format_without_manifest(folder)
        raise
    meta = read_meta(folder)
    _check_format(folder, meta)
    if meta["step"] != int(folder.name):
        raise Damaged("renamed", f"it was saved as step {meta['step']}")
    return meta


def check_fit(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Compares `array_specs`: Orbax would cast another dtype without a word.

    Raises:
      UserError: they differ; the message has the first few names.
    """
    differing = sorted(
        name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)
    )
    if not differing:
        return
    shown = ", ".join(
        f"{name} is {saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in differing[:_NAMES_SHOWN]
    )
    more = len(differing) - _NAMES_SHOWN
    raise UserError(
        f"{folder} does not fit this config: {shown}{f', and {more} more' if more > 0 else ''}"
    )


def laid_out(abstract, shardings):
    """The tree of shapes and dtypes with a sharding for each."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def read(orbax: ocp.Checkpointer, folder: Path, items: dict[str, ocp.args.CheckpointArgs]) -> dict:
    """Restores items of a checkpoint that agrees with its manifest.

    Raises:
      Damaged: Orbax cannot read it all the same.
    """
    try:
        restored = orbax.restore(folder, args=ocp.args.Composite(**items))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine is too small, which is no fault of the checkpoint
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise Damaged("unreadable", f"Orbax cannot read it: {lines[0]}") from error
    return {name: restored[name] for name in items}


def _refuse_format_without_manifest(folder: Path) -> None:
    try:
        meta = read_meta(folder)
    except Damaged:
        return
    _check_format(folder, meta)


def _check_format(folder: Path, meta: dict) -> None:
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{folder} has format {version}, this program reads {FORMAT_VERSION}")


def _is_empty(node) -> bool:
    return node is None or (isinstance(node, tuple | list | dict) and not node)
