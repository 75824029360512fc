"""The files beside the weights: config, generation config and model code."""

import importlib.resources
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import glm_jax
from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.hub.origin import EXPORTED_BY, Origin
from glm_jax.layouts.table import Layout
from glm_jax.tokenizer import Tokenizer

MODEL_CODE = (
    "configuration_glm_jax.py",
    "blanks_glm_jax.py",
    "layers_glm_jax.py",
    "modeling_glm_jax.py",
)

# Of the same layout's origin: which code reads it, and what this program does not compute.
_KEPT_FIELDS = ("auto_map", "architectures", "attention_dropout_prob")
_GENERATION_CONFIG = "generation_config.json"


class Release(NamedTuple):
    """An export: which model, in which layout, with which tokens, from where.

    Attributes:
      tokenizer: None where the tokenizer files of the origin are carried on as they are.
      origin: None for a model trained from fresh parameters.
      dtype: of the weights.
    """

    layout: Layout
    config: ModelConfig
    tokenizer: Tokenizer | None
    origin: Origin | None
    dtype: str

    @property
    def same_layout(self) -> bool:
        return self.origin is not None and self.origin.layout == self.layout.name


def write_model_files(release: Release, out: Path) -> None:
    """Writes config.json, generation_config.json and the model code into `out`.

    Raises:
      UserError: the special tokens are not known, and the layout needs them.
    """
    _write_json(out / "config.json", hub_config(release))
    if release.tokenizer is not None:
        _write_json(out / _GENERATION_CONFIG, _generation_config(release))
    elif (release.origin.folder / _GENERATION_CONFIG).exists():
        shutil.copyfile(release.origin.folder / _GENERATION_CONFIG, out / _GENERATION_CONFIG)
    if release.layout.name == "glm_jax":
        for name in MODEL_CODE:
            (out / name).write_bytes(package_file(name))
    elif release.same_layout:
        for path in release.origin.model_code:
            shutil.copyfile(path, out / path.name)


def hub_config(release: Release) -> dict[str, Any]:
    """`config.json`: architecture, special tokens, dtype; what the origin had of its own stays."""
    written = release.layout.write_config(release.config)
    if release.same_layout:
        own = release.origin.hub_config
        written = {**own, **written, **{k: own[k] for k in _KEPT_FIELDS if k in own}}
    written |= token_ids(release)
    written.pop("dtype", None)
    # The name that transformers 4.x knows, too.
    return written | {"torch_dtype": release.dtype, EXPORTED_BY: glm_jax.__version__}


def token_ids(release: Release) -> dict[str, Any]:
    """The special tokens as the layout's config.json names them."""
    if release.tokenizer is None:
        return _token_ids_of_origin(release)
    special, ids = release.tokenizer.special, {}
    for key, field in release.layout.token_ids.items():
        ids[key] = getattr(special, field)
        theirs = release.origin.hub_config.get(key) if release.origin else None
        if isinstance(theirs, list) and ids[key] in theirs:
            ids[key] = theirs  # a chat model stops at the next speaker, too
    if release.layout.name == "glm_jax":
        ids["mask_token_ids"] = [special.mask, special.smask, special.gmask]
        ids["tokenizer_vocab_size"] = release.tokenizer.vocab_size
    return ids


def _token_ids_of_origin(release: Release) -> dict[str, Any]:
    theirs: Mapping[str, Any] = release.origin.hub_config
    keys = [*release.layout.token_ids]
    if release.layout.name == "glm_jax":
        keys += ["mask_token_ids", "tokenizer_vocab_size"]
        missing = [key for key in keys if key not in theirs]
        if missing:
            raise UserError(
                f"layout glm_jax needs the special tokens of {release.origin.folder}: make a "
                "tokenizer of its files with tokenizers/convert.py and name it with --tokenizer"
            )
    # Null where the origin says nothing: a class's own default may lie outside the vocabulary.
    return {key: theirs.get(key) for key in keys}


def _generation_config(release: Release) -> dict[str, Any]:
    special, size = release.tokenizer.special, release.tokenizer.vocab_size
    origin = _generation_config_of_origin(release.origin)
    theirs = origin.get("eos_token_id") or token_ids(release).get("eos_token_id")
    theirs = theirs if isinstance(theirs, list) else [theirs] * (theirs is not None)
    stops = list(dict.fromkeys((special.eop, special.eos, *theirs)))
    padding = range(size, release.config.vocab_size)
    never = sorted({*release.tokenizer.control_ids.tolist(), *padding} - set(stops))
    return origin | {
        "eos_token_id": stops,
        "pad_token_id": special.pad,
        "suppress_tokens": never,
        "max_new_tokens": min(64, release.config.max_positions),
    }


def _generation_config_of_origin(origin: Origin | None) -> dict[str, Any]:
    path = None if origin is None else origin.folder / _GENERATION_CONFIG
    if path is None or not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def package_file(name: str) -> bytes:
    """A file of this package."""
    return (importlib.resources.files("glm_jax.hub") / name).read_bytes()


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
