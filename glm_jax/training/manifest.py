"""The manifest of a checkpoint: which files it has, how long they are, and their SHA-256.

Orbax notices a missing or shortened file, but most single flipped bits in array data it restores
without a word. So once a checkpoint is committed, every process lists its share of the files in
`manifest-<process>-of-<count>.json` beside them. The lists are written last: a checkpoint without
all of them was never finished.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

UNFINISHED = "unfinished"

_LIST = re.compile(r"manifest-(\d+)-of-(\d+)\.json")
_THREADS = 4  # one core hashes less than the disks of a training host read


class Damaged(Exception):
    """A checkpoint that must not be used; the message says why in one line.

    Attributes:
      kind: the reason in a word, for names of folders: unfinished, missing, extra, resized,
        changed, unreadable or renamed.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def write(folder: Path, process: int = 0, count: int = 1) -> None:
    """Lists this process's share of the files of a committed checkpoint.

    When it returns, files and list survive a power cut: what this checkpoint replaces may go.

    Args:
      process: index of this process among the `count` that each list every count-th file.

    Raises:
      OSError: something cannot be read or written.
    """
    sizes = _sizes(folder)
    names = sorted(sizes)[process::count]
    _sync(folder / name for name in names)
    digests = _digests(folder, names)
    files = {name: {"bytes": sizes[name], "sha256": digests[name]} for name in names}
    path = folder / f"manifest-{process}-of-{count}.json"
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps({"sha256": _digest_of(files), "files": files}, indent=1))
    _sync([temporary])
    temporary.replace(path)
    _sync([folder.parent, folder, *(inner for inner in folder.rglob("*") if inner.is_dir())])


def exists(folder: Path) -> bool:
    """Whether a checkpoint has a manifest; says nothing about its content."""
    return any(_LIST.fullmatch(path.name) for path in folder.iterdir())


def verify(
    folder: Path, items: Collection[str] | None = None, process: int = 0, count: int = 1
) -> None:
    """Compares a checkpoint with its manifest.

    Args:
      items: folders in the checkpoint whose files must have the digests listed; None for all. The
        names and sizes of all other files are compared too.
      process: index of this process among the `count` that each read every count-th file.

    Raises:
      Damaged: there is no complete manifest, or the files are not the ones listed. The message
        names the first such file.
    """
    try:
        listed, found = _read_lists(folder), _sizes(folder)
        _compare_names(listed, found)
        _compare_sizes(listed, found)
        names = [name for name in sorted(found) if items is None or name.split("/")[0] in items]
        names = names[process::count]
        digests = _digests(folder, names)
    except OSError as error:
        raise Damaged("unreadable", f"it cannot be read: {error}") from error
    for name in names:
        if digests[name] != listed[name]["sha256"]:
            raise Damaged("changed", f"the content of {name} is not what was saved (SHA-256)")


def _read_lists(folder: Path) -> dict[str, dict]:
    """Size and digest of every file, from the lists of all processes."""
    paths = {path.name: path for path in folder.iterdir() if _LIST.fullmatch(path.name)}
    if not paths:
        raise Damaged(UNFINISHED, "it has no manifest: its save was not finished")
    count = _LIST.fullmatch(min(paths))[2]
    expected = {f"manifest-{process}-of-{count}.json" for process in range(int(count))}
    if missing := sorted(expected - paths.keys()):
        raise Damaged(UNFINISHED, f"{missing[0]} is missing: its save was not finished")
    if extra := sorted(paths.keys() - expected):
        raise Damaged("extra", f"{extra[0]} is not part of it")
    return {name: entry for path in paths.values() for name, entry in _read_list(path).items()}


def _read_list(path: Path) -> dict[str, dict]:
    try:
        content = json.loads(path.read_bytes())
        if content["sha256"] == _digest_of(content["files"]):
            return content["files"]
    except (ValueError, LookupError, TypeError):
        pass  # a flipped bit may leave anything
    raise Damaged("changed", f"the content of {path.name} is not what was saved (SHA-256)")


def _compare_names(listed: Collection[str], found: Collection[str]) -> None:
    if missing := sorted(set(listed) - set(found)):
        raise Damaged("missing", f"{missing[0]} is missing{_and_more(missing)}")
    if extra := sorted(set(found) - set(listed)):
        raise Damaged("extra", f"{extra[0]} is not part of it{_and_more(extra)}")


def _compare_sizes(listed: dict[str, dict], found: dict[str, int]) -> None:
    resized = [name for name in sorted(found) if found[name] != listed[name]["bytes"]]
    if resized:
        name = resized[0]
        sizes = f"{found[name]:,} bytes, {listed[name]['bytes']:,} were saved"
        raise Damaged("resized", f"{name} has {sizes}{_and_more(resized)}")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file by its name relative to the folder; lists are not part of them."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if not path.is_dir() and not (path.parent == folder and _is_list(path))
    }


def _is_list(path: Path) -> bool:
    return _LIST.fullmatch(path.name.removesuffix(".tmp")) is not None


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(files: dict[str, dict]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
