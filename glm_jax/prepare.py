r"""Turns text into token datasets, one per language or --source.

  python -m glm_jax.prepare --input=corpus.jsonl.gz --tokenizer=TOKENIZER --out=DATA

Inputs are text files, parquet files and TFDS datasets (docs/data.md). DATA gets a TFDS array_record
dataset `<source>/<version>` per source with the splits train and validation, a copy of the
tokenizer, and manifest.json. The order of the documents is a hash of their content. DATA appears
only when it is complete; a killed program goes on where it stopped when it is called again. With
--beam_pipeline_options a cluster does the work.

  python -m glm_jax.prepare --verify=DATA

hashes every file again.

  python -m glm_jax.prepare --show=3 --config=configs/X.py --config.data.dir=DATA
  python -m glm_jax.prepare --show=400:408 --workdir=RUN

print training rows that a config makes of data, or that a run was trained on, such as those of a
step that metrics.jsonl calls bad.

  python -m glm_jax.prepare --check_rows=1000 --workdir=RUN

proves of training rows, of a run or of a config, that they hold their text whole and that no slot
sees what it must not.
"""

import itertools
import os
import pathlib
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

from absl import flags
from rich import console

from glm_jax import cli
from glm_jax.data.shards import SPLITS
from glm_jax.decontamination import Decontaminator
from glm_jax.documents import check_readable, expand_inputs, input_bytes
from glm_jax.errors import UserError
from glm_jax.language import LANGUAGES
from glm_jax.preparation import beam, local
from glm_jax.preparation.census import Grid
from glm_jax.preparation.encoding import Encoder
from glm_jax.preparation.manifest import complete_dataset, make_plan
from glm_jax.preparation.options import Options
from glm_jax.preparation.planning import check_source_name
from glm_jax.preparation.verification import verify_dataset
from glm_jax.preparation.work import MANIFEST_FILE, Work, is_in_place
from glm_jax.tokenizer import Tokenizer

if typing.TYPE_CHECKING:
    from glm_jax.config import Config
    from glm_jax.data.rows import Rows

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_multi_string("input", None, "File, pattern or TFDS folder; repeat it for more.")
    flags.DEFINE_string("tokenizer", None, "Folder that tokenizers/train.py or convert.py wrote.")
    flags.DEFINE_string("out", None, "Folder to write; must not exist or be empty.")
    flags.DEFINE_enum(
        "language",
        Options.language,
        ["auto", *LANGUAGES],
        "auto: the document's own field, else detected.",
    )
    flags.DEFINE_string(
        "source",
        Options.source,
        "Name of the source, followed by _LANGUAGE where there are two; empty: the language.",
    )
    flags.DEFINE_float(
        "validation_share",
        Options.validation_share,
        "Share of documents for validation; at least one per source.",
        0,
        1,
    )
    flags.DEFINE_integer(
        "seed", Options.seed, "Order of the documents and choice of validation.", 0
    )
    flags.DEFINE_enum(
        "on_error",
        Options.on_error,
        ["fail", "skip"],
        "At a faulty line: stop, or leave it out and count it.",
    )
    flags.DEFINE_bool("dedup", Options.dedup, "Keep one of documents with the same text.")
    flags.DEFINE_multi_string(
        "decontaminate", [], "Evaluation file; documents that share text with it are left out."
    )
    flags.DEFINE_integer(
        "decontaminate_ngram",
        Options.decontaminate_ngram,
        "Consecutive words, or Chinese characters, that are too many to share.",
        1,
    )
    flags.DEFINE_integer(
        "num_shards", Options.num_shards, "Files of a source; 0: by the size of the inputs.", 0
    )
    flags.DEFINE_integer(
        "num_processes", None, "Processes on this machine; default: one per core.", 1
    )
    flags.DEFINE_string(
        "beam_pipeline_options",
        None,
        "Run on Apache Beam: NAME=VALUE,.. such as runner=DirectRunner (extra 'beam').",
    )
    flags.DEFINE_bool("overwrite", False, "Replace an earlier dataset, or a part of one, at --out.")
    flags.DEFINE_string("verify", None, "A dataset of which to check every file.")
    flags.DEFINE_string("show", None, "Training rows to print: so many, or FIRST:END.")
    flags.DEFINE_integer("check_rows", None, "Number of training rows of every stage to check.", 1)
    flags.DEFINE_string("workdir", None, "The run of --show and --check_rows, or --config.")
    cli.define_config_flag()


def main() -> None:
    if FLAGS.show:
        show_rows(FLAGS.show, _training_rows())
        return
    if FLAGS.check_rows:
        check_run(FLAGS.check_rows, _training_rows())
        return
    if FLAGS.verify:
        print(verify_dataset(FLAGS.verify))
        return
    for name in ("input", "tokenizer", "out"):
        cli.required(name)
    _check_flags_have_a_use()
    values = {field.name: FLAGS[field.name].value for field in fields(Options)}
    options = Options(**values | {"decontaminate": tuple(FLAGS.decontaminate)})
    manifest = prepare(
        FLAGS.input,
        FLAGS.tokenizer,
        FLAGS.out,
        options,
        overwrite=FLAGS.overwrite,
        num_processes=FLAGS.num_processes,
        beam_options=FLAGS.beam_pipeline_options,
    )
    print(_summary(manifest))


def prepare(
    inputs: Sequence[str],
    tokenizer_dir: str,
    out: str,
    options: Options,
    *,
    overwrite: bool,
    num_processes: int | None = None,
    beam_options: str | None = None,
) -> dict:
    """Writes the dataset folder `out` and returns its manifest.

    Killed, it goes on where it stopped when it is called again with the same arguments; the number
    of processes may be another.

    Args:
      num_processes: on this machine; None: one for each core if there is much to do.
      beam_options: "NAME=VALUE,.." of the Apache Beam pipeline to run instead.

    Raises:
      UserError: a missing or faulty input, a source with fewer than two documents, `out` holds
        something and may not be replaced, or its beginnings are of another command.
    """
    if "://" in out:
        raise UserError(f"--out={out} must be a folder of this machine; copy it when it is whole")
    target = pathlib.Path(out)
    if not is_in_place(target):
        _check_target(target, overwrite)
    check_source_name(options.source)
    tokenizer = Tokenizer.load(tokenizer_dir)
    paths = _checked(expand_inputs(inputs))
    sizes = {path: input_bytes(path) for path in paths}
    encoder = Encoder(tokenizer, options, _decontaminator(options))
    plan = make_plan(sizes, encoder)
    grid = Grid(options.validation_share, plan["num_shards"])
    try:
        with Work(target, plan, overwrite) as work:
            manifest = work.finished_manifest()
            if manifest is None:
                if beam_options is None:
                    made = local.make_shards(
                        list(sizes),
                        *local.with_threads_or_processes(encoder, sizes, num_processes),
                        grid,
                        work,
                    )
                else:
                    made = beam.make_shards(list(sizes), encoder, grid, work, beam_options)
                manifest = complete_dataset(work.dataset, *made, plan, encoder)
            work.finish()
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error
    return manifest


def show_rows(which: str, training: "TrainingRows") -> None:
    """Prints training rows: the first `which`, or those of `FIRST:END`.

    Raises:
      UserError: no such range, or a source cannot be read.
    """
    first, _, end = which.rpartition(":")
    first = first or "0"
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise UserError(f"--show must be a number or FIRST:END with FIRST < END, got {which!r}")
    from glm_jax.data.show import show_row

    terminal = console.Console(soft_wrap=True, highlight=False)
    for index in range(int(first), int(end)):
        row = training.rows[index]
        terminal.print(show_row(index, row, list(training.rows.streams), training.tokenizer))


def check_run(count: int, training: "TrainingRows") -> None:
    """Checks the first `count` training rows of every stage and says so.

    Raises:
      UserError: the first fault (see `check_rows`).
    """
    from glm_jax.data.check_rows import check_rows

    check_rows(training.rows, count, training.tokenizer.special)
    stages = f" of each of {len(training.rows.stages)} stages"
    where = stages if len(training.rows.stages) > 1 else ""
    print(f"{count} rows{where} hold their text whole, and no slot sees what it must not")


class TrainingRows(NamedTuple):
    """Rows that can be shown."""

    rows: "Rows"
    tokenizer: Tokenizer


def _training_rows() -> TrainingRows:
    if FLAGS.workdir:
        return rows_of_run(pathlib.Path(FLAGS.workdir))
    return rows_of_config(cli.load_config())


def rows_of_config(config: "Config") -> TrainingRows:
    """The training rows that a config describes.

    Raises:
      UserError: its data cannot be opened.
    """
    # Every worker process imports this module; JAX and Orbax would take it seconds.
    from glm_jax.data.dataset import load_tokenizer, open_dataset, with_sources

    tokenizer = load_tokenizer(config)
    return TrainingRows(open_dataset(with_sources(config), tokenizer).train, tokenizer)


def rows_of_run(workdir: pathlib.Path) -> TrainingRows:
    """The rows that a run was trained on.

    Raises:
      UserError: no such run, or its data cannot be opened or is not what it was.
    """
    from glm_jax.data.dataset import open_dataset
    from glm_jax.training.run_folder import load_config
    from glm_jax.training.trained_params import trained_data

    config = load_config(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer")
    dataset = open_dataset(config, tokenizer)
    if trained_data(workdir) not in (None, dataset.fingerprint):
        raise UserError(f"{workdir} was trained on other data than {config.data.dir} holds now")
    return TrainingRows(dataset.train, tokenizer)


def _checked(inputs: Sequence[str]) -> list[str]:
    """The inputs, after a look at each, in an order that says nothing; none is there twice."""
    given: dict[str, str] = {}
    for path in sorted(inputs):
        check_readable(path)
        if (first := given.get(_resolved(path))) is not None:
            spelled = "" if first == path else f", also as {first}"
            raise UserError(f"--input={path} is given twice{spelled}")
        given[_resolved(path)] = path
    return list(given.values())


def _resolved(path: str) -> str:
    """The same for all spellings of a path, and links to it; a split stays at its end."""
    if "://" in path:
        return path
    folder, mark, split = path.rpartition("#")
    if mark and os.path.isdir(folder):
        return f"{os.path.realpath(folder)}#{split}"
    return os.path.realpath(path)


def _check_flags_have_a_use() -> None:
    if FLAGS["decontaminate_ngram"].present and not FLAGS.decontaminate:
        raise UserError("--decontaminate_ngram has no use without --decontaminate")
    if FLAGS.num_processes is not None and FLAGS.beam_pipeline_options is not None:
        raise UserError(
            "--num_processes is of this machine; with --beam_pipeline_options the runner has an "
            "option for it, such as direct_num_workers"
        )


def _decontaminator(options: Options) -> Decontaminator | None:
    if not options.decontaminate:
        return None
    return Decontaminator.from_files(options.decontaminate, options.decontaminate_ngram)


def _check_target(target: pathlib.Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--out={target} is a file")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out={target} is not empty; --overwrite replaces an earlier dataset")
    if not (target / MANIFEST_FILE).is_file():
        raise UserError(f"--out={target} is no earlier dataset ({MANIFEST_FILE} is missing)")


def _summary(manifest: dict) -> str:
    read = manifest["read"]
    lines = [f"{'source':8} {'split':12} {'documents':>10} {'tokens':>12} {'characters':>12}"]
    copies = 0
    for name, split in itertools.product(manifest["sources"], SPLITS):
        counts = manifest["sources"][name]["splits"][split]
        copies += counts["copies"]
        lines.append(
            f"{name:8} {split:12} {counts['documents']:10,} {counts['tokens']:12,} "
            f"{counts['characters']:12,}"
        )
    lines.append(
        f"left out: {read['empty']} empty, {read['faulty']} faulty, {read['contaminated']} "
        f"contaminated; lone surrogates replaced in {read['replaced']} documents"
    )
    if copies:
        fate = "left out" if manifest["options"]["dedup"] else "kept; --dedup leaves them out"
        lines.append(f"copies of other documents: {copies:,}, {fate}")
    if looked_for := manifest["evaluation_texts"]:
        lines.append(
            f"evaluation texts: {looked_for['texts']:,} with {looked_for['ngrams']:,} n-grams; "
            f"{looked_for['too_short']:,} too short to look for"
        )
    if read["first_fault"]:
        lines.append(f"first fault: {read['first_fault']}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, define_flags)
