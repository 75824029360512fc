"""Exports to PyTorch: `python -m glm_jax.export --from=RUN_OR_FOLDER --out=FOLDER [--layout=L]`.

From a run, or from the folder of a released checkpoint of any layout, which is converted file to
file without building the model. The layout `glm_jax` holds every model and loads in transformers
with `AutoModelForSeq2SeqLM.from_pretrained(FOLDER, trust_remote_code=True)`; `glm` and `glm4` are
classes of transformers itself; the others have the names of the published checkpoints.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from glm_jax import cli
from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.hub.model_card import check_licence, faithfulness, write_model_card
from glm_jax.hub.model_files import Release, token_ids, write_model_files
from glm_jax.hub.origin import EXPORTED_BY, Origin, origin_of_checkpoint, origin_of_run
from glm_jax.hub.tokenizer_files import write_tokenizer
from glm_jax.hub.verification import Check, check_torch, verify
from glm_jax.layouts import LAYOUTS, find_layout, write_weights
from glm_jax.layouts.folder import is_checkpoint, open_checkpoint
from glm_jax.layouts.resize import Resized
from glm_jax.layouts.sources import ArraySource, ParamSource
from glm_jax.stages import longest_row
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.run_folder import CONFIG_FILE
from glm_jax.training.trained_params import open_params

FLAGS = flags.FLAGS

DTYPES = ("float32", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*")
_TOKENIZER_FILES += ("merges.txt", "*.model")
_CHAT_TEMPLATE = "chat_template.jinja"


def define_flags() -> None:
    flags.DEFINE_string("from", None, "Folder of a run, or of a released checkpoint.")
    flags.DEFINE_integer(
        "step", None, "Run: step of the checkpoint; by default the newest good one."
    )
    flags.DEFINE_bool("ema", False, "Run: the moving average of the parameters.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_enum("layout", "glm_jax", list(LAYOUTS), "Names and shapes of the tensors.")
    flags.DEFINE_enum("dtype", None, DTYPES, "Of the weights; by default float32, or the folder's.")
    flags.DEFINE_integer("vocab_size", 0, "Embedding rows to write; 0: as many as there are.", 0)
    flags.DEFINE_integer("max_positions", 0, "Longer learned position tables; 0: as they are.", 0)
    flags.DEFINE_multi_string("copy_rows", [], "FROM:TO, a vocabulary row and its copy.")
    flags.DEFINE_string("tokenizer", None, "Folder: a tokenizer made by tokenizers/convert.py.")
    flags.DEFINE_string("license", "", "Licence for the card; by default that of the origin.")
    flags.DEFINE_string("base_model", "", "Name of the origin; by default as its card has it.")
    flags.DEFINE_string("max_shard_size", "5GB", "Larger weights are split.")
    flags.DEFINE_bool("verify", False, "Compare PyTorch with JAX; exit 1 where they differ.")
    flags.DEFINE_bool("overwrite", False, "Replace an earlier export.")


class Model(NamedTuple):
    """What is to be exported."""

    source: ParamSource
    tokenizer: Tokenizer | None  # None: the origin's files are carried on
    origin: Origin | None
    dtype: str
    lengths: tuple[int, ...]  # of the rows that verification compares
    said: list[str]


def main() -> None:
    path, out = Path(cli.required("from")), Path(cli.required("out"))
    check_target(out, FLAGS.overwrite)
    if FLAGS.verify:
        check_torch()
    model = _open(path)
    release = Release(
        find_layout(FLAGS.layout), model.source.config, model.tokenizer, model.origin, model.dtype
    )
    print("\n".join(model.said))
    checks = export_model(
        release,
        model.source,
        out,
        max_shard_size=FLAGS.max_shard_size,
        overwrite=FLAGS.overwrite,
        license_=FLAGS.license,
        base_model=FLAGS.base_model,
        verified_lengths=model.lengths if FLAGS.verify else (),
    )
    print(faithfulness(release).replace("**", ""))
    print(f"{path} is in {out} as layout {FLAGS.layout}, {model.dtype}")
    if checks:
        Console().print(_table(checks))
        if not all(check.passed for check in checks):
            sys.exit(1)


def export_model(
    release: Release,
    source: ParamSource,
    out: Path,
    *,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    license_: str = "",
    base_model: str = "",
    verified_lengths: tuple[int, ...] = (),
) -> list[Check]:
    """Writes weights, config, model code, tokenizer and card into the folder `out`, all or nothing.

    Args:
      source: the parameters of `release.config`.
      max_shard_size: larger weights are split into files of at most this size.
      overwrite: replace `out` if it is an earlier export.
      license_, base_model: for the card; "" takes the origin's.
      verified_lengths: rows of so many slots are compared with JAX; none: nothing is.

    Returns:
      The comparisons, which are in the card as well.

    Raises:
      UserError: `out` exists or cannot be written; the layout cannot hold the model; a value is
        not finite; the licence of the origin is not known.
    """
    check_target(out, overwrite)
    release.layout.check_fits(release.config)
    release.layout.check_code(release.config)
    check_licence(release, license_, base_model)
    _check_tokens(release)
    with written_whole(out) as partial:
        dtype = np.dtype(release.dtype)
        write_weights(release.layout, source, partial, dtype, max_shard_size)
        _write_tokenizer(release, partial)
        write_model_files(release, partial)  # last: weights without a config load nowhere
        checks = verify(release, source, partial, verified_lengths) if verified_lengths else []
        parity = [check.cells for check in checks]
        write_model_card(release, partial, license_=license_, base_model=base_model, parity=parity)
    return checks


def check_target(out: Path, overwrite: bool) -> None:
    """Refuses to write over anything but an earlier export that may be replaced.

    Raises:
      UserError: `out` is in the way.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_export(out):
        raise UserError(f"--out {out} exists and is not an export of this program")
    if not overwrite:
        raise UserError(f"--out {out} is an earlier export; --overwrite replaces it")


def _open(path: Path) -> Model:
    if (path / "checkpoints").is_dir() and (path / CONFIG_FILE).exists():
        model = _open_run(path)
    elif is_checkpoint(path):
        model = _open_folder(path)
    else:
        raise UserError(f"--from {path} is neither a run nor a released checkpoint")
    changes = {name: FLAGS[name].value for name in ("vocab_size", "max_positions", "copy_rows")}
    if not any(changes.values()):
        return model
    if model.tokenizer is not None and 0 < FLAGS.vocab_size < model.tokenizer.vocab_size:
        raise UserError(
            f"--vocab_size {FLAGS.vocab_size} is smaller than the tokenizer "
            f"({model.tokenizer.vocab_size})"
        )
    resized = Resized(model.source, **changes)
    return model._replace(source=resized, said=[*model.said, *resized.describe()])


def _open_run(workdir: Path) -> Model:
    config, params, step = open_params(workdir, FLAGS.step, ema=FLAGS.ema)
    return Model(
        source=ArraySource(config.model, params),
        tokenizer=Tokenizer.load(FLAGS.tokenizer or workdir / "tokenizer"),
        origin=origin_of_run(workdir),
        dtype=FLAGS.dtype or "float32",
        lengths=tuple(sorted({8, 33, longest_row(config)})),
        said=[f"step {step} of {workdir}"],
    )


def _open_folder(path: Path) -> Model:
    for flag in ("step", "ema"):
        if FLAGS[flag].value:
            raise UserError(f"--{flag} is for a run, --from {path} is a released checkpoint")
    checkpoint = open_checkpoint(path)
    kept = checkpoint.dtypes
    if FLAGS.dtype is None and (len(kept) > 1 or kept[0] not in DTYPES):
        raise UserError(
            f"--from {path} holds {' and '.join(kept)}: say with --dtype which of "
            f"{', '.join(DTYPES)} to write"
        )
    return Model(
        source=checkpoint.source,
        tokenizer=Tokenizer.load(FLAGS.tokenizer) if FLAGS.tokenizer else None,
        origin=origin_of_checkpoint(checkpoint),
        dtype=FLAGS.dtype or kept[0],
        lengths=tuple(sorted({8, 33, min(128, checkpoint.config.max_positions)})),
        said=checkpoint.describe(),
    )


def _check_tokens(release: Release) -> None:
    """Refuses tokens that the embedding has no row for, and a tokenizer that would not load."""
    rows, tokenizer = release.config.vocab_size, release.tokenizer
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {rows} rows")
    for key, ids in token_ids(release).items():
        ids = ids if isinstance(ids, list) else [ids]
        beyond = [i for i in ids if i is not None and i >= rows]
        if beyond and key != "tokenizer_vocab_size":
            raise UserError(f"{key} {beyond[0]} is beyond the {rows} embedding rows")
    if tokenizer is None and not release.same_layout and _needs_code(release.origin.folder):
        raise UserError(
            f"the tokenizer of {release.origin.folder} needs code of its own: make one without "
            "with tokenizers/convert.py and name it with --tokenizer"
        )


def _needs_code(folder: Path) -> bool:
    """Whether a folder has a tokenizer that plain AutoTokenizer does not load."""
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        return False
    about = folder / "tokenizer_config.json"
    return not (folder / "tokenizer.json").exists() or (
        about.exists() and "auto_map" in about.read_text(encoding="utf-8")
    )


def _write_tokenizer(release: Release, out: Path) -> None:
    """Our own description of the tokenizer, or the origin's files as they are."""
    if release.tokenizer is not None:
        write_tokenizer(release.tokenizer, out, release.config.max_positions)
        template = release.origin and release.origin.folder / _CHAT_TEMPLATE
        if template and template.exists():
            shutil.copyfile(template, out / _CHAT_TEMPLATE)
        return
    for pattern in (*_TOKENIZER_FILES, _CHAT_TEMPLATE):
        for path in release.origin.folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, out / path.name)


def _table(checks: list[Check]) -> Table:
    table = Table("PyTorch and JAX", "largest difference", "same choice", "")
    for check in checks:
        *cells, verdict = check.cells
        table.add_row(*cells, verdict if check.passed else f"[red]{verdict}[/]")
    return table


def _is_export(folder: Path) -> bool:
    try:
        return EXPORTED_BY in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


if __name__ == "__main__":
    cli.run(main, define_flags)
