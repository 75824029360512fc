"""Finds training texts that hold a piece of an evaluation text (GPT-3, arXiv 2005.14165, app. C).

A text is contaminated that shares `ngram` consecutive units with an evaluation text; see
`text_units` for what a unit is. 13 characters say less than 13 words, so more Chinese
texts share them by chance: quotations, names of laws and offices. A larger `ngram` spares these.
"""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from glm_jax.documents import check_readable, chunks
from glm_jax.documents.document import RecordError, string_field
from glm_jax.errors import UserError
from glm_jax.text_units import find_units
from glm_jax.tokenizer import BLANK

DEFAULT_NGRAM = 13
MIN_UNITS = 8
"""Of an evaluation text that is shorter than `ngram`: GPT-3 saw chance matches below it."""

_CHUNK_BYTES = 1 << 20
_TABLE_SLOTS = 16  # per n-gram
_BASE = np.uint64(0xD1342543DE82EF95)  # odd: all 64 bits of a hash depend on all units


@dataclasses.dataclass(frozen=True)
class EvaluationCounts:
    """What evaluation texts gave; for the report of a preparation."""

    texts: int  # that are looked for
    ngrams: int  # different ones
    too_short: int  # texts of fewer than MIN_UNITS units, not looked for


class Decontaminator:
    """The n-grams of evaluation texts, to be looked for in other texts. Instances pickle.

    Attributes:
      ngram: consecutive units that make a match; an evaluation text of at least `MIN_UNITS` but
        fewer is matched as a whole.
      counts: of the evaluation texts.
      fingerprint: SHA-256 of what is looked for; equal ones find the same texts.
    """

    def __init__(self, texts: Iterable[str], ngram: int = DEFAULT_NGRAM):
        """Collects the n-grams of `texts`.

        Raises:
          UserError: `ngram` is not positive, or no text is long enough.
        """
        if ngram < 1:
            raise UserError(f"decontamination n-grams must have 1 unit or more, got {ngram}")
        self.ngram = ngram
        chosen, too_short = self._chosen(texts)
        if not chosen:
            raise UserError(
                f"decontamination: no evaluation text has {min(ngram, MIN_UNITS)} words or "
                f"characters ({too_short} are shorter)"
            )
        self._hashes = _ngram_hashes(chosen, ngram)
        # One pass over a text looks for the beginnings of all n-grams, whatever their lengths.
        self._shortest = min(self._hashes)
        self._beginnings = _beginning_hashes(chosen, ngram, self._shortest)
        self._table = _table(self._beginnings)
        self.counts = EvaluationCounts(len(chosen), sum(map(len, self._hashes.values())), too_short)
        self.fingerprint = _fingerprint(ngram, self._hashes)

    @classmethod
    def from_files(
        cls, paths: Sequence[str | os.PathLike], ngram: int = DEFAULT_NGRAM
    ) -> "Decontaminator":
        """Collects the n-grams of evaluation files.

        Args:
          paths: whatever `read_documents` reads, and the files of `evaluate`; see
            `evaluation_texts`.

        Raises:
          UserError: "file:line: reason" for a faulty record, "file: reason" for a file that cannot
            be read; or see above.
        """
        for path in paths:
            check_readable(path)
        return cls((text for path in paths for text in _read(path)), ngram)

    def is_contaminated(self, text: str) -> bool:
        """Whether `text` holds one of the n-grams; `first_matches` is faster for short texts."""
        return self.first_matches([text])[0] is not None

    def first_matches(self, texts: Sequence[str]) -> list[str | None]:
        """For each text the first piece of it, composed, that is one of the n-grams, or None.

        A contaminated text is one with a match. About 400,000 characters at once are good:
        20 MB/s of either language on one core, and of single documents of 100 characters 1.4.
        """
        texts = list(map(_composed, texts))
        joined = "\n".join(texts)
        units = find_units(joined)
        matches: list[str | None] = [None] * len(texts)
        ends = np.cumsum([len(text) + 1 for text in texts])
        for first, last in self._places(units.values):
            start, end = units.starts[first], units.ends[last]
            index = ends.searchsorted(start, side="right")
            if end <= ends[index] and matches[index] is None:
                matches[index] = joined[start:end]
        return matches

    def _places(self, values: np.ndarray) -> list[tuple[int, int]]:
        """First and last unit of every n-gram, in order; some may lie across two texts."""
        beginnings = self._find_beginnings(values)
        places = []
        for length, known in self._hashes.items():
            starts = beginnings[beginnings + length <= len(values)]
            hashes = _hash_runs(lambda k, starts=starts: values[starts + k], length)
            places += [(start, start + length - 1) for start in starts[_are_in(hashes, known)]]
        return sorted(places)

    def _find_beginnings(self, values: np.ndarray) -> np.ndarray:
        """Where an n-gram may begin; fast, as it is asked of every text."""
        hashes = _window_hashes(values, self._shortest)
        candidates = self._table[_slots(hashes, len(self._table))].nonzero()[0]
        return candidates[_are_in(hashes[candidates], self._beginnings)]

    def _chosen(self, texts: Iterable[str]) -> tuple[list[np.ndarray], int]:
        """The units of the texts as values, uint64 [n] each, and how many texts are too short."""
        chosen, too_short = [], 0
        for text in texts:
            values = find_units(_composed(text)).values
            if len(values) < min(self.ngram, MIN_UNITS):
                too_short += 1
            else:
                chosen.append(values)
        return chosen, too_short


def evaluation_texts(fields: Mapping[str, object]) -> list[str]:
    """What a training text must not hold, from a record of an evaluation file.

    A `text`, with its `answer`, or the right one of its `choices` by `label`, in the place of its
    blank; around the blank where neither is given. Or a `prompt`, with its `answer` after it.

    Raises:
      RecordError: no such field, or it is no string.
    """
    text = string_field(fields, "prompt" if fields.get("prompt") is not None else "text")
    answer = _answer(fields)
    if not BLANK.search(text):
        parts = [text if answer is None else f"{text}\n{answer}"]
    elif answer is None:
        parts = BLANK.split(text)[::2]
    else:
        parts = [BLANK.sub(lambda blank: blank[0].removesuffix(blank[1]) + answer, text)]
    return [part for part in parts if part.strip()]


def _answer(fields: Mapping[str, object]) -> str | None:
    if fields.get("answer") is not None:
        return string_field(fields, "answer")
    choices, label = fields.get("choices"), fields.get("label")
    if choices is None:
        return None
    if not isinstance(choices, list) or type(label) is not int or not 0 <= label < len(choices):
        raise RecordError("the field 'label' must be an index into the list 'choices'")
    return string_field({"choices": choices[label]}, "choices")


def _composed(text: str) -> str:
    """A letter and its accent as one character, as most texts have it."""
    return unicodedata.normalize("NFC", text)


def _read(path: str | os.PathLike) -> Iterator[str]:
    for chunk in chunks(path, _CHUNK_BYTES):
        for line, record in chunk.records():
            try:
                yield from evaluation_texts(chunk.fields(record))
            except RecordError as error:
                raise UserError(f"{chunk.path}:{line}: {error}") from error


def _ngram_hashes(texts: list[np.ndarray], ngram: int) -> dict[int, np.ndarray]:
    """By length, the hashes of the n-grams, ascending; shorter texts are one n-gram."""
    parts: dict[int, list[np.ndarray]] = {}
    for values in texts:
        length = min(ngram, len(values))
        parts.setdefault(length, []).append(_window_hashes(values, length))
    return {length: np.unique(np.concatenate(parts[length])) for length in sorted(parts)}


def _beginning_hashes(texts: list[np.ndarray], ngram: int, length: int) -> np.ndarray:
    """The hashes of the first `length` units of the n-grams, ascending."""
    parts = []
    for values in texts:
        count = len(values) - min(ngram, len(values)) + 1
        parts.append(_window_hashes(values, length)[:count])
    return np.unique(np.concatenate(parts))


def _fingerprint(ngram: int, ngrams: dict[int, np.ndarray]) -> str:
    digest = hashlib.sha256(f"{ngram}".encode())
    for length, hashes in ngrams.items():
        digest.update(f" {length} {len(hashes)} ".encode() + hashes.astype("<u8").tobytes())
    return digest.hexdigest()


def _window_hashes(values: np.ndarray, length: int) -> np.ndarray:
    """Hashes of all runs of `length` values, uint64 [n] -> [n - length + 1]."""
    count = max(0, len(values) - length + 1)
    return _hash_runs(lambda k: values[k : k + count], length)


def _hash_runs(values_at: Callable[[int], np.ndarray], length: int) -> np.ndarray:
    """Hashes of runs of `length` values, of which `values_at(k)` are number k; uint64 [runs]."""
    hashes = values_at(0).copy()
    for k in range(1, length):
        hashes *= _BASE
        hashes += values_at(k)
    return hashes


def _table(hashes: np.ndarray) -> np.ndarray:
    """A bool for each value of the top bits: whether one of the hashes has them."""
    table = np.zeros(1 << (_TABLE_SLOTS * len(hashes)).bit_length(), bool)
    table[_slots(hashes, len(table))] = True
    return table


def _slots(hashes: np.ndarray, size: int) -> np.ndarray:
    return hashes >> np.uint64(65 - size.bit_length())


def _are_in(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which values are among those that ascend; bool [n]."""
    return ascending[ascending[:-1].searchsorted(values)] == values
