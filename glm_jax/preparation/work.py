"""The folder beside `--out` in which a dataset grows until it is whole.

  OUT.partial/plan.json          what is being made: inputs, options, tokenizer; when the dataset is
                                 about to take its place, the SHA-256 of its manifest
  OUT.partial/chunks/0000012/    an encoded chunk of the inputs
  OUT.partial/shards/            a report of every finished shard
  OUT.partial/dataset/           the dataset; its manifest.json is written last

A chunk, a shard and the dataset appear by a rename, so that a killed program finds on its next
start what it had finished.
"""

import fcntl
import json
import os
import pathlib
import shutil

from glm_jax.data.shards import sha256
from glm_jax.errors import UserError
from glm_jax.folders import remove_replaced, sync, take_place

MANIFEST_FILE = "manifest.json"

_PLAN_FILE = "plan.json"
_FINISHED = "finished"  # in the plan: the manifest that takes its place
_WORTH_KEEPING = 16  # chunks


class Work:
    """The work folder of a dataset, for one process at a time; a context manager."""

    def __init__(self, target: pathlib.Path, plan: dict, overwrite: bool):
        """Goes on with what an earlier process with the same plan left, or begins.

        Args:
          target: the folder that the dataset will be.
          plan: JSON; see `manifest.plan`.
          overwrite: discards what was begun with another plan.

        Raises:
          UserError: another plan, or another process is at work.
        """
        self._target = target.resolve()
        self.folder = _work_folder(target)
        self.chunks = self.folder / "chunks"
        self.shards = self.folder / "shards"
        self.dataset = self.folder / "dataset"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        try:
            self._begin(json.loads(json.dumps(plan)), overwrite)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *_) -> None:
        """Keeps what took minutes: an error is often mended in the inputs, and the plan with it."""
        try:
            took_minutes = len(finished(self.chunks)) >= _WORTH_KEEPING or any(
                self.shards.glob("*")
            )
            if self.folder.exists() and not took_minutes:
                shutil.rmtree(self.folder)
        finally:
            os.close(self._lock)  # last: another process would find what is being removed

    def finished_manifest(self) -> dict | None:
        """The manifest of the dataset if it only has to take its place, or is there already."""
        path = (self._target if self._in_place else self.dataset) / MANIFEST_FILE
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self) -> None:
        """Puts the dataset in its place, if it is not there already, and removes the rest."""
        if not self._in_place:
            plan = self.folder / _PLAN_FILE
            manifest = sha256(self.dataset / MANIFEST_FILE)
            write_text(plan, json.dumps(json.loads(plan.read_text()) | {_FINISHED: manifest}))
            take_place(self.dataset, self._target)
        remove_replaced(self._target)
        _clear(self.folder)
        self.folder.rmdir()

    def _begin(self, plan: dict, overwrite: bool) -> None:
        path = self.folder / _PLAN_FILE
        before = json.loads(path.read_text()) if path.exists() else None
        self._in_place = is_in_place(self._target)
        if before is not None:
            before.pop(_FINISHED, None)
        if before is None and any(self.folder.glob("[!.]*")):
            raise UserError(f"{self.folder} is in the way, and no work of this program")
        if before != plan:
            if before is not None and not overwrite:
                raise UserError(
                    f"{self.folder} was begun with another {_difference(before, plan)}; the same "
                    "command as then goes on, --overwrite discards it"
                )
            _clear(self.folder)
            self._in_place = False
            write_text(path, json.dumps(plan, indent=2))
        if self._in_place:
            return
        for folder in (self.chunks, self.shards, self.dataset):
            folder.mkdir(exist_ok=True)
            for left in folder.glob(".*"):  # what a killed process was writing
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def is_in_place(target: pathlib.Path) -> bool:
    """Whether a dataset took its place and only what it was made of was left, by a killed program.

    What it was made of is then removed by the same command, and by no other.
    """
    folder = _work_folder(target)
    path, manifest = folder / _PLAN_FILE, target / MANIFEST_FILE
    if not path.exists() or not manifest.exists() or (folder / "dataset").exists():
        return False
    return json.loads(path.read_text()).get(_FINISHED) == sha256(manifest)


def finished(chunks: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the finished chunks, in the order of the inputs."""
    return sorted(chunks.glob("[0-9]*"))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file that is whole or not there, also if the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync(path.parent)


def _work_folder(target: pathlib.Path) -> pathlib.Path:
    target = target.resolve()
    return target.with_name(f"{target.name}.partial")


def _locked(folder: pathlib.Path) -> int:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(f"{folder} is being written by another process") from error
    return lock


def _clear(folder: pathlib.Path) -> None:
    """Empties a work folder, the plan last: it says that the rest may be removed."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == _PLAN_FILE):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _difference(before: dict, plan: dict) -> str:
    """The first value that differs, as text."""
    before, plan = (_flat(values) for values in (before, plan))
    name = next(name for name in {**plan, **before} if before.get(name) != plan.get(name))
    return f"{name} ({before.get(name)}, now {plan.get(name)})"


def _flat(values: dict) -> dict:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in _flat(value).items()}
        else:
            flat[name] = value
    return flat
