"""The folder of a run: created once, and opened again only by a config that continues it.

It holds `config.json` (resolved), `tokenizer/`, `metrics.jsonl`, `checkpoints/` and `hosts/`.
"""

import contextlib
import dataclasses
import fcntl
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from glm_jax.config import Config, MeshConfig, from_dict, run_identity, to_dict
from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.parallel.hosts import Hosts
from glm_jax.parallel.sharding import make_sharding
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.step import state_shardings
from glm_jax.training.step_folders import step_folders

Changes = dict[str, tuple[object, object]]
"""Old and new value by the dotted name of a field."""

CONFIG_FILE = "config.json"

_UNFINISHED_RUN = {"tokenizer", "config.tmp", ".lock"}  # what a kill leaves of making one
_STATE_SECTIONS = ("model", "optimizer", "bad_steps")  # what the arrays of a state depend on


def open_run(
    workdir: Path, config: Config, tokenizer: Tokenizer, *, allow_config_change: bool = False
) -> list[str]:
    """Creates the run's folder, or checks that an existing one is this run.

    Args:
      allow_config_change: accept other rows and another model, as long as the arrays of the saved
        states fit.

    Returns:
      What differs from the config of the last session, one `field: old -> new` each, sorted;
      `save_config` makes it so.

    Raises:
      UserError: the folder holds something else, a run with another tokenizer, or one that the
        config does not continue; the message has every field that forbids it.
    """
    if not is_run(workdir):
        _create_run(workdir, config, tokenizer)
        return []
    _check_tokenizer(workdir, tokenizer)
    saved = load_config(workdir)
    changes = config_changes(to_dict(saved), to_dict(config))
    misfits = _misfits(saved, config, changes) if step_folders(workdir / "checkpoints") else {}
    _check_changes(workdir, saved, config, misfits, allow_config_change)
    return change_lines(changes)


def is_run(workdir: Path) -> bool:
    """Whether the folder holds a run."""
    return (workdir / CONFIG_FILE).exists()


def save_config(workdir: Path, config: Config) -> None:
    """Makes this the config of the run."""
    temporary = (workdir / CONFIG_FILE).with_suffix(".tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n")
    temporary.replace(workdir / CONFIG_FILE)


def check_same_data(
    meta: Mapping[str, Any], fingerprint: Mapping, read: Mapping, *, allow_change: bool
) -> None:
    """Other data, and sources that would not go on where they stood, are said or refused.

    Args:
      meta: of the checkpoint to go on from.
      fingerprint: of the data at hand.
      read: tokens of each source that are taken to be read by then.

    Raises:
      UserError: they differ, and that is not allowed.
    """
    changes = [
        *change_lines(config_changes(meta["data"], fingerprint, "data")),
        *change_lines(config_changes(meta["tokens_read"], read, "tokens_read")),
    ]
    if changes and not allow_change:
        raise UserError(
            f"the checkpoint of step {meta['step']} was trained on other data or rows than config "
            f"says: {'; '.join(changes)}; --allow_config_change goes on with it"
        )
    for change in changes:
        print(f"changed since step {meta['step']}: {change}")


def check_is_shared(workdir: Path, hosts: Hosts) -> None:
    """Refuses a folder that is not the same one on all hosts.

    Raises:
      UserError: naming the processes that see another.
    """
    if hosts.count == 1:
        return
    mark = workdir / hosts.from_first("mark", f".mark-{secrets.token_hex(8)}")
    if hosts.is_first:
        mark.touch()
    hosts.wait("marked")
    found = hosts.exchange("found", "yes" if mark.exists() else "")
    if hosts.is_first:
        mark.unlink()
    if without := [hosts.describe(index) for index, seen in enumerate(found) if not seen]:
        raise UserError(
            f"--workdir {workdir} is not the same folder on {', '.join(without)}: the hosts of a "
            "run write into one that they share"
        )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in the folder of a run at the same time.

    Raises:
      UserError: one does.
    """
    with (workdir / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process trains in --workdir {workdir}") from error
        yield


def load_config(workdir: Path) -> Config:
    """The resolved config of a run.

    Raises:
      UserError: the folder holds no run, or its config cannot be read.
    """
    path = workdir / CONFIG_FILE
    if not is_run(workdir):
        raise UserError(f"{workdir} holds no run: {path} is missing")
    try:
        return from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def config_changes(old: Mapping, new: Mapping, prefix: str = "config") -> Changes:
    """Old and new value of every field that differs, by dotted name, sorted."""
    changes = {}
    for key in sorted(old.keys() | new.keys()):
        name, pair = f"{prefix}.{key}", (old.get(key), new.get(key))
        if all(isinstance(value, Mapping) for value in pair):
            changes |= config_changes(*pair, name)
        elif pair[0] != pair[1]:
            changes[name] = pair
    return changes


def _create_run(workdir: Path, config: Config, tokenizer: Tokenizer) -> None:
    if not workdir.exists():
        with written_whole(workdir) as partial:
            _fill_run(partial, config, tokenizer)
    elif workdir.is_dir() and {path.name for path in workdir.iterdir()} <= _UNFINISHED_RUN:
        # It may be a mount point, or in a folder that may not be written: it cannot be replaced.
        _fill_run(workdir, config, tokenizer)
    else:
        raise UserError(f"--workdir {workdir} is not empty and holds no run (no {CONFIG_FILE})")


def _fill_run(folder: Path, config: Config, tokenizer: Tokenizer) -> None:
    """The config last: it makes the folder a run."""
    shutil.copytree(tokenizer.dir, folder / "tokenizer", dirs_exist_ok=True)
    save_config(folder, config)


def _check_tokenizer(workdir: Path, tokenizer: Tokenizer) -> None:
    saved = Tokenizer.load(workdir / "tokenizer")
    if saved.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--workdir {workdir} was trained with tokenizer {saved.fingerprint[:12]}, "
            f"the data has {tokenizer.fingerprint[:12]}"
        )


def _check_changes(
    workdir: Path, saved: Config, config: Config, misfits: Changes, allow_config_change: bool
) -> None:
    identity = config_changes(run_identity(saved), run_identity(config))
    refused = misfits if allow_config_change else identity | misfits
    if not refused:
        return
    if misfits:
        way_out = f"its checkpoints do not fit another {', '.join(misfits)}: use another --workdir"
    else:
        way_out = "--allow_config_change resumes it with them"
    raise UserError(
        f"--workdir {workdir} holds another run: {'; '.join(change_lines(refused))} ({way_out})"
    )


def _misfits(saved: Config, config: Config, changes: Changes) -> Changes:
    """The changes with which the arrays of a saved state would not be those of the config's."""
    possible = {n: pair for n, pair in changes.items() if n.split(".")[1] in _STATE_SECTIONS}
    if not possible or _layout(config) == _layout(saved):
        return {}
    alone = {name: pair for name, pair in possible.items() if _is_misfit(saved, name, pair[1])}
    return alone or possible


def _is_misfit(saved: Config, name: str, value: object) -> bool:
    """Whether a state of the saved config does not fit the config with one field changed."""
    _, section, field = name.split(".")
    part = dataclasses.replace(getattr(saved, section), **{field: value})
    try:
        return _layout(dataclasses.replace(saved, **{section: part})) != _layout(saved)
    except UserError:
        return False  # the value is valid only together with another change


def _layout(config: Config) -> tuple:
    """Structure, shapes and dtypes of the state."""
    one_device = make_sharding(MeshConfig(data=1), jax.devices()[:1])
    abstract, _ = state_shardings(config, one_device)
    leaves, structure = jax.tree.flatten(abstract)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def change_lines(changes: Changes) -> list[str]:
    return [f"{name}: {old!r} -> {new!r}" for name, (old, new) in sorted(changes.items())]
