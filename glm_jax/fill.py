"""Fills blanks: `python -m glm_jax.fill --workdir=RUN --text='Paris is the capital of [MASK].'`.

Without --text it reads one text a line from standard input; blank lines are skipped.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.text import Text

from glm_jax import cli
from glm_jax.errors import UserError
from glm_jax.model.decoding import BATCH, Filled, Filler
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.checkpoint import load_params

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run whose model fills.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the latest.")
    flags.DEFINE_multi_string("text", [], "Text with [MASK], [sMASK] or [gMASK]; repeatable.")
    flags.DEFINE_integer("max_new_tokens", 64, "Longest answer, in tokens.", 1)
    flags.DEFINE_bool("json", False, "Print one JSON object a text.")


def main() -> None:
    workdir = Path(cli.required("workdir"))
    config, params, _ = load_params(workdir, FLAGS.step)
    filler = Filler(config.model, params, Tokenizer.load(workdir / "tokenizer"))
    show = _print_json if FLAGS.json else _print_text
    for texts in _chunks(FLAGS.text or _lines(sys.stdin), 1 if sys.stdin.isatty() else BATCH):
        for text, filled in zip(texts, fill(filler, texts, FLAGS.max_new_tokens), strict=True):
            show(text, filled)


def fill(filler: Filler, texts: list[str], max_new_tokens: int) -> Iterator[Filled]:
    """Fills texts together; where one cannot be filled, those before it still are."""
    try:
        yield from filler.fill(texts, max_new_tokens)
    except UserError:
        for text in texts:
            yield from filler.fill([text], max_new_tokens)


def _lines(file) -> Iterator[str]:
    return (line.rstrip("\n") for line in file if line.strip())


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _print_json(text: str, filled: Filled) -> None:
    values = {"input": text, "text": filled.text, "answers": filled.answers}
    print(json.dumps(values, ensure_ascii=False), flush=True)


def _print_text(text: str, filled: Filled) -> None:
    del text
    styled = (Text(part, "bold green" if i % 2 else "") for i, part in enumerate(filled.parts))
    Console(soft_wrap=True, highlight=False).print(Text.assemble(*styled))


if __name__ == "__main__":
    cli.run(main, define_flags)
