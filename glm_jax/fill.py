"""Fills blanks: `python -m glm_jax.fill --workdir=RUN --text='Paris is the capital of [MASK].'`.

Texts come from --text, from the file --input, or one a line from standard input; blank lines are
skipped. A faulty text is named on standard error, the others are still filled, and the exit code is
2 at the end. See docs/filling.md.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from absl import flags
from rich.console import Console
from rich.text import Text

from glm_jax import cli
from glm_jax.config import MeshConfig
from glm_jax.documents import check_lines_readable, is_jsonl, numbered_lines, read_lines
from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Draw, Filled, Filler
from glm_jax.parallel.sharding import make_sharding
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.trained_params import check_fills_blanks, load_params

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run whose model fills.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest good one.")
    flags.DEFINE_bool("ema", False, "Fill with the moving average of the parameters.")
    flags.DEFINE_multi_string("text", [], "Text with [MASK], [sMASK] or [gMASK]; repeatable.")
    flags.DEFINE_string("input", None, "File of texts: .txt, one a line, or .jsonl; also .gz.")
    flags.DEFINE_string("output", None, "JSONL file to write.")
    flags.DEFINE_bool("overwrite", False, "Replace an existing --output.")
    flags.DEFINE_bool("json", False, "Print one JSON object an answered text.")
    flags.DEFINE_integer("batch_size", 16, "Texts that are decoded together.", 1)
    flags.DEFINE_integer("num_samples", 1, "Answers for each text; more need --temperature.", 1)
    default = DecodingOptions()
    integer, number = flags.DEFINE_integer, flags.DEFINE_float
    integer("max_new_tokens", default.max_new_tokens, "Longest answer, in tokens.")
    integer("min_new_tokens", default.min_new_tokens, "Shortest answer, in tokens.")
    number("temperature", default.temperature, "Divides the logits; 0: greedy.")
    integer("top_k", default.top_k, "Draw from the k most probable tokens; 0: from all.")
    number("top_p", default.top_p, "Draw from the fewest tokens with this total probability.")
    integer("no_repeat_ngram", default.no_repeat_ngram, "No n-gram twice in an answer; 0: off.")
    integer("num_beams", default.num_beams, "Beams of a beam search; 1: none.")
    number("length_penalty", default.length_penalty, "Of beams: larger favours longer answers.")
    integer("seed", default.seed, "Of the draws.")


def main() -> None:
    workdir = Path(cli.required("workdir"))
    options = _options()
    _check_files()
    check_fills_blanks(workdir)
    sharding = make_sharding(MeshConfig())
    config, params, _ = load_params(workdir, FLAGS.step, ema=FLAGS.ema, sharding=sharding)
    tokenizer = Tokenizer.load(workdir / "tokenizer")
    filler = Filler(config.model, params, tokenizer, sharding, FLAGS.batch_size)
    interactive = sys.stdin.isatty() and not (FLAGS.text or FLAGS.input)
    chunks = _chunks(_entries(), 1 if interactive else filler.batch_size)
    with _results() as show:
        totals = fill(filler, chunks, options, FLAGS.num_samples, show)
    print(totals.throughput, file=sys.stderr)
    if totals.faults:
        raise UserError(f"{totals.faults} of {totals.texts} texts could not be filled")


class Entry(NamedTuple):
    """A text of the input, or what is wrong with its line."""

    source: str  # as in "questions.jsonl:7"
    line: int  # from 1
    text: str | UserError


@dataclasses.dataclass
class Totals:
    """What `fill` counts; a text is filled once for each sample."""

    texts: int = 0
    faults: int = 0
    filled: int = 0
    tokens: int = 0  # generated, ends not counted
    seconds: float = 0.0  # decoding and compiling, not waiting for input

    @property
    def throughput(self) -> str:
        rates = [count / max(self.seconds, 1e-9) for count in (self.filled, self.tokens)]
        return (
            f"{self.filled} filled in {self.seconds:.1f} s (compiling included): "
            f"{rates[0]:.1f} texts/s, {rates[1]:.1f} generated tokens/s"
        )


def fill(
    filler: Filler,
    chunks: Iterable[list[Entry]],
    options: DecodingOptions,
    num_samples: int,
    show: Callable[[Entry, int, Filled], None],
) -> Totals:
    """Fills texts chunk by chunk, and prints on standard error what is wrong with a text.

    The line of a text and the number of the sample name the random numbers of an answer.

    Args:
      show: called with each text, the number of the sample and the result, in order.
    """
    totals = Totals()
    for entries in chunks:
        started = time.perf_counter()
        outcomes = _fill_together(filler, entries, options, num_samples)
        totals.seconds += time.perf_counter() - started
        for entry, samples in zip(entries, outcomes, strict=True):
            totals.texts += 1
            if fault := next((x for x in samples if isinstance(x, UserError)), None):
                totals.faults += 1
                print(f"error: {entry.source}: {fault}", file=sys.stderr)
                continue
            totals.filled += num_samples
            for number, filled in enumerate(samples):
                totals.tokens += sum(map(len, filled.token_ids))
                show(entry, number, filled)
    return totals


def _fill_together(
    filler: Filler, entries: list[Entry], options: DecodingOptions, num_samples: int
) -> list[list[Filled | UserError]]:
    """The samples of each text, or what is wrong with it."""
    jobs = [
        (entry.text, Draw(entry.line - 1, sample))
        for entry in entries
        if isinstance(entry.text, str)
        for sample in range(num_samples)
    ]
    filled = iter(filler.try_fill([text for text, _ in jobs], options, [draw for _, draw in jobs]))
    return [
        [next(filled) for _ in range(num_samples)] if isinstance(entry.text, str) else [entry.text]
        for entry in entries
    ]


def _options() -> DecodingOptions:
    """What the flags say, checked."""
    fields = dataclasses.fields(DecodingOptions)
    options = DecodingOptions(**{field.name: FLAGS[field.name].value for field in fields})
    if FLAGS.num_samples > 1 and options.temperature == 0:
        raise UserError(
            f"--num_samples {FLAGS.num_samples} would all be the same: --temperature is 0"
        )
    for name in ("top_k", "top_p", "seed"):
        if FLAGS[name].present and options.temperature == 0:
            raise UserError(f"--{name} is of draws: --temperature is 0")
    if FLAGS["length_penalty"].present and options.num_beams == 1:
        raise UserError("--length_penalty is of beams: --num_beams is 1")
    return options


def _check_files() -> None:
    """Refuses an input that cannot be read, and an output that is in the way."""
    if FLAGS.input:
        path = Path(FLAGS.input)
        if FLAGS.text:
            raise UserError("give one of --text and --input")
        try:
            check_lines_readable(path)
        except UserError as error:
            raise UserError(f"--input {error}") from error
    if FLAGS.overwrite and not FLAGS.output:
        raise UserError("--overwrite is of --output, which is not given")
    if FLAGS.json and FLAGS.output:
        raise UserError("--json is of what is printed: --output is a JSONL file anyway")
    if FLAGS.output:
        path = Path(FLAGS.output)
        if FLAGS.input and path.exists() and path.samefile(FLAGS.input):
            raise UserError(f"--output {path} is the --input")
        if path.exists() and not FLAGS.overwrite:
            raise UserError(f"--output {path} exists; --overwrite replaces it")
        if not path.parent.is_dir():
            raise UserError(f"--output {path}: the folder {path.parent} does not exist")


def _entries() -> Iterator[Entry]:
    """The texts of the flags, the file or standard input, one after another."""
    if FLAGS.text:
        for number, text in enumerate(FLAGS.text, 1):
            yield Entry(f"--text number {number}", number, text)
    elif FLAGS.input:
        yield from parse_lines(read_lines(Path(FLAGS.input)), FLAGS.input)
    else:
        yield from parse_lines(numbered_lines(sys.stdin.buffer), "standard input")


def parse_lines(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[Entry]:
    """The texts of the lines that are not blank, and what is wrong with the others.

    Args:
      lines: see `documents.numbered_lines`.
      name: of the file; where it is one of JSON lines, each is an object with a string `text`.
    """
    parse = _field_text if is_jsonl(name) else str
    for number, line in lines:
        if not line.strip():
            continue
        try:
            text = parse(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            text = UserError(f"not UTF-8 at byte {error.start}")
        except UserError as error:
            text = error
        yield Entry(f"{name}:{number}", number, text)


def _field_text(line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise UserError("expected an object with a string text")
    return record["text"]


def _chunks(entries: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    while chunk := list(itertools.islice(entries, size)):
        yield chunk


@contextlib.contextmanager
def _results() -> Iterator[Callable[[Entry, int, Filled], None]]:
    """Where results go: the file --output, or standard output."""
    if not FLAGS.output:
        yield _print_json if FLAGS.json else _print_text
        return
    with _open_output() as file:
        yield lambda *result: print(_json(*result), file=file, flush=True)


def _open_output() -> TextIO:
    try:
        return Path(FLAGS.output).open("w" if FLAGS.overwrite else "x", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {FLAGS.output} cannot be written: {error.strerror}") from error


def _json(entry: Entry, sample: int, filled: Filled) -> str:
    values = {
        "line": entry.line,
        "sample": sample,
        "input": entry.text,
        "text": filled.text,
        "answers": filled.answers,
    }
    return json.dumps(values, ensure_ascii=False)


def _print_json(entry: Entry, sample: int, filled: Filled) -> None:
    print(_json(entry, sample, filled), flush=True)


def _print_text(entry: Entry, sample: int, filled: Filled) -> None:
    del entry, sample
    styled = (Text(part, "bold green" if i % 2 else "") for i, part in enumerate(filled.parts))
    Console(soft_wrap=True, highlight=False).print(Text.assemble(*styled))


if __name__ == "__main__":
    cli.run(main, define_flags)
