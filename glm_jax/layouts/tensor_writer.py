"""Safetensors files that are filled in any order and in parts, with little memory."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import numpy as np

from glm_jax.errors import UserError
from glm_jax.layouts.checksums import CHECKSUMS, write_checksums
from glm_jax.layouts.safetensors_files import DTYPES, INDEX, SafetensorsFiles

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MARGIN = 64 << 20  # for the config, the tokenizer and the file system's own needs


class _Layout(NamedTuple):
    """Where everything lies in one file."""

    header: bytes
    offsets: dict[str, int]  # from the start of the file
    length: int


class TensorWriter:
    """Writes model.safetensors, or shards and their index.

    The files have their full length from the start and are filled through memory maps. What is not
    filled is zero. They are byte for byte what safetensors would write.
    """

    def __init__(
        self,
        out: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
        max_shard_size: str = "5GB",
    ):
        """Reserves the files.

        Args:
          out: an existing folder.
          shapes: name -> shape of all tensors; shards are filled in this order.
          dtype: of all tensors: a numpy dtype that safetensors has.
          max_shard_size: such as "5GB".

        Raises:
          UserError: `max_shard_size` is not a size, or the files do not fit on the disk.
        """
        self._out, self._shapes, self._dtype = Path(out), dict(shapes), np.dtype(dtype)
        self._plan = _plan(self._shapes, self._dtype, max_shard_size)
        layouts = {
            file: _layout({name: self._shapes[name] for name in names}, self._dtype)
            for file, names in self._plan.filename_to_tensors.items()
        }
        self._offsets = {k: v for layout in layouts.values() for k, v in layout.offsets.items()}
        self._never_asked_for = set(self._shapes)
        _check_space(self._out, sum(layout.length for layout in layouts.values()))
        for file, layout in layouts.items():
            _reserve(self._out / file, layout)

    def tensor(self, name: str) -> np.ndarray:
        """A writable array of a tensor, newly mapped: its memory is given back when it dies."""
        self._never_asked_for.discard(name)
        shape = self._shapes[name]
        if 0 in shape:  # nothing cannot be mapped
            return np.empty(shape, self._dtype)
        file = self._out / self._plan.tensor_to_filename[name]
        return np.memmap(file, self._dtype, "r+", self._offsets[name], shape)

    def finish(self) -> list[str]:
        """Writes the index and the checksums, and checks that the files can be read.

        Returns:
          Names of all files written.

        Raises:
          ValueError: a tensor was never asked for.
          OSError: the disk failed.
        """
        if self._never_asked_for:
            raise ValueError(f"tensors never written: {sorted(self._never_asked_for)}")
        names = sorted(self._plan.filename_to_tensors)
        if self._plan.is_sharded:
            _write_index(self._out / INDEX, self._plan)
            names.append(INDEX)
        # An error of the disk shows when the pages are written, not before.
        _sync(self._out / name for name in names)
        SafetensorsFiles(self._out)
        write_checksums(self._out, names)
        names.append(CHECKSUMS)
        _sync([self._out / CHECKSUMS])
        for name in names:
            (self._out / name).chmod(0o644)
        return names


class _Size(NamedTuple):
    nbytes: int


def _plan(
    shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_shard_size: str
) -> huggingface_hub.StateDictSplit:
    sizes = {name: _Size(_nbytes(shape, dtype)) for name, shape in shapes.items()}
    try:
        return huggingface_hub.split_state_dict_into_shards_factory(
            sizes,
            get_storage_size=lambda size: size.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise UserError(f"max_shard_size {max_shard_size!r} is not a size such as 5GB") from error


def _layout(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> _Layout:
    # transformers 4.x refuses safetensors files without this entry.
    entries, starts, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for name in sorted(shapes):
        starts[name], end = end, end + _nbytes(shapes[name], dtype)
        entries[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shapes[name]),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data are aligned to eight bytes
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in starts.items()}
    return _Layout(header, offsets, len(header) + end)


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _check_space(out: Path, needed: int) -> None:
    needed, free = needed + _MARGIN, shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out}: writing needs {needed:,} bytes, the disk has {free:,} free")


def _reserve(file: Path, layout: _Layout) -> None:
    """Creates a file of full length.

    Its space is taken now: where a sparse file is written through a memory map, a full disk kills
    the process with SIGBUS.
    """
    try:
        with file.open("wb") as opened:
            if hasattr(os, "posix_fallocate"):  # not on every system
                os.posix_fallocate(opened.fileno(), 0, layout.length)
            opened.truncate(layout.length)
            opened.write(layout.header)
    except OSError as error:
        reason = f"{layout.length:,} bytes cannot be reserved: {error.strerror}"
        raise UserError(f"{file}: {reason}") from error


def _write_index(index: Path, plan: huggingface_hub.StateDictSplit) -> None:
    content = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    index.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
