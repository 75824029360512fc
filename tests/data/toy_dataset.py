"""Writes token datasets of random tokens."""

import types

import numpy as np

from glm_jax.data import shards
from glm_jax.tokenizer import SpecialTokens

VOCAB_SIZE = 200
TOKENIZER = types.SimpleNamespace(fingerprint="f" * 64)
IS_SENTENCE_END = np.arange(VOCAB_SIZE) % 20 == 19


def random_stream(rng, documents: int, mean_length: int) -> np.ndarray:
    special = SpecialTokens()
    parts = []
    for length in rng.integers(1, 2 * mean_length, documents):
        parts += [[special.cls], rng.integers(20, VOCAB_SIZE, length), [special.eos]]
    return np.concatenate(parts).astype(np.int32)


def write(
    directory, name: str, streams: dict[str, np.ndarray], vocab_size=VOCAB_SIZE, num_shards=1
) -> None:
    metadata = {
        "source": name,
        "language": name,
        "instructions": False,
        "tokenizer": TOKENIZER.fingerprint,
        "vocab_size": vocab_size,
        "eos": SpecialTokens().eos,
        "splits": {
            split: write_split(
                directory / name / shards.VERSION, name, split, stream, vocab_size, num_shards
            )
            for split, stream in streams.items()
        },
    }
    shards.write_metadata(str(directory), name, metadata)


def write_split(folder, name, split, stream: np.ndarray, vocab_size, num_shards) -> dict:
    """Puts as many documents into each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.flatnonzero(stream == SpecialTokens().eos) + 1
    documents = np.split(stream, ends[ends < len(stream)])
    written = []
    for index, numbers in enumerate(np.array_split(np.arange(len(documents)), num_shards)):
        parts = [documents[i] for i in numbers]
        path = folder / shards.shard_name(name, split, index, num_shards)
        sizes = np.array(list(map(len, parts)))
        written.append(shards.write_shard(path, np.concatenate(parts), sizes, vocab_size))
    return shards.split_metadata(name, split, written)
