"""From a chunk of an input to encoded documents: the work of every worker."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from glm_jax.data.shards import token_dtype
from glm_jax.decontamination import Decontaminator
from glm_jax.documents import Chunk, Counts, Document, documents_of
from glm_jax.preparation.encoded import TABLE, Encoded, by_key, key
from glm_jax.preparation.options import Options
from glm_jax.tokenizer import Tokenizer

_BATCH_CHARACTERS = 1 << 20


class EncodedChunk(NamedTuple):
    """The documents of a chunk by language, and what was met in reading it."""

    by_language: dict[str, Encoded]
    counts: Counts
    contaminated: int  # documents left out


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes chunks as the options say. Picklable."""

    tokenizer: Tokenizer
    options: Options
    decontaminator: Decontaminator | None = None
    num_threads: int = 1

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """The encoded documents of a chunk, in the order of their keys.

        Raises:
          UserError: see `documents_of`.
        """
        counts = Counts()
        documents = list(documents_of(chunk, self.options.on_error, counts))
        clean = self._without_contamination(documents)
        by_language = {
            language: self._encode(group) for language, group in self._by_language(clean).items()
        }
        return EncodedChunk(by_language, counts, len(documents) - len(clean))

    def _without_contamination(self, documents: list[Document]) -> list[Document]:
        if self.decontaminator is None:
            return documents
        clean = []
        for batch in _batches(documents):
            matches = self.decontaminator.first_matches([_content(d) for d in batch])
            clean += [d for d, match in zip(batch, matches, strict=True) if match is None]
        return clean

    def _by_language(self, documents: Iterable[Document]) -> dict[str, list[Document]]:
        groups: dict[str, list[Document]] = {}
        for document in documents:
            name = document.language if self.options.language == "auto" else self.options.language
            groups.setdefault(name, []).append(document)
        return groups

    def _encode(self, documents: list[Document]) -> Encoded:
        contents = list(map(_utf8, documents))
        table = np.zeros(len(documents), TABLE)
        keys = b"".join(key(self.options.seed, *content) for content in contents)
        pairs = np.frombuffer(keys, ">u8").reshape(-1, 2)
        table["place"], table["rest"] = pairs.T
        table["characters"] = [len(d.text) + len(d.answer or "") for d in documents]
        table["bytes"] = [len(text) + len(answer or b"") for text, answer in contents]
        table["has_answer"] = [answer is not None for _, answer in contents]
        order = by_key(table)
        table = table[order]
        tokens, table["tokens"] = self._tokens([documents[i] for i in order])
        return Encoded(table, tokens)

    def _tokens(self, documents: list[Document]) -> tuple[np.ndarray, list[int]]:
        """The tokens of all documents, joined, and how many each has."""
        answers = [d.answer for d in documents if d.answer is not None]
        ids = self.tokenizer.encode_batch([d.text for d in documents] + answers, self.num_threads)
        answer_ids = iter(ids[len(documents) :])
        special = self.tokenizer.special
        start, mask, eos = (
            np.array(symbols, np.int32)
            for symbols in (special.start, [special.mask], [special.eos])
        )
        parts, sizes = [], []
        for document, text_ids in zip(documents, ids, strict=False):
            parts += (start, text_ids)
            size = len(start) + len(text_ids) + 1
            if document.answer is not None:
                parts += (mask, answer := next(answer_ids))
                size += 1 + len(answer)
            parts.append(eos)
            sizes.append(size)
        dtype = token_dtype(self.tokenizer.vocab_size)
        return np.concatenate(parts, dtype=dtype, casting="unsafe"), sizes


def _batches(documents: list[Document]) -> Iterator[list[Document]]:
    """Of about as many characters as the decontaminator likes at a time."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _content(document: Document) -> str:
    return document.text if document.answer is None else f"{document.text}\n{document.answer}"


def _utf8(document: Document) -> tuple[bytes, bytes | None]:
    answer = document.answer
    return document.text.encode(), None if answer is None else answer.encode()
