"""Building training rows: examples per second and core, and the whole way from disk to batches.

    python benchmarks/input.py                 # two minutes on two cores

Prints two Markdown tables:

a. Examples alone: windows of a token stream in memory to rows of T slots. Ours in batches of
   `--batch` rows, beside the same algorithm in plain Python (benchmarks/plain_infill.py), one row
   at a time. Both make the same arrays of the same spans, or the program stops.
b. The whole input path at T = 2,048: from the records of an array_record dataset to batches on the
   host, through Grain with 0, 1 and 2 worker processes, and with the examples in plain Python.

Tokens are slots of rows, T of each. Tokens per second and core are those per second of CPU time of
this process and its workers. Ours and the peer take turns and each figure is the best of its turns,
so that what else the machine does changes the ratio little. The text is random, in documents of
lognormal length (median 450 tokens, sigma 1.1).
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import random
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from plain_infill import PlainRows

from glm_jax.batch import OBJECTIVES, WHOLE, Batch
from glm_jax.config import Config, from_dict
from glm_jax.data.pipeline import batches
from glm_jax.data.rows import Rows
from glm_jax.data.shards import (
    VERSION,
    shard_name,
    split_metadata,
    write_metadata,
    write_shard,
)
from glm_jax.data.sources import TokenStream, open_sources
from glm_jax.objective.infill import build_pieces, pack
from glm_jax.objective.spans import Blanks
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
WEIGHTS = {
    "token": {"token_weight": 1.0},
    "sentence": {"token_weight": 0.0, "sentence_weight": 1.0},
    "document": {"token_weight": 0.0, "document_weight": 1.0},
    "mixture": {"token_weight": 0.5, "sentence_weight": 0.25, "document_weight": 0.25},
}
DOCUMENTS, VOCAB_SIZE = 4000, 16_000
IS_SENTENCE_END = np.arange(VOCAB_SIZE) % 25 == 24
TOKENIZER = types.SimpleNamespace(fingerprint="of random tokens")


class InMemory:
    """A token stream without a disk."""

    def __init__(self, stream: TokenStream):
        self.name, self.length, self.documents = stream.name, stream.length, stream.documents
        self.instructions = stream.instructions
        self._tokens = stream.read(0, stream.length)

    def read(self, offset: int, count: int) -> np.ndarray:
        start = offset % (self.length - count)
        return self._tokens[start : start + count]


class InPlainPython:
    """The rows of `rows` with other blanks, from plain Python, one after the other."""

    def __init__(self, rows: Rows, config: Config):
        self._rows = rows
        self._plain = PlainRows(config.objective, SPECIAL, IS_SENTENCE_END, config.data.seq_length)
        self._max_blanks = {kind.objective: kind.max_blanks for kind in rows.kinds}

    def build(self, indices: Sequence[int], objectives: Sequence[str] | None = None) -> Batch:
        objectives = objectives or [self._rows.kinds[0].objective] * len(indices)
        rows = []
        for index, objective in zip(indices, objectives, strict=True):
            rng, window = random.Random(index), self._rows.window(index)
            rows.append(self._plain.row(rng, window, objective, self._max_blanks[objective]))
        return Batch(*map(np.stack, zip(*rows, strict=True)))

    def check(self, indices: Sequence[int], objectives: Sequence[str]) -> None:
        """Stops unless the same spans give the same arrays."""
        plain = self._plain
        for index, objective in zip(indices, objectives, strict=True):
            window = self._rows.window(index)
            tokens = window.tolist()
            pieces = plain.split_pieces(tokens)
            spans = plain.spans(
                random.Random(index), tokens, pieces, objective, self._max_blanks[objective]
            )
            sample = build_pieces(
                window,
                np.array([piece.end for piece in pieces]),
                Blanks(*map(np.array, zip(*spans, strict=True))),
                mask_id=plain.mask_id(objective),
                special=SPECIAL,
            )
            ours = pack([sample], plain.length, objective=objective, source=0, special=SPECIAL)
            for a, b in zip(ours, plain.arrays(tokens, pieces, spans, objective), strict=True):
                if a.dtype != b.dtype or not np.array_equal(a, b):
                    raise SystemExit(f"{objective} row {index}: plain Python makes other arrays")


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        write_random_text(folder)
        print(versions(), end="\n\n")
        print("| a. examples alone | T | ours M tokens/s/core | plain Python | ratio |")
        print("|---|---|---|---|---|")
        for length, name in itertools.product((512, 2048), WEIGHTS):
            ours, plain = examples(folder, length, name, options.batch, options.turns)
            print(f"| {name} | {length} | {ours:.1f} | {plain:.2f} | {ours / plain:.1f} x |")
        print("\n| b. disk to host batch, T 2048 | M tokens/s/core | M tokens/s |\n|---|---|---|")
        for workers, is_plain in ((0, False), (1, False), (2, False), (0, True)):
            per_core, per_second = whole_path(folder, workers, is_plain, options.batch)
            who = "plain Python" if is_plain else "ours"
            print(f"| {who}, {workers} workers | {per_core:.2f} | {per_second:.2f} |", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="rows of a batch on this host")
    parser.add_argument("--turns", type=int, default=5, help="turns that ours and the peer take")
    return parser.parse_args()


def versions() -> str:
    packages = ("numpy", "grain", "array-record", "tensorflow-datasets")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"python {platform.python_version()}, {found}; {os.cpu_count()} cores"


def write_random_text(folder: str) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for length in np.maximum(rng.lognormal(np.log(450), 1.1, DOCUMENTS), 4).astype(int):
        parts += [[SPECIAL.cls], rng.integers(20, VOCAB_SIZE, length), [SPECIAL.eos]]
    sizes = np.array([sum(map(len, parts[i : i + 3])) for i in range(0, len(parts), 3)])
    shards = Path(folder) / "random" / VERSION
    shards.mkdir(parents=True)

    def split(name: str, documents: int) -> dict:
        shard, tokens = shards / shard_name("random", name, 0, 1), parts[: 3 * documents]
        written = write_shard(shard, np.concatenate(tokens), sizes[:documents], VOCAB_SIZE)
        return split_metadata("random", name, [written])

    metadata = {
        "source": "random",
        "language": "en",
        "instructions": False,
        "tokenizer": TOKENIZER.fingerprint,
        "vocab_size": VOCAB_SIZE,
        "eos": SPECIAL.eos,
        "splits": {"train": split("train", DOCUMENTS), "validation": split("validation", 1)},
    }
    write_metadata(folder, "random", metadata)


def open_rows(folder: str, length: int, name: str, in_memory: bool) -> tuple[Rows, Config]:
    config = from_dict(
        {
            "model": {"max_positions": length},
            "objective": WEIGHTS[name],
            "data": {"dir": folder, "sources": {"random": {}}, "seq_length": length},
        }
    )
    streams = open_sources(config.data, TOKENIZER, "train")
    if in_memory:
        streams = {name: InMemory(stream) for name, stream in streams.items()}
    return Rows(config, streams, SPECIAL, IS_SENTENCE_END, "train"), config


def examples(folder: str, length: int, name: str, batch: int, turns: int) -> tuple[float, float]:
    """Millions of tokens per second of ours and of plain Python."""
    rows, config = open_rows(folder, length, name, in_memory=True)
    plain = InPlainPython(rows, config)
    built = rows.build(range(batch))
    objectives = [OBJECTIVES[number] for number in built.objective[:, 0]]
    plain.check(range(batch), objectives)
    seconds, plain_seconds = [], []
    for _ in range(turns):
        seconds += [timed(lambda: rows.build(range(batch))) for _ in range(5)]
        plain_seconds.append(timed(lambda: plain.build(range(batch), objectives)))
    tokens = batch * length / 1e6
    return tokens / min(seconds), tokens / min(plain_seconds)


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def whole_path(folder: str, workers: int, is_plain: bool, batch: int) -> tuple[float, float]:
    """Millions of tokens per second of CPU time, and per second."""
    rows, config = open_rows(folder, 2048, "token", in_memory=False)
    feed = batches(
        InPlainPython(rows, config) if is_plain else rows,
        functools.partial(rows_of_batch, batch),
        WHOLE,
        num_workers=workers,
        prefetch=2,
    )
    count = 6 if is_plain else 48
    try:
        for _ in range(2 + 2 * workers):
            next(feed)
        cpu, started = cpu_seconds(), time.perf_counter()
        for _ in range(count):
            next(feed)
        cpu, elapsed = cpu_seconds() - cpu, time.perf_counter() - started
    finally:
        feed.close()
    tokens = count * batch * 2048 / 1e6
    return tokens / cpu, tokens / elapsed


def rows_of_batch(size: int, number: int) -> range:
    return range(number * size, (number + 1) * size)


def cpu_seconds() -> float:
    """CPU time so far of this process and the workers that run."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
