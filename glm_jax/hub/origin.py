"""Where a model came from: the papers of the checkpoint that it started from or was converted of.

A run keeps them in `origin/`: the model card, licence and notice files, config and model code. An
export carries them on.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub

from glm_jax.errors import UserError
from glm_jax.layouts.folder import Checkpoint
from glm_jax.tokenizer import SpecialTokens

FOLDER = "origin"

EXPORTED_BY = "glm_jax_version"
"""The field of config.json that marks an export of this program."""

_NOTICES = ("LICENSE*", "LICENCE*", "MODEL_LICENSE*", "NOTICE*")
_DESCRIBED_BY = ("README.md", "config.json", "generation_config.json", "*.py")
_DESCRIBED_BY += ("chat_template.jinja",)
_ORIGIN_FILE = "origin.json"


class Origin(NamedTuple):
    """What an export owes to where the model came from.

    Attributes:
      folder: holds the papers.
      layout: of the checkpoint.
      base_model: its name on the hub; "" where its files do not say.
      license: identifier such as "apache-2.0" or "other"; "" where its card does not say.
      license_name, license_link: of a licence without an identifier.
      hub_config: its config.json; empty if it has none.
    """

    folder: Path
    layout: str
    base_model: str
    license: str
    license_name: str
    license_link: str
    hub_config: Mapping[str, Any]

    @property
    def notices(self) -> list[Path]:
        return _matching(self.folder, _NOTICES)

    @property
    def model_code(self) -> list[Path]:
        return _matching(self.folder, ("*.py",))


def save_origin(checkpoint: Checkpoint, workdir: Path) -> None:
    """Copies the papers of a checkpoint into the folder of the run that starts from it."""
    target = workdir / FOLDER
    target.mkdir(exist_ok=True)
    if checkpoint.path.is_dir():
        for path in _matching(checkpoint.path, _NOTICES + _DESCRIBED_BY):
            shutil.copyfile(path, target / path.name)
    about = {"path": str(checkpoint.path.resolve()), "layout": checkpoint.layout.name}
    (target / _ORIGIN_FILE).write_text(json.dumps(about, indent=2) + "\n")


def token_differences(checkpoint: Checkpoint, special: SpecialTokens) -> list[str]:
    """Special tokens that a checkpoint's config.json has otherwise than the tokenizer, in lines."""
    hub, lines = checkpoint.hub_config or {}, []
    for key, field in checkpoint.layout.token_ids.items():
        theirs, ours = hub.get(key), getattr(special, field)
        known = theirs if isinstance(theirs, list) else [theirs]
        if theirs is not None and ours not in known:
            lines.append(f"  config.json has {key} {theirs}, the tokenizer {ours}: is it the same?")
    return lines


def origin_of_run(workdir: Path) -> Origin | None:
    """The origin of a run; None if it began with fresh parameters."""
    folder = workdir / FOLDER
    if not (folder / _ORIGIN_FILE).exists():
        return None
    layout = json.loads((folder / _ORIGIN_FILE).read_text())["layout"]
    config = folder / "config.json"
    return _read(folder, layout, json.loads(config.read_text()) if config.exists() else None)


def origin_of_checkpoint(checkpoint: Checkpoint) -> Origin:
    """A checkpoint as the origin of what is made of it."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return _read(folder, checkpoint.layout.name, checkpoint.hub_config)


def _read(folder: Path, layout: str, hub_config: Mapping[str, Any] | None) -> Origin:
    card = _card_data(folder / "README.md")
    hub_config = hub_config or {}
    # The base model of a card is what that model was made of, not its own name. An export of ours
    # has no name yet: what it was made of is the nearest.
    named = hub_config.get("_name_or_path") or (
        card.get("base_model") if EXPORTED_BY in hub_config else None
    )
    return Origin(
        folder,
        layout,
        _text(named),
        _text(card.get("license")),
        _text(card.get("license_name")),
        _text(card.get("license_link")),
        hub_config,
    )


def _card_data(card: Path) -> dict:
    try:
        data = huggingface_hub.metadata_load(card) if card.exists() else None
    except Exception as error:  # YAML can fail in many ways
        reason = str(error).splitlines()[0]
        raise UserError(f"{card}: its metadata cannot be read: {reason}") from error
    return data if isinstance(data, dict) else {}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
