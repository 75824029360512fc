"""Weights in PyTorch's own files (.bin, .pt) as numpy arrays, without unpickling objects."""

import ctypes
import functools
import mmap
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from glm_jax.errors import UserError
from glm_jax.layouts.stored_tensors import FLOATING, StoredTensors, listed_files

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

_RANK = re.compile(r"mp_rank_(\d{2,})_model_states\.pt")
_TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
_ZIP = b"PK\x03\x04"
_DTYPES = (*FLOATING, "int64", "int32", "int16", "int8", "uint8", "bool")

# What the original training code stores beside the weights: its arguments, random states and loss
# scalers. None of it is wanted, so none of these names is looked up: each stands for `_Forgotten`.
# The real ones would not do. numpy's arrays trust the flags of a pickled dtype, so that a forged
# one makes pointers of bytes.
_FORGOTTEN = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "fp16.loss_scaler.LossScaler",
    "fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
)


class TorchFiles(StoredTensors):
    """The tensors of one or several PyTorch files; every `[]` is read-only.

    Arrays share the memory of their file's mapping, which lasts as long as this object: the pages
    that were read count as resident memory until `release`. Files written by PyTorch before 1.6
    cannot be mapped and are read whole.
    """

    def __init__(self, path: str | Path, verify: bool = False):
        """Opens a file, or a folder: pytorch_model.bin, or shards and their index.

        A state dict that lies under the key "module", as the original code writes it, is found
        there.

        Args:
          verify: read everything and compare it with the checksums in the files. Files written by
            PyTorch before 1.6 have none.

        Raises:
          UserError: PyTorch is not installed, no such checkpoint, a damaged file, Python objects
            in a file, or an index and files that disagree.
        """
        torch = _import_torch()
        listing = listed_files(Path(path), WEIGHTS, INDEX)
        if listing is None:
            raise UserError(f"{path} is neither a PyTorch file nor a folder with {WEIGHTS}")
        if verify:
            for file in listing.files:
                _verify(file)
        tensors = {file: _load(file, torch) for file in listing.files}
        super().__init__(listing, tensors)
        self._tensors = {name: tensor for of in tensors.values() for name, tensor in of.items()}
        self._mapped = {file for file in listing.files if _is_zip(file)}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name].detach().contiguous()
        if self.dtype(name) == ml_dtypes.bfloat16:
            torch = _import_torch()
            array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
        array.flags.writeable = False
        return array

    def release(self, name: str) -> None:
        """Gives back the resident memory of a tensor; reading it again reads the file again."""
        if self.file(name) in self._mapped:
            storage = self._tensors[name].untyped_storage()
            _drop_pages(storage.data_ptr(), storage.nbytes())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype:
        dtype = str(self._tensors[name].dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise self._unsupported(name, dtype)
        return np.dtype(dtype)


def mp_rank_files(folder: str | Path) -> list[Path]:
    """The files of an original checkpoint, one per model-parallel rank, in order of rank.

    Args:
      folder: holds mp_rank_00_model_states.pt and so on, or a tracker file that names the folder
        beside it that does.

    Raises:
      UserError: there are no such files, a rank is missing, or the tracker names no folder.
    """
    folder = Path(folder)
    if not (ranks := _ranks(folder)):
        folder = _tracked(folder)
        ranks = _ranks(folder)
    if not ranks:
        raise UserError(f"{folder} has no mp_rank_00_model_states.pt")
    for rank in range(max(ranks)):
        if rank not in ranks:
            missing = folder / f"mp_rank_{rank:02d}_model_states.pt"
            raise UserError(f"{missing} is missing: there is a rank {max(ranks)}")
    return [ranks[rank] for rank in sorted(ranks)]


class _Forgotten:
    """Takes whatever a pickle gives it and keeps nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch files need torch: pip install -e '.[torch]' in the clone"
        ) from error
    return torch


def _verify(file: Path) -> None:
    try:
        if not _is_zip(file):
            return
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if damaged:
        raise UserError(f"{file} is damaged: record {damaged} does not have its checksum (CRC-32)")


def _drop_pages(address: int, size: int) -> None:
    """Forgets the whole pages of a part of a private mapping that nobody has written to."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _load(file: Path, torch: ModuleType) -> Mapping[str, Any]:
    """Name -> torch tensor."""
    content = _unpickled(file, torch)
    if isinstance(content, Mapping) and isinstance(content.get("module"), Mapping):
        content = content["module"]
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_cpu
        if not dense or not isinstance(name, str):
            raise UserError(f"{file}: {name!r} is not a tensor with a name and with data")
    return content


def _unpickled(file: Path, torch: ModuleType) -> Any:
    forgotten = [(_Forgotten, name) for name in _FORGOTTEN]
    try:
        with torch.serialization.safe_globals(forgotten):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # a damaged or hostile file can fail anywhere
        raise UserError(f"{file} {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"holds Python objects that will not be unpickled: {found[1]}"
    # What follows the first sentence is PyTorch's advice to unpickle after all.
    first = re.split(r"\.\s|\n", str(error))[0]
    return f"is damaged, or not a file of PyTorch weights: {type(error).__name__} {first}".rstrip()


def _is_zip(file: Path) -> bool:
    """Whether the file is of PyTorch 1.6 or later, so that it can be mapped."""
    with file.open("rb") as opened:
        return opened.read(len(_ZIP)) == _ZIP


def _ranks(folder: Path) -> dict[int, Path]:
    found = {path: _RANK.fullmatch(path.name) for path in folder.glob("mp_rank_*")}
    return {int(match[1]): path for path, match in found.items() if match}


def _tracked(folder: Path) -> Path:
    """The folder that a tracker file names."""
    tracker = next((folder / name for name in _TRACKERS if (folder / name).is_file()), None)
    if tracker is None:
        raise UserError(f"{folder} has neither mp_rank_00_model_states.pt nor {_TRACKERS[0]}")
    name = tracker.read_text(errors="replace").strip()
    if name in ("", "..") or Path(name).name != name or not (folder / name).is_dir():
        raise UserError(f"{tracker} names {name[:80]!r}, which is not a folder beside it")
    return folder / name
