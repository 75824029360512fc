"""`numpy.random.default_rng([*prefix, row])` for many rows at once.

NumPy takes ten times as long to seed a generator as to draw a row's numbers from it. This is its
SeedSequence (O'Neill's seed_seq; a stream that NumPy promises to keep), over an array of rows.
"""

from collections.abc import Sequence

import numpy as np

_POOL = 4
_SHIFT = np.uint32(16)
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)


def generators(prefix: Sequence[int], rows: Sequence[int]) -> list[np.random.Generator]:
    """A generator for each row: that of `default_rng([*prefix, row])`.

    Args:
      prefix: non-negative integers.
      rows: non-negative integers.
    """
    if max(*prefix, *rows) >= 1 << 32:  # such a number is several words of entropy
        return [np.random.default_rng([*prefix, row]) for row in rows]
    state = _state([*(np.full(len(rows), word, np.uint32) for word in prefix), np.uint32(rows)])
    return [np.random.Generator(np.random.PCG64(_Seed(words))) for words in state]


class _Seed(np.random.bit_generator.ISeedSequence):
    """What PCG64 asks a SeedSequence for, already computed."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words, dtype=np.uint32):
        del n_words, dtype  # PCG64 takes four of uint64
        return self._words


class _Hash:
    """A hash of uint32 words whose constant changes with every word."""

    def __init__(self, constant: int, factor: int):
        self._constant, self._factor = constant, factor

    def __call__(self, word: np.ndarray) -> np.ndarray:
        word = word ^ np.uint32(self._constant)
        self._constant = self._constant * self._factor & 0xFFFFFFFF
        word = word * np.uint32(self._constant)
        return word ^ (word >> _SHIFT)


def _state(entropy: list[np.ndarray]) -> np.ndarray:
    """`SeedSequence(entropy).generate_state(4, np.uint64)` by row: uint64 [R, 4].

    Args:
      entropy: uint32 [R] each.
    """
    hashed = _Hash(_INIT_A, _MULT_A)
    first = entropy[:_POOL] + [np.zeros_like(entropy[0])] * (_POOL - len(entropy))
    pool = [hashed(word) for word in first]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mix(pool[target], hashed(pool[source]))
    for word in entropy[_POOL:]:
        pool = [_mix(target, hashed(word)) for target in pool]
    hashed = _Hash(_INIT_B, _MULT_B)
    words = np.stack([hashed(pool[i % _POOL]) for i in range(2 * _POOL)], axis=1)
    return words.astype("<u4").view("<u8").astype(np.uint64)


def _mix(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    mixed = _MIX_LEFT * left - _MIX_RIGHT * right
    return mixed ^ (mixed >> _SHIFT)
