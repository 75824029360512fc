"""Whether the shards of a dataset are those that its metadata describe."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from array_record.python import array_record_module
from etils import epath
from rich import console, progress

from glm_jax.data.shards import sha256
from glm_jax.errors import UserError

LEVELS = ("sha256", "size")

_ANNOUNCED_BYTES = 2 << 30  # to hash so many takes seconds
_THREADS = 16  # hashlib and the file system release the interpreter's lock


def check_shards(folder: epath.Path, shards: Sequence[dict], level: str) -> None:
    """Compares the size, number of records and, at the level sha256, content of every shard.

    Args:
      folder: that holds the shards.
      shards: their lines in the metadata; see `shards.write_shard`.
      level: one of LEVELS.

    Raises:
      UserError: naming the first shard that is missing, unreadable or another.
    """
    total = sum(shard["bytes"] for shard in shards)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        sizes = pool.map(lambda shard: _check_size(folder / shard["name"], shard["bytes"]), shards)
        for _ in sizes:  # all of them before anything is hashed, which takes long
            pass
        checks = pool.map(lambda shard: _check_content(folder, shard, level), shards)
        for _ in _announced(checks, f"checking {folder}", len(shards), level, total):
            pass


def _check_size(path: epath.Path, expected: int) -> None:
    if not path.exists():
        raise UserError(f"{path}: this shard of the dataset is missing")
    size = path.stat().length
    if size != expected:
        raise UserError(f"{path}: this shard has {size} bytes, metadata.json says {expected}")


def _check_content(folder: epath.Path, shard: dict, level: str) -> None:
    path = folder / shard["name"]
    if level == "sha256":
        found = sha256(path)
        if found != shard["sha256"]:
            raise UserError(
                f"{path}: this shard was changed or damaged: its sha256 is {found}, metadata.json "
                f"says {shard['sha256']}"
            )
    try:
        records = array_record_module.ArrayRecordReader(os.fspath(path)).num_records()
    except RuntimeError as error:
        raise UserError(f"{path}: this shard is damaged: {error}") from error
    if records != shard["records"]:
        raise UserError(f"{path}: holds {records} records, metadata.json says {shard['records']}")


def _announced(checks: Iterable, what: str, count: int, level: str, total_bytes: int) -> Iterable:
    if level != "sha256" or total_bytes < _ANNOUNCED_BYTES:
        return checks
    return progress.track(
        checks,
        f"{what}, sha256 of {total_bytes / 1e9:.0f} GB",
        count,
        console=console.Console(stderr=True),
    )
