"""Tensors that lie in files: which files a folder means, and which of them holds what."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glm_jax.errors import UserError

FLOATING = ("float16", "bfloat16", "float32", "float64")


class Listing(NamedTuple):
    """The files that hold one checkpoint.

    Attributes:
      files: all of them.
      index: the file that says which tensor is where; None for a single file.
      weight_map: tensor -> name of its file, as the index says.
    """

    files: list[Path]
    index: Path | None = None
    weight_map: Mapping[str, str] = {}


def listed_files(path: Path, single: str, index: str) -> Listing | None:
    """What `path` means: itself if it is a file, else `single` or the files of `index` in it.

    Returns:
      None when the folder has neither.

    Raises:
      UserError: the index is damaged, or names a file that is not beside it.
    """
    if path.is_file():
        return Listing([path])
    if (path / single).is_file():
        return Listing([path / single])
    if not (path / index).is_file():
        return None
    weight_map = _read_index(path / index)
    names = sorted(set(weight_map.values()))
    return Listing([path / name for name in names], path / index, weight_map)


class StoredTensors(Mapping[str, np.ndarray]):
    """Read-only arrays by name, read from their files when they are asked for."""

    def __init__(self, listing: Listing, contents: Mapping[Path, Iterable[str]]):
        """Checks that files and index agree.

        Args:
          contents: file -> names of the tensors in it.

        Raises:
          UserError: a tensor is in two files, or not where the index says.
        """
        self._files = _owners(contents)
        if listing.index is not None:
            _check_index(listing, self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; its data are not read."""

    @abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor; its data are not read.

        Raises:
          UserError: the tensor has a dtype that numpy has not.
        """

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name]

    def release(self, name: str) -> None:
        """Gives back what memory a tensor that was read still holds."""

    def floating(self, name: str) -> np.ndarray:
        """A tensor that must be a weight; `[]` also returns integers and booleans.

        Raises:
          UserError: its dtype is not a floating-point one of two bytes or more.
        """
        self.check_floating(name)
        return self[name]

    def check_floating(self, name: str) -> None:
        """As `floating`, without reading the tensor."""
        if self.dtype(name).name not in FLOATING:
            raise self._unsupported(name, self.dtype(name).name)

    def _unsupported(self, name: str, dtype: str) -> UserError:
        return UserError(
            f"{self.file(name)}: tensor {name!r} is stored as {dtype}, not as one of "
            f"{', '.join(FLOATING)}: quantised checkpoints are not supported"
        )


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight files") from error
    for tensor, name in weight_map.items():
        beside = isinstance(name, str) and Path(name).name == name
        if not beside or not (index.parent / name).is_file():
            raise UserError(
                f"{index} names {name!r} for tensor {tensor!r}, which is not a file beside it"
            )
    return weight_map


def _owners(contents: Mapping[Path, Iterable[str]]) -> dict[str, Path]:
    """Tensor -> the one file that holds it."""
    owners: dict[str, Path] = {}
    for file, names in contents.items():
        for name in names:
            if name in owners:
                raise UserError(f"tensor {name!r} is in {owners[name]} and in {file}")
            owners[name] = file
    return owners


def _check_index(listing: Listing, owners: Mapping[str, Path]) -> None:
    for name, file in listing.weight_map.items():
        if name not in owners or owners[name].name != file:
            raise UserError(
                f"{listing.index} says that {file} holds tensor {name!r}, which it does not"
            )
    for name, file in owners.items():
        if name not in listing.weight_map:
            raise UserError(f"{file} holds tensor {name!r}, which {listing.index} does not name")
