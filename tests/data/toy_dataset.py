"""Writes token datasets of random tokens."""

import types

import numpy as np

from glm_jax.data import sources
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


def write(directory, name: str, streams: dict[str, np.ndarray], vocab_size=VOCAB_SIZE) -> None:
    counts = {
        split: {
            "tokens": len(stream),
            "documents": int((stream == SpecialTokens().eos).sum()),
        }
        for split, stream in streams.items()
    }
    size = sources.BLOCK_TOKENS
    blocks = {
        split: [stream[i : i + size] for i in range(0, len(stream), size)]
        for split, stream in streams.items()
    }
    metadata = {
        "source": name,
        "language": name,
        "tokenizer": TOKENIZER.fingerprint,
        "vocab_size": vocab_size,
        "splits": counts,
    }
    sources.write_source(str(directory), name, metadata, blocks)
