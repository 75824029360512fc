"""Encoded documents with their keys: sorted, cut by ranges of keys, put together, stored."""

import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.folders import sync

PLACES = 1 << 64
"""Places are the integers below: a document's place in the order is the first half of its key."""

# A key is 128 bits; as two integers it sorts fast.
TABLE = np.dtype(
    [
        ("place", np.uint64),
        ("rest", np.uint64),
        ("tokens", np.uint32),
        ("characters", np.uint32),
        ("bytes", np.uint32),
        ("has_answer", np.bool_),
    ]
)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Encoded(NamedTuple):
    """Documents `[CLS] text eos` or `[CLS] prompt [MASK] answer eos`, in the order of their keys.

    Without the [CLS] in a family that has none.
    """

    table: np.ndarray  # TABLE [documents]; the counts are of text and answer together
    tokens: np.ndarray  # uint16 or int32 [sum of table["tokens"]]

    def between(self, start: int, end: int) -> "Encoded":
        """The documents with places in [start, end)."""
        first, last = (_rank(self.table["place"], place) for place in (start, end))
        skipped = int(self.table["tokens"][:first].sum())
        taken = int(self.table["tokens"][first:last].sum())
        return Encoded(self.table[first:last], self.tokens[skipped : skipped + taken])

    def take(self, order: np.ndarray) -> "Encoded":
        """The documents with these numbers, in this order."""
        ends = np.cumsum(self.table["tokens"], dtype=np.int64)
        begins = ends - self.table["tokens"]
        parts = [self.tokens[begins[i] : ends[i]] for i in order]
        return Encoded(self.table[order], np.concatenate(parts, dtype=self.tokens.dtype))


def key(seed: int, text: bytes, answer: bytes | None) -> bytes:
    """128 bits that stand for the content of a document; equal contents have equal keys."""
    content = _seeded(seed).copy()
    content.update(text)
    if answer is not None:
        content.update(b"\xff")  # in no UTF-8
        content.update(answer)
    return content.digest()


@functools.cache
def _seeded(seed: int):
    """The hash of nothing; to copy it takes half the time of making one."""
    return hashlib.blake2b(digest_size=16, salt=seed.to_bytes(16, "little"))


def by_key(table: np.ndarray) -> np.ndarray:
    """The order of the keys: int64 [documents]."""
    return np.lexsort((table["rest"], table["place"]))


def shuffled(pieces: Sequence[Encoded], drop_copies: bool) -> tuple[Encoded, int]:
    """All documents in the order in which they are trained on, and how many of them are copies.

    Copies of a document would stand beside each other in the order of the keys, so what decides is
    a hash of the key and the number of the copy.
    """
    table = np.concatenate([piece.table for piece in pieces])
    order = by_key(table)
    place, rest = table["place"][order], table["rest"][order]
    is_copy = np.zeros(len(table), bool)
    is_copy[1:] = (place[1:] == place[:-1]) & (rest[1:] == rest[:-1])
    index = np.arange(len(table))
    copy = index - np.maximum.accumulate(np.where(is_copy, 0, index))
    chosen = np.argsort(_mix(rest + copy.astype(np.uint64) * _GOLDEN), kind="stable")
    if drop_copies:
        chosen = chosen[~is_copy[chosen]]
    tokens = np.concatenate([piece.tokens for piece in pieces])
    return Encoded(table, tokens).take(order[chosen]), int(is_copy.sum())


def save(directory: pathlib.Path, name: str, documents: Encoded) -> None:
    """Writes the documents for `load`; about two bytes a token and 29 a document."""
    for field, array in documents._asdict().items():
        path = directory / f"{name}.{field}.npy"
        np.save(path, array)
        sync(path)


def load(directory: pathlib.Path, name: str) -> Encoded | None:
    """The documents as maps of their files, of which only what is used is read; None: no such."""
    paths = [directory / f"{name}.{field}.npy" for field in Encoded._fields]
    if not paths[0].exists():
        return None
    return Encoded(*(np.load(path, mmap_mode="r") for path in paths))


def _rank(places: np.ndarray, place: int) -> int:
    return len(places) if place >= PLACES else int(np.searchsorted(places, np.uint64(place)))


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
