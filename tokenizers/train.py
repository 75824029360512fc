"""Trains a tokenizer on a bilingual corpus.

    python tokenizers/train.py --input=en.jsonl.gz --input=zh.jsonl.gz --out=tokenizer

Writes `tokenizer.model` and `tokenizer_info.json` and prints how well the vocabulary fits held-out
documents of each language. Both languages get the same number of UTF-8 bytes of the training text
where the corpus has them, unless --language_share says otherwise: a Chinese character is three
bytes and says about as much as three English letters, so equal bytes are roughly equal content. See
README.md here for the input formats and the recipe.
"""

import itertools
import math
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping

from absl import flags

from glm_jax import cli, tokenizer
from glm_jax.documents import Counts, Document, expand_inputs, input_bytes, read_documents
from glm_jax.errors import UserError
from glm_jax.tokenizer.sampling import Sample, check_memory, hold_out, language_budgets, most_text

FLAGS = flags.FLAGS

_SAY_SECONDS = 30


def define_flags() -> None:
    flags.DEFINE_multi_string(
        "input", None, "A file, dataset or pattern such as 'D/*.jsonl.zst'; repeat."
    )
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
    flags.DEFINE_integer("vocab_size", 32000, "Pieces, special ones included.", 1)
    flags.DEFINE_integer("vocab_multiple", 1, "Pieces are added up to a multiple of this.", 1)
    flags.DEFINE_integer(
        "max_bytes", 20_000_000, "UTF-8 bytes of each language to train on, a uniform sample.", 1
    )
    flags.DEFINE_multi_string(
        "language_share", [], "Such as zh=0.6: share of the bytes; equal ones otherwise."
    )
    flags.DEFINE_float(
        "character_coverage",
        0.9995,
        "Share of the characters with a piece; others are bytes.",
        0.9,
        1,
    )
    flags.DEFINE_enum(
        "on_error", "fail", ["fail", "skip"], "What a faulty line does: stop, or be left out."
    )
    flags.mark_flags_as_required(["input", "out"])


def main() -> None:
    if pathlib.Path(FLAGS.out).exists():
        raise UserError(f"--out={FLAGS.out} already exists; a tokenizer is never overwritten")
    budgets = language_budgets(FLAGS.max_bytes, FLAGS.language_share)
    counts = Counts()
    paths = expand_inputs(FLAGS.input)
    documents = read_documents(paths, FLAGS.on_error, counts)
    text_bytes = most_text({path: input_bytes(path) for path in paths})
    print(check_memory(budgets, FLAGS.max_bytes, text_bytes), flush=True)
    samples = sample_languages(shown(documents, counts), budgets)
    if not samples:
        raise UserError(f"--input={','.join(FLAGS.input)} has no documents")
    parts = {language: hold_out(texts) for language, texts in samples.items()}
    texts = {language: trained for language, (trained, _) in parts.items()}
    held_out = {language: held for language, (_, held) in parts.items()}
    vocab_size = math.ceil(FLAGS.vocab_size / FLAGS.vocab_multiple) * FLAGS.vocab_multiple
    model = tokenizer.train(itertools.chain(*texts.values()), vocab_size, FLAGS.character_coverage)
    info = tokenizer.save(FLAGS.out, model, texts, held_out)
    report(counts, info)


def sample_languages(
    documents: Iterable[Document], budgets: Mapping[str, int]
) -> dict[str, list[str]]:
    """Returns a uniform sample of the texts of each language, of about so many UTF-8 bytes."""
    samples = {language: Sample(size) for language, size in budgets.items()}
    for document in documents:
        answer = [] if document.answer is None else [document.answer]
        samples[document.language].add("\n".join([document.text, *answer]))
    return {language: sample.texts() for language, sample in samples.items() if sample.num_bytes}


def shown(documents: Iterable[Document], counts: Counts) -> Iterator[Document]:
    """Passes documents on and says twice a minute how far it is."""
    said = time.monotonic()
    for document in documents:
        yield document
        if time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            print(
                f"read {counts.documents:,} documents, {counts.characters:,} characters, "
                f"now {document.path}",
                flush=True,
            )


def report(counts: Counts, info: tokenizer.TokenizerInfo) -> None:
    print(f"read {counts.documents} documents, {counts.empty} blank ones left out")
    if counts.replaced:
        print(f"{counts.replaced} documents had lone surrogates, now U+FFFD")
    if counts.faulty:
        print(f"left out {counts.faulty} faulty lines, the first: {counts.first_fault}")
    total = sum(info.sampled_bytes.values())
    for language, size in info.sampled_bytes.items():
        print(
            f"{language}: trained on {size:,} bytes of {info.sampled_documents[language]:,} "
            f"documents, {size / total:.0%} of the sample"
        )
    print_fertility(info.fertility)
    print(f"wrote {FLAGS.out}: {info.vocab_size} pieces, sha256 {info.sha256[:16]}")


def print_fertility(fertility: Mapping[str, tokenizer.Fertility]) -> None:
    """A table of what was measured on held-out documents."""
    print("\nheld out    documents  tokens/char  tokens/word  bytes/token  byte tokens  no piece")
    for language, measured in fertility.items():
        words = "" if measured.tokens_per_word is None else f"{measured.tokens_per_word:.4f}"
        print(
            f"{language:8} {measured.documents:12,} {measured.tokens_per_character:12.4f} "
            f"{words:>12} {measured.bytes_per_token:12.4f} {measured.byte_tokens:12.4%} "
            f"{measured.uncovered_characters:9.4%}"
        )
    print()


if __name__ == "__main__":
    cli.run(main, define_flags)
