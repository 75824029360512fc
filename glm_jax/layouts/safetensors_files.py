"""Safetensors files as numpy arrays that are mapped one by one; no torch.

The safetensors library says whether a file is sound. It also hands out tensors, but as copies, or
from one mapping that stays as long as the file is open. A mapping per tensor reads only the pages
that are touched and gives them back when its array dies.
"""

import json
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import safetensors

from glm_jax.errors import UserError
from glm_jax.layouts.stored_tensors import Listing, StoredTensors, listed_files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype("bfloat16"),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}


class _Place(NamedTuple):
    """Where in its file a tensor lies, and as what."""

    code: str  # the format's name of the dtype
    shape: tuple[int, ...]
    offset: int  # from the start of the file


class SafetensorsFiles(StoredTensors):
    """The tensors of one or several safetensors files; every `[]` is a new read-only memmap."""

    def __init__(self, path: str | Path):
        """Opens a .safetensors file, or a folder: model.safetensors, shards and their index, or
        one single .safetensors file of any name.

        Raises:
          UserError: no such checkpoint, a damaged file, or an index and files that disagree.
        """
        listing = _listing(Path(path))
        places = {file: _read_places(file) for file in listing.files}
        super().__init__(listing, places)
        self._places = {name: place for of in places.values() for name, place in of.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        place, dtype = self._places[name], self.dtype(name)
        if 0 in place.shape:  # nothing cannot be mapped
            empty = np.empty(place.shape, dtype)
            empty.flags.writeable = False
            return empty
        return np.memmap(self.file(name), dtype, "r", place.offset, place.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def dtype(self, name: str) -> np.dtype:
        code = self._places[name].code
        if code not in DTYPES:
            raise self._unsupported(name, code)
        return DTYPES[code]


def _listing(path: Path) -> Listing:
    if listing := listed_files(path, WEIGHTS, INDEX):
        return listing
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return Listing(found)
    if found:
        raise UserError(f"{path} has {len(found)} .safetensors files and no {INDEX}")
    raise UserError(f"{path} is neither a .safetensors file nor a folder with {WEIGHTS}")


def _read_places(file: Path) -> dict[str, _Place]:
    try:
        # The library compares the header with the length of the file before anything is mapped.
        with safetensors.safe_open(file, framework="numpy"), file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is not a readable safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: _Place(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
