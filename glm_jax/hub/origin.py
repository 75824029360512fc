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

FOLDER = "origin"

_NOTICES = ("LICENSE*", "LICENCE*", "MODEL_LICENSE*", "NOTICE*")
_DESCRIBED_BY = ("README.md", "config.json", "generation_config.json", "*.py")
_ORIGIN_FILE = "origin.json"


class Origin(NamedTuple):
    """What an export owes to where the model came from.

    Attributes:
      folder: holds the papers.
      layout: of the checkpoint.
      base_model: its name on the hub; "" where its card does not say.
      license: identifier such as "apache-2.0" or "other"; "" where its card does not say.
      license_name, license_link: of a licence without an identifier.
      hub_config: its config.json; None if it has none.
    """

    folder: Path
    layout: str
    base_model: str
    license: str
    license_name: str = ""
    license_link: str = ""
    hub_config: Mapping[str, Any] | None = None

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
    card = folder / "README.md"
    try:
        data = huggingface_hub.metadata_load(card) if card.exists() else None
    except ValueError as error:
        raise UserError(f"{card}: its metadata cannot be read: {error}") from error
    data = data or {}
    base_model = data.get("base_model", "")
    return Origin(
        folder,
        layout,
        base_model if isinstance(base_model, str) else ", ".join(base_model),
        str(data.get("license", "")),
        str(data.get("license_name", "")),
        str(data.get("license_link", "")),
        hub_config,
    )


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
