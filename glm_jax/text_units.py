"""The units in which texts are compared: words, and characters where words are not spaced.

Units are lower-cased words, and single characters of Chinese and Japanese, which write no spaces:
what a word is would depend on a segmenter, and a segmenter on the text around it. Punctuation,
white space and the forms of a character (full-width, circled) do not count. A letter and an accent
that follows it are not one character here: compose them before (NFC).
"""

import functools
import re
import unicodedata
from typing import NamedTuple

import numpy as np

_SEPARATOR, _LETTER, _CHARACTER = 0, 1, 2
_CHARACTERS = (
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_CODE_POINTS = 0x323B0  # those beyond are no letters

# A text is done in pieces, so that the powers stay in the cache of the processor.
_PIECE_CHARACTERS = 1 << 14
_BETWEEN_WORDS = re.compile(r"\W")

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Units(NamedTuple):
    """The units of a text in order, [n] each."""

    values: np.ndarray  # uint64, hashes, the same in every process
    starts: np.ndarray  # int64, in the characters of the text
    ends: np.ndarray


def find_units(text: str) -> Units:
    """The units of a text."""
    pieces, start = [], 0
    while start < len(text):
        cut = _BETWEEN_WORDS.search(text, start + _PIECE_CHARACTERS)
        end = cut.start() if cut else len(text)
        values, starts, ends = _units_of_piece(text[start:end])
        pieces.append(Units(values, starts + start, ends + start))
        start = end
    if len(pieces) == 1:
        return pieces[0]
    empty = np.zeros(0, np.int64)
    pieces.append(Units(empty.astype(np.uint64), empty, empty))
    return Units(*map(np.concatenate, zip(*pieces, strict=True)))


def _units_of_piece(text: str) -> Units:
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    folded = _folded().take(code_points, mode="clip")
    starts, ends = _bounds(_kinds().take(folded, mode="clip"))
    # A word is sum of c_k base**k over its characters c_k, mixed so that its bits look random.
    powers, inverses = _powers(max(1 << len(text).bit_length(), 2 * _PIECE_CHARACTERS))
    sums = np.zeros(len(text) + 1, np.uint64)
    (folded * powers[: len(text)]).cumsum(out=sums[1:])
    values = (sums[ends] - sums[starts]) * inverses[starts]
    values ^= values >> np.uint64(32)
    values *= _MIX
    values ^= values >> np.uint64(29)
    return Units(values, starts, ends)


def _bounds(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where units start and end: a run of letters is one, each character is one."""
    letters, characters = kinds == _LETTER, kinds == _CHARACTER
    starts, ends = letters.copy(), letters.copy()
    starts[1:] &= ~letters[:-1]
    ends[:-1] &= ~letters[1:]
    return (starts | characters).nonzero()[0], (ends | characters).nonzero()[0] + 1


@functools.cache
def _folded() -> np.ndarray:
    """The code point that stands for each: lower case, NFKC where that is one character; uint32.

    The last one stands for all beyond.
    """
    folded = np.arange(_CODE_POINTS, dtype=np.uint32)
    for code_point in range(_CODE_POINTS - 1):
        character = chr(code_point)
        form = unicodedata.normalize("NFKC", character).lower()
        if form != character and len(form) == 1:
            folded[code_point] = ord(form)
    return folded


@functools.cache
def _kinds() -> np.ndarray:
    """The kind of every code point, uint8."""
    kinds = np.fromiter((chr(i).isalnum() for i in range(_CODE_POINTS)), np.uint8, _CODE_POINTS)
    for first, last in _CHARACTERS:
        kinds[first : last + 1] *= _CHARACTER
    return kinds


@functools.lru_cache(2)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`_BASE**k` modulo 2**64 for k from 0 to count - 1, and their inverses."""
    powers, inverses = (
        np.cumprod(np.r_[np.uint64(1), np.full(count - 1, base, np.uint64)])
        for base in (_BASE, _BASE_INVERSE)
    )
    return powers, inverses
