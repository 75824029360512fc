r"""Turns text into token datasets, one per language.

  python -m glm_jax.prepare --input=corpus.jsonl.gz --tokenizer=TOKENIZER --out=DATA

Inputs are `.jsonl` (objects with `text` and, optionally, `language`) or `.txt` (one document a
line), gzipped or not. DATA gets a TFDS array_record dataset `<language>/<version>` per language
with the splits train and validation, a copy of the tokenizer, and manifest.json. Documents are
shuffled once, here. DATA appears only when it is complete.

  python -m glm_jax.prepare --show_rows=400:408 --workdir=RUN

prints training rows of a run, such as those of a step that metrics.jsonl calls bad.

  python -m glm_jax.prepare --check_rows=1000 --workdir=RUN

proves of its first training rows that they hold their text whole and that no slot sees what it must
not.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from rich import console, progress

from glm_jax import cli
from glm_jax.config import Config
from glm_jax.data import sources
from glm_jax.data.check_rows import check_rows
from glm_jax.data.dataset import open_dataset
from glm_jax.data.rows import Rows
from glm_jax.data.show import show_row
from glm_jax.documents import Counts, Document, read_documents
from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.language import LANGUAGES
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.run_folder import load_config
from glm_jax.training.trained_params import trained_data

FLAGS = flags.FLAGS

MANIFEST_FILE = "manifest.json"

_BATCH_CHARACTERS = 1 << 20
_BATCH_BLOCKS = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags of the same names say; written into the manifest."""

    language: str = "auto"
    validation_share: float = 0.02
    seed: int = 0
    on_error: str = "fail"


def define_flags() -> None:
    flags.DEFINE_multi_string("input", None, "Text file; repeat the flag for more.")
    flags.DEFINE_string("tokenizer", None, "Folder that tokenizers/train.py or convert.py wrote.")
    flags.DEFINE_string("out", None, "Folder to write; must not exist or be empty.")
    flags.DEFINE_enum(
        "language",
        Options.language,
        ["auto", *LANGUAGES],
        "auto: the document's own field, else detected.",
    )
    flags.DEFINE_float(
        "validation_share",
        Options.validation_share,
        "Share of documents for validation; at least one per language.",
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
    flags.DEFINE_bool("overwrite", False, "Replace an earlier dataset at --out.")
    flags.DEFINE_string("show_rows", None, "FIRST:END, training rows of --workdir to print.")
    flags.DEFINE_integer("check_rows", None, "Number of training rows of --workdir to check.", 1)
    flags.DEFINE_string("workdir", None, "The run of --show_rows and --check_rows.")


def main() -> None:
    if FLAGS.show_rows:
        show_rows(FLAGS.show_rows, pathlib.Path(cli.required("workdir")))
        return
    if FLAGS.check_rows:
        check_run(FLAGS.check_rows, pathlib.Path(cli.required("workdir")))
        return
    for name in ("input", "tokenizer", "out"):
        cli.required(name)
    options = Options(FLAGS.language, FLAGS.validation_share, FLAGS.seed, FLAGS.on_error)
    manifest = prepare(FLAGS.input, FLAGS.tokenizer, FLAGS.out, options, overwrite=FLAGS.overwrite)
    print(_summary(manifest))


def prepare(
    inputs: Sequence[str], tokenizer_dir: str, out: str, options: Options, *, overwrite: bool
) -> dict:
    """Writes the dataset folder `out` and returns its manifest.

    Raises:
      UserError: a missing or faulty input, a language with fewer than two documents, or `out`
        holds something and may not be replaced.
    """
    target = pathlib.Path(out)
    _check_target(target, overwrite)
    tokenizer = Tokenizer.load(tokenizer_dir)
    counts = Counts()
    documents = read_documents(inputs, options.on_error, counts)

    with written_whole(target) as partial:
        corpora = _encode(documents, tokenizer, options.language, partial)
        if not corpora:
            raise UserError(f"no document in {', '.join(inputs)}")
        written = {
            name: _write_source(partial, corpus, tokenizer, options)
            for name, corpus in sorted(corpora.items())
        }
        _copy_tokenizer(tokenizer, partial / sources.TOKENIZER_DIR)
        manifest = {
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "sources": written,
            "inputs": [{"path": path, "bytes": os.path.getsize(path)} for path in inputs],
            "read": dataclasses.asdict(counts),
            "options": dataclasses.asdict(options),
        }
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def show_rows(which: str, workdir: pathlib.Path) -> None:
    """Prints the training rows `FIRST:END` of a run.

    Raises:
      UserError: no such range, run or data.
    """
    first, _, end = which.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise UserError(f"--show_rows must be FIRST:END with FIRST < END, got {which!r}")
    rows, config, tokenizer = _training_rows(workdir)
    terminal = console.Console(soft_wrap=True, highlight=False)
    for index in range(int(first), int(end)):
        terminal.print(show_row(index, rows[index], sorted(config.data.sources), tokenizer))


def check_run(count: int, workdir: pathlib.Path) -> None:
    """Checks the first `count` training rows of a run and says so.

    Raises:
      UserError: the first fault (see `check_rows`), or no such run or data.
    """
    rows, _, tokenizer = _training_rows(workdir)
    check_rows(rows, count, tokenizer.special)
    print(f"{count} rows hold their text whole, and no slot sees what it must not")


def _training_rows(workdir: pathlib.Path) -> tuple[Rows, Config, Tokenizer]:
    config = load_config(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer")
    dataset = open_dataset(config, tokenizer)
    if trained_data(workdir) not in (None, dataset.fingerprint):
        raise UserError(f"{workdir} was trained on other data than {config.data.dir} holds now")
    return dataset.train, config, tokenizer


class _Corpus:
    """The documents of one language as `[CLS] tokens eos` in a scratch file, in input order.

    Without the [CLS] in a family that has none.
    """

    def __init__(self, language: str, directory: pathlib.Path):
        self.language = language
        self.path = directory / f"{language}.scratch"
        self.tokens = array("q")  # by document, as are the two below
        self.characters = array("q")
        self.bytes = array("q")
        self._file = self.path.open("wb")

    def append(self, text: str, tokens: np.ndarray) -> None:
        self._file.write(tokens.astype(np.int32).tobytes())
        self.tokens.append(len(tokens))
        self.characters.append(len(text))
        self.bytes.append(len(text.encode()))

    def close(self) -> None:
        self._file.close()

    def count(self, documents: np.ndarray) -> dict[str, int]:
        """Sums over the given document numbers, for the metadata of a split."""
        sums = {
            name: int(np.array(getattr(self, name))[documents].sum())
            for name in ("tokens", "characters", "bytes")
        }
        return {"documents": len(documents), **sums}

    def blocks(self, documents: np.ndarray) -> Iterator[np.ndarray]:
        """The given documents, joined and cut into blocks of `sources.BLOCK_TOKENS`."""
        stream = np.memmap(self.path, np.int32, "r")
        ends = np.cumsum(self.tokens)
        pending, size = [], 0
        for document in documents:
            pending.append(stream[ends[document] - self.tokens[document] : ends[document]])
            size += len(pending[-1])
            if size >= _BATCH_BLOCKS * sources.BLOCK_TOKENS:
                joined = np.concatenate(pending)
                full = size - size % sources.BLOCK_TOKENS
                yield from joined[:full].reshape(-1, sources.BLOCK_TOKENS)
                pending, size = [joined[full:]], size - full
        rest = np.concatenate(pending)
        for start in range(0, len(rest), sources.BLOCK_TOKENS):
            yield rest[start : start + sources.BLOCK_TOKENS]


def _encode(
    documents: Iterator[Document], tokenizer: Tokenizer, language: str, directory: pathlib.Path
) -> dict[str, _Corpus]:
    corpora: dict[str, _Corpus] = {}
    special = tokenizer.special
    with _progress() as bar:
        task = bar.add_task("documents encoded", total=None)
        for batch in _batches(documents):
            encoded = tokenizer.encode_batch([d.text for d in batch], num_threads=os.cpu_count())
            for document, ids in zip(batch, encoded, strict=True):
                name = document.language if language == "auto" else language
                if name not in corpora:
                    corpora[name] = _Corpus(name, directory)
                tokens = np.concatenate((special.start, ids, [special.eos])).astype(np.int32)
                corpora[name].append(document.text, tokens)
            bar.advance(task, len(batch))
    for corpus in corpora.values():
        corpus.close()
    return corpora


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_source(
    directory: pathlib.Path, corpus: _Corpus, tokenizer: Tokenizer, options: Options
) -> dict:
    """Writes one dataset in shuffled document order; returns its metadata."""
    chosen = _split(corpus, options)
    metadata = {
        "source": corpus.language,
        "language": corpus.language,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "splits": {split: corpus.count(documents) for split, documents in chosen.items()},
    }
    total = sum(-(-s["tokens"] // sources.BLOCK_TOKENS) for s in metadata["splits"].values())
    with _progress() as bar:
        task = bar.add_task(f"blocks of {corpus.language} written", total=total)

        def counted(documents: np.ndarray) -> Iterator[np.ndarray]:
            for block in corpus.blocks(documents):
                yield block
                bar.advance(task)

        splits = {split: counted(documents) for split, documents in chosen.items()}
        sources.write_source(str(directory), corpus.language, metadata, splits)
    corpus.path.unlink()
    return metadata


def _split(corpus: _Corpus, options: Options) -> dict[str, np.ndarray]:
    """Document numbers of each split, shuffled by (seed, language)."""
    count = len(corpus.tokens)
    if count < 2:
        raise UserError(
            f"language {corpus.language} has {count} document; train and validation need one each "
            "(--language puts all documents into one)"
        )
    rng = np.random.default_rng([options.seed, *corpus.language.encode()])
    order = rng.permutation(count)
    validation = min(max(1, round(options.validation_share * count)), count - 1)
    return {"train": order[validation:], "validation": order[:validation]}


def _progress() -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console.Console(stderr=True),
    )


def _copy_tokenizer(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    directory.mkdir()
    for name in tokenizer.files:
        shutil.copyfile(tokenizer.dir / name, directory / name)


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
    for name, split in itertools.product(manifest["sources"], sources.SPLITS):
        counts = manifest["sources"][name]["splits"][split]
        lines.append(
            f"{name:8} {split:12} {counts['documents']:10,} {counts['tokens']:12,} "
            f"{counts['characters']:12,}"
        )
    lines.append(
        f"left out: {read['empty']} empty, {read['faulty']} faulty; lone surrogates replaced in "
        f"{read['replaced']} documents"
    )
    if read["first_fault"]:
        lines.append(f"first fault: {read['first_fault']}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, define_flags)
