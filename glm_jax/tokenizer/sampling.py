"""The text that a vocabulary is trained on: how much of each language, and the memory it takes."""

import heapq
import random
from collections.abc import Iterable, Mapping

from glm_jax.errors import UserError
from glm_jax.language import LANGUAGES
from glm_jax.tokenizer.memory import available_memory

HELD_OUT_SHARE = 0.02

# Measured on samples of 1 to 17 MB with 16,000 pieces: SentencePiece took 50 bytes a byte of
# Chinese, every line of which is one long word to it, and 6 of English, whose words repeat; the
# texts themselves are at most two bytes a byte in Python.
_HELD_BYTES = 2
_TRAINING_BYTES = {"en": 6, "zh": 50}
_PROGRAM_BYTES = 60_000_000

# What text compresses to is a third to a fifth; JSON and tables hold more than text.
_MOST_COMPRESSION = 8
_PLAIN = (".jsonl", ".txt")


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
        while self._heap and self.num_bytes - self._heap[0][2] >= self._max_bytes:
            self.num_bytes -= heapq.heappop(self._heap)[2]

    def texts(self) -> list[str]:
        """In random order."""
        return [text for _, text, _ in sorted(self._heap)]


def language_budgets(max_bytes: int, shares: Iterable[str]) -> dict[str, int]:
    """UTF-8 bytes to sample of each language.

    Args:
      max_bytes: of each language where the shares are equal.
      shares: "LANGUAGE=SHARE" each, from 0 to 1; the rest goes to the languages not named, in equal
        parts.

    Raises:
      UserError: another form or language, or the shares do not add up to 1.
    """
    given: dict[str, float] = {}
    for entry in shares:
        language, _, share = entry.partition("=")
        try:
            given[language] = float(share)
        except ValueError:
            given[language] = -1.0
        if language not in LANGUAGES or not 0 <= given[language] <= 1:
            raise UserError(f"--language_share must be like zh=0.6, got {entry!r}")
    rest, others = 1 - sum(given.values()), len(LANGUAGES) - len(given)
    if rest < -1e-9 or (not others and rest > 1e-9):
        raise UserError(f"--language_share: the shares add up to {1 - rest:g}, not to 1")
    return {
        language: round(len(LANGUAGES) * max_bytes * given.get(language, rest / max(others, 1)))
        for language in LANGUAGES
    }


def memory_needed(num_bytes: Mapping[str, int]) -> int:
    """An upper estimate of the bytes of memory to hold a sample and to train on it, by language."""
    return _PROGRAM_BYTES + sum(
        size * (_HELD_BYTES + _TRAINING_BYTES[language]) for language, size in num_bytes.items()
    )


def most_text(input_bytes: Mapping[str, int]) -> int:
    """Bytes of text that inputs of these sizes on disk hold at most.

    Those that are compressed, or may be, are taken to hold eight times their size.
    """
    return sum(
        size * (1 if path.endswith(_PLAIN) else _MOST_COMPRESSION)
        for path, size in input_bytes.items()
    )


def check_memory(budgets: Mapping[str, int], max_bytes: int, text_bytes: int) -> str:
    """Says what the largest sample takes.

    Args:
      budgets: see `language_budgets`.
      max_bytes: of which they were made.
      text_bytes: that there are at most, in any language; see `most_text`.

    Raises:
      UserError: more than is available; a `max_bytes` that fits is named.
    """
    full = memory_needed(budgets)
    budgets = {language: min(size, text_bytes) for language, size in budgets.items()}
    needed, available = memory_needed(budgets), available_memory()
    if needed > available:
        room = max(0.0, (available - _PROGRAM_BYTES) / (full - _PROGRAM_BYTES))
        raise UserError(
            f"--max_bytes={max_bytes} may need {needed / 1e9:.1f} GB of memory to train on, "
            f"{available / 1e9:.1f} GB are available; --max_bytes={int(max_bytes * room)} would fit"
        )
    sizes = ", ".join(f"{size / 1e6:.4g} MB {language}" for language, size in budgets.items())
    return (
        f"sampling up to {sizes}: training may need {needed / 1e9:.2g} GB of memory, "
        f"{available / 1e9:.1f} GB are available"
    )


def hold_out(texts: list[str]) -> tuple[list[str], list[str]]:
    """A sample in two parts: to train on, and a small one to measure on, empty of a single text."""
    count = max(1, round(HELD_OUT_SHARE * len(texts))) if len(texts) > 1 else 0
    return texts[count:], texts[:count]
