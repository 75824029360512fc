"""Output folders that are whole or not there."""

import contextlib
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
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
