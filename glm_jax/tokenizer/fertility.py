"""How well a vocabulary fits a language."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import sentencepiece

_LINE_FEED = "<0x0A>"  # a token of its own in every vocabulary of ours, and no sign of a poor fit
_SPACE_MARK = "\u2581"


@dataclasses.dataclass(frozen=True)
class Fertility:
    """Measured on texts that the vocabulary was not trained on."""

    documents: int
    bytes: int  # UTF-8
    tokens_per_character: float
    tokens_per_word: float | None  # words between white space; None where words are not spaced
    bytes_per_token: float
    byte_tokens: float  # share of the tokens that are bytes of a character; without line feeds
    uncovered_characters: float  # share of the characters that have no piece; without line feeds


def measure_fertility(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str], *, spaced: bool
) -> Fertility:
    """Encodes `texts`, one or more.

    Args:
      spaced: there is white space between words.
    """
    tokens = np.zeros(processor.vocab_size(), np.int64)
    characters: Counter[str] = Counter()
    for text in texts:
        tokens += np.bincount(processor.encode_as_numpy(text), minlength=len(tokens))
        characters.update(text)
    size = sum(len(text.encode()) for text in texts)
    words = sum(len(text.split()) for text in texts)
    total = int(tokens.sum())
    return Fertility(
        documents=len(texts),
        bytes=size,
        tokens_per_character=round(total / characters.total(), 4),
        tokens_per_word=round(total / max(words, 1), 4) if spaced else None,
        bytes_per_token=round(size / total, 4),
        byte_tokens=round(_byte_tokens(processor, tokens) / total, 6),
        uncovered_characters=round(_uncovered(processor, characters) / characters.total(), 6),
    )


def _byte_tokens(processor: sentencepiece.SentencePieceProcessor, tokens: np.ndarray) -> int:
    is_byte = np.array([processor.is_byte(i) for i in range(len(tokens))])
    is_byte[processor.piece_to_id(_LINE_FEED)] = False
    return int(tokens[is_byte].sum())


def _uncovered(processor: sentencepiece.SentencePieceProcessor, characters: Counter[str]) -> int:
    pieces = set(processor.id_to_piece(list(range(processor.vocab_size()))))
    covered = {piece for piece in pieces if len(piece) == 1} - {_SPACE_MARK}
    covered |= {"\n", " "} if _SPACE_MARK in pieces else {"\n"}
    return sum(count for letter, count in characters.items() if letter not in covered)
