"""Opening a released checkpoint: its layout, the model it holds, where its tensors are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.folders import UNFINISHED
from glm_jax.layouts import parameters, safetensors_files, torch_files
from glm_jax.layouts.checksums import verify_checksums
from glm_jax.layouts.families import LAYOUTS, find_layout
from glm_jax.layouts.glm_jax import MODEL_TYPE
from glm_jax.layouts.safetensors_files import SafetensorsFiles
from glm_jax.layouts.sources import LayoutSource
from glm_jax.layouts.stored_tensors import StoredTensors
from glm_jax.layouts.table import Layout
from glm_jax.layouts.torch_files import TorchFiles, mp_rank_files


class Checkpoint(NamedTuple):
    """A released checkpoint, opened."""

    path: Path
    layout: Layout
    hub_config: Mapping[str, Any] | None  # its config.json
    source: LayoutSource
    num_files: int
    has_checksums: bool  # that were compared

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    @property
    def dtypes(self) -> list[str]:
        """In what the parameters are kept, sorted."""
        return sorted({str(self.source.dtype(name)) for name in parameters.shapes(self.config)})

    def describe(self) -> list[str]:
        """What was found, for people."""
        model = self.config
        checksums = "checksums compared" if self.has_checksums else "no checksums to compare"
        lines = [
            f"{self.path}: layout {self.layout.name}, {' and '.join(self.dtypes)}, "
            f"{self.num_files} files, "
            f"{checksums}",
            f"  {model.num_layers} layers, width {model.hidden_dim}, {model.num_heads} heads "
            f"({model.kv_heads} of keys), mlp {model.mlp_dim} {model.activation}, {model.norm} "
            f"{model.norm_eps:g}, residual {model.residual}",
            f"  positions {model.position} (answers: {model.span_position}), context "
            f"{model.context}, vocabulary {model.vocab_size}, max_positions {model.max_positions}",
        ]
        served = self.layout.serves.get("activation")
        if served and served != model.activation:
            lines.append(
                f"  activation {model.activation}, as it was trained; the published class of this "
                f"layout computes {served}"
            )
        for name in self.source.disagreements():
            lines.append(f"  {name} differs between the ranks; that of rank 0 is used")
        return lines


def open_checkpoint(
    path: str | Path, layout: str = "auto", *, compare_checksums: bool = True
) -> Checkpoint:
    """Opens a folder (or file) of weights; tensors are read when they are asked for.

    Args:
      path: a hub folder, or the folder of original tensor-parallel files.
      layout: a name from LAYOUTS; "auto" finds it from config.json and the names of the tensors.
      compare_checksums: read everything once and compare it with the checksums beside it, if any.

    Raises:
      UserError: no checkpoint, an unknown layout, a quantised or damaged checkpoint, a config that
        contradicts the tensors.
    """
    path = Path(path)
    hub = _hub_config(path if path.is_dir() else path.parent)
    ranks = _open_tensors(path, verify=compare_checksums)
    has_checksums = compare_checksums and path.is_dir() and verify_checksums(path)
    shapes = {name: ranks[0].shape(name) for name in ranks[0]}
    found = LAYOUTS[layout] if layout in LAYOUTS else _detect(layout, path, hub, shapes)
    if hub is None and len(ranks) > 1:
        shapes = _whole_shapes(found, shapes, len(ranks))
    config = _read_config(found, hub, shapes, path)
    try:
        source = LayoutSource(found, config, ranks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    files = {rank.file(name) for rank in ranks for name in rank}
    return Checkpoint(path, found, hub, source, len(files), has_checksums)


_TELLING_TENSORS = {  # the first layout that fits
    "glm_2021": {"transformer.block_position_embeddings.weight"},
    "chatglm2": {"transformer.encoder.final_layernorm.weight"},
    "chatglm": {"transformer.final_layernorm.weight", "lm_head.weight"},
    "glm_130b": {"transformer.final_layernorm.weight", "transformer.word_embeddings.weight"},
}


def is_checkpoint(path: Path) -> bool:
    """Whether a folder looks like released weights.

    Raises:
      UserError: it is what a killed export left.
    """
    if path.name.endswith(UNFINISHED):
        raise UserError(f"{path} is what a killed export left")
    names = ("config.json", "latest", "latest_checkpointed_iteration.txt")
    return (
        path.is_file()
        or any((path / name).exists() for name in names)
        or any(path.glob("mp_rank_*_model_states.pt"))
    )


def _hub_config(path: Path) -> dict | None:
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        hub = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(hub, dict):
        raise UserError(f"{file} is no JSON object")
    for field in ("quantization_bit", "quantization_config", "quantization"):
        if hub.get(field):
            raise UserError(
                f"{file}: {field} is {hub[field]!r}: quantised checkpoints are not supported"
            )
    return hub


def _open_tensors(path: Path, *, verify: bool) -> list[StoredTensors]:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return [
            SafetensorsFiles(path) if path.suffix == ".safetensors" else TorchFiles(path, verify)
        ]
    if any(path.glob("*.safetensors")) or (path / safetensors_files.INDEX).is_file():
        return [SafetensorsFiles(path)]
    if (path / torch_files.WEIGHTS).is_file() or (path / torch_files.INDEX).is_file():
        return [TorchFiles(path, verify)]
    return [TorchFiles(file, verify) for file in mp_rank_files(path)]


def _detect(layout: str, path: Path, hub: dict | None, shapes: Mapping) -> Layout:
    if layout != "auto":
        find_layout(layout)
    names = {name.removeprefix("glm.") for name in shapes}
    kind = (hub or {}).get("model_type")
    if kind == MODEL_TYPE:
        return LAYOUTS["glm_jax"]
    if kind in ("glm", "glm4") and "model.embed_tokens.weight" in names:
        return LAYOUTS[kind]
    for name, tensors in _TELLING_TENSORS.items():
        if tensors <= names:
            return LAYOUTS[name]
    raise UserError(
        f"{path}: no known layout has these tensors (such as {min(names, default='none')}); "
        f"known: {', '.join(LAYOUTS)}"
    )


def _whole_shapes(layout: Layout, shapes: Mapping, num_ranks: int) -> dict:
    """Shapes of the merged tensors that a config is read from: rows of words and of mlp inputs."""
    whole = {}
    for name, shape in shapes.items():
        if name.endswith("word_embeddings.weight"):
            shape = (shape[0] * num_ranks, *shape[1:])
        elif name.endswith("mlp.dense_4h_to_h.weight"):
            shape = (shape[0], shape[1] * num_ranks)
        whole[name] = shape
    return whole


def _read_config(layout: Layout, hub: dict | None, shapes: Mapping, path: Path) -> ModelConfig:
    try:
        return layout.read_config(hub, shapes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: the tensors are not those of layout {layout.name} ({error})"
        ) from error
