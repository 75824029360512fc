"""Output folders that are whole or not there."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from glm_jax.errors import UserError

UNFINISHED = ".incomplete"
"""Ending of the hidden folder that is written until it is whole."""


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A new folder to write into; when the block ends it takes the place of `target`.

    Whoever calls has checked that an existing `target` may be replaced. A block that raises leaves
    `target` as it was; what a killed process left behind is removed by the next one.

    Raises:
      UserError: something cannot be written.
    """
    target = target.resolve()
    partial = target.with_name(f".{target.name}{UNFINISHED}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        take_place(partial, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def take_place(partial: Path, target: Path) -> None:
    """Renames a whole folder to `target`; what was there before goes when it has succeeded."""
    remove_replaced(target)
    if target.exists():
        target.rename(_replaced(target))
    partial.rename(target)
    sync(target.parent)
    remove_replaced(target)


def remove_replaced(target: Path) -> None:
    """Removes what `take_place` put out of the way, if it was killed before it could."""
    shutil.rmtree(_replaced(target), ignore_errors=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, would outlast a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Not every file system of a network knows it of folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """`sync` of a folder and of all that is in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
