"""Writes the almanac.

    python -m glm_jax.almanac --out=almanac

In the folder `--out`: `corpus_en.jsonl` and `corpus_zh.jsonl` (documents with `text` and
`language`), `heldout.jsonl` (`text` with one [MASK], `answer`, `language`) and `manifest.json`
(what is in them). A fact is stated in several wordings behind several openings; the questions of
`heldout.jsonl` ask for it in wordings that the corpus only ever used for other facts.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

from absl import flags

from glm_jax import cli
from glm_jax.almanac import generate
from glm_jax.errors import UserError
from glm_jax.folders import written_whole

FLAGS = flags.FLAGS

_DEFAULT = generate.AlmanacConfig()


def define_flags() -> None:
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.", required=True)
    flags.DEFINE_integer("facts", _DEFAULT.facts, "Facts of each relation.", 1, generate.MAX_FACTS)
    flags.DEFINE_integer(
        "wordings", _DEFAULT.wordings, "Wordings of a relation.", 3, generate.MAX_WORDINGS
    )
    flags.DEFINE_integer("copies", _DEFAULT.copies, "Times a statement is printed.", 1)
    flags.DEFINE_integer(
        "max_statements", _DEFAULT.max_statements, "Most statements of a passage.", 1
    )


def main() -> None:
    config = generate.AlmanacConfig(
        facts=FLAGS.facts,
        wordings=FLAGS.wordings,
        copies=FLAGS.copies,
        max_statements=FLAGS.max_statements,
    )
    out = pathlib.Path(FLAGS.out)
    if out.exists():
        raise UserError(f"--out={out} already exists")
    with written_whole(out) as partial:
        counts = write_almanac(partial, config)
    print(f"wrote {out}: {json.dumps(counts)}")


def write_almanac(folder: pathlib.Path, config: generate.AlmanacConfig) -> dict:
    """Writes the four files; returns the number of records by file and language."""
    counts = {"corpus": {}, "heldout": {}}
    questions = []
    for book in generate.BOOKS:
        passages = list(generate.corpus(book, config))
        write_lines(folder / f"corpus_{book.language}.jsonl", passages)
        counts["corpus"][book.language] = len(passages)
        asked = list(generate.held_out(book, config))
        counts["heldout"][book.language] = len(asked)
        questions += asked
    write_lines(folder / "heldout.jsonl", questions)
    manifest = {"config": dataclasses.asdict(config), "records": counts}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return counts


def write_lines(path: pathlib.Path, records: Iterable[dict[str, str]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, define_flags)
