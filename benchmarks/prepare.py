"""How fast text becomes a dataset, against SentencePiece alone, and how fast the dataset is read.

    python benchmarks/prepare.py --input=F [--input=F ..] --tokenizer=D [--num_processes=N]

In one run: SentencePiece encodes the texts, already in memory, with as many threads as there are
processes; `prepare` makes the dataset from the files; its training records are read at random by
one core. Prints a Markdown table. With one process it is processor time that is measured, which
other programs on the machine change little.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from glm_jax.data.shards import BLOCK_TOKENS
from glm_jax.data.sources import TokenStream, sources_in
from glm_jax.documents import read_documents
from glm_jax.preparation.options import Options
from glm_jax.prepare import prepare
from glm_jax.tokenizer import Tokenizer

_INPUT = flags.DEFINE_multi_string("input", None, "Text files.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Its folder.", required=True)
_PROCESSES = flags.DEFINE_integer("num_processes", 2, "Processes, and threads.", 1)

_BATCH_CHARACTERS = 1 << 24
_READS = 20_000


def clock() -> float:
    return time.process_time() if _PROCESSES.value == 1 else time.perf_counter()


def main(_) -> None:
    encoded, encoding_seconds = encode()
    print("| step | million tokens / s |\n|---|---|")
    print(
        f"| SentencePiece alone, {_PROCESSES.value} thread(s) | {encoded / encoding_seconds:.2f} |"
    )
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        prepare(
            _INPUT.value,
            _TOKENIZER.value,
            f"{folder}/data",
            Options(),
            overwrite=False,
            num_processes=_PROCESSES.value,
        )
        seconds = clock() - start
        share = encoding_seconds / seconds
        print(
            f"| prepare, {_PROCESSES.value} process(es) | {encoded / seconds:.2f} ({share:.0%}) |",
            flush=True,
        )
        for source in sources_in(f"{folder}/data"):
            stream = TokenStream(str(Path(folder) / "data" / source), source, "train")
            print(f"| random records of {source}, one core | {read(stream):.1f} |")


def encode() -> tuple[float, float]:
    """Million tokens of the inputs, and the seconds that SentencePiece took for them."""
    tokenizer = Tokenizer.load(_TOKENIZER.value)
    tokens, seconds, batch, characters = 0, 0.0, [], 0
    for document in read_documents(_INPUT.value, "skip"):
        batch.append(document.text)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            more, taken = encode_batch(tokenizer, batch)
            tokens, seconds, batch, characters = tokens + more, seconds + taken, [], 0
    more, taken = encode_batch(tokenizer, batch)
    return (tokens + more) / 1e6, seconds + taken


def encode_batch(tokenizer: Tokenizer, texts: list[str]) -> tuple[int, float]:
    start = clock()
    ids = tokenizer.encode_batch(texts, num_threads=_PROCESSES.value)
    return sum(map(len, ids)), clock() - start


def read(stream: TokenStream) -> float:
    """Million tokens that one core reads in a second, record by record."""
    records = stream.length // BLOCK_TOKENS
    offsets = np.random.default_rng(0).integers(0, records, _READS) * BLOCK_TOKENS
    start = time.process_time()
    tokens = sum(len(stream.read(int(offset), BLOCK_TOKENS)) for offset in offsets)
    return tokens / 1e6 / (time.process_time() - start)


if __name__ == "__main__":
    app.run(main)
