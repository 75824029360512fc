"""Safetensors files as numpy arrays, one tensor in memory at a time; no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import safetensors
import safetensors.numpy

from glm_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files, read when they are asked for."""

    def __init__(self, path: str | Path):
        """Opens a .safetensors file or a folder of them (one file, or shards with an index).

        Raises:
          UserError: no such checkpoint, a damaged file, or an index that points elsewhere.
        """
        self._handles = [_open(file) for file in _files(Path(path))]
        self._by_name = {name: handle for handle in self._handles for name in handle.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> np.ndarray:
        return self._by_name[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


class _Size(NamedTuple):
    nbytes: int


def write_tensors(
    out: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: np.dtype,
    max_shard_size: str,
) -> list[str]:
    """Writes model.safetensors, or shards and their index, holding one shard in memory.

    Args:
      out: an existing folder.
      shapes: name -> shape of all tensors, in the order in which `tensors` yields them.
      tensors: the arrays, all of `dtype`.
      max_shard_size: such as "5GB".

    Returns:
      Names of the files written.

    Raises:
      UserError: `max_shard_size` is not a size.
    """
    sizes = {name: _Size(int(np.prod(shape)) * dtype.itemsize) for name, shape in shapes.items()}
    try:
        plan = huggingface_hub.split_state_dict_into_shards_factory(
            sizes,
            get_storage_size=lambda size: size.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise UserError(f"max_shard_size {max_shard_size!r} is not a size such as 5GB") from error
    pending = {file: {} for file in plan.filename_to_tensors}
    for name, array in tensors:
        file = plan.tensor_to_filename[name]
        pending[file][name] = array
        if len(pending[file]) == len(plan.filename_to_tensors[file]):
            # transformers 4.x refuses safetensors files without this entry.
            safetensors.numpy.save_file(pending.pop(file), out / file, metadata={"format": "pt"})
            (out / file).chmod(0o644)  # safetensors leaves it to its owner alone
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return sorted(plan.filename_to_tensors) + [INDEX] * plan.is_sharded


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        raise UserError(f"{path} is neither a .safetensors file nor a folder with {WEIGHTS}")
    try:
        names = set(json.loads((path / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path / INDEX} is not an index of safetensors files") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_file():
            raise UserError(f"{path / INDEX} names {name!r}, which is not a file beside it")
    return [path / name for name in sorted(names)]


def _open(file: Path):
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is not a readable safetensors file: {error}") from error
