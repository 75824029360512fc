"""Trains a tokenizer on a bilingual corpus.

    python tokenizers/train.py --input=en.jsonl.gz --input=zh.jsonl.gz --out=tokenizer

Writes `tokenizer.model` and `tokenizer_info.json` and prints the tokens per character of each
language. Both languages get the same number of UTF-8 bytes of the training text where the corpus
has them: a Chinese character is three bytes and says about as much as three English letters, so
equal bytes are roughly equal content. See README.md here for the input formats and the recipe.
"""

import heapq
import itertools
import pathlib
import random
from collections.abc import Iterable

from absl import flags

from glm_jax import cli, tokenizer
from glm_jax.documents import Counts, Document, read_documents
from glm_jax.errors import UserError
from glm_jax.language import LANGUAGES

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_multi_string("input", None, "A .jsonl or .txt file, gzipped or not; repeat.")
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
    flags.DEFINE_integer("vocab_size", 32000, "Pieces, special ones included.", 1)
    flags.DEFINE_integer(
        "max_bytes", 20_000_000, "UTF-8 bytes of each language to train on, a uniform sample.", 1
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
    counts = Counts()
    documents = read_documents(FLAGS.input, FLAGS.on_error, counts)
    texts = sample_languages(documents, FLAGS.max_bytes)
    if not counts.documents:
        raise UserError(f"--input={','.join(FLAGS.input)} has no documents")
    model = tokenizer.train(
        itertools.chain(*texts.values()), FLAGS.vocab_size, FLAGS.character_coverage
    )
    info = tokenizer.save(FLAGS.out, model, texts)
    report(counts, info)


def sample_languages(documents: Iterable[Document], max_bytes: int) -> dict[str, list[str]]:
    """Returns a uniform sample of about `max_bytes` UTF-8 bytes of the texts of each language."""
    samples = {language: Sample(max_bytes) for language in LANGUAGES}
    for document in documents:
        samples[document.language].add(document.text)
    return {language: sample.texts() for language, sample in samples.items() if sample.num_bytes}


class Sample:
    """A uniform sample of a stream of texts, just large enough to hold `max_bytes`.

    Every text gets a random key and the texts with the smallest keys stay, so that one pass and no
    more memory than the sample are needed.
    """

    def __init__(self, max_bytes: int):
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._random = random.Random(0)
        self._heap: list[tuple[float, str, int]] = []  # -key, text, bytes; the largest key on top

    def add(self, text: str) -> None:
        size = len(text.encode())
        heapq.heappush(self._heap, (-self._random.random(), text, size))
        self.num_bytes += size
        while self.num_bytes - self._heap[0][2] >= self._max_bytes:
            self.num_bytes -= heapq.heappop(self._heap)[2]

    def texts(self) -> list[str]:
        return [text for _, text, _ in sorted(self._heap)]


def report(counts: Counts, info: tokenizer.TokenizerInfo) -> None:
    print(f"read {counts.documents} documents, {counts.empty} blank ones left out")
    if counts.replaced:
        print(f"{counts.replaced} documents had lone surrogates, now U+FFFD")
    if counts.faulty:
        print(f"left out {counts.faulty} faulty lines, the first: {counts.first_fault}")
    for language, ratio in info.tokens_per_character.items():
        print(
            f"{language}: {ratio:.4f} tokens per character, trained on "
            f"{info.sampled_bytes[language]} bytes of {info.sampled_documents[language]} documents"
        )
    print(f"wrote {FLAGS.out}: {info.vocab_size} pieces, sha256 {info.sha256[:16]}")


if __name__ == "__main__":
    cli.run(main, define_flags)
