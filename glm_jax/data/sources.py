"""Token datasets read at random: one TFDS array_record dataset per source, without TensorFlow."""

import hashlib
import itertools
from bisect import bisect_right

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from glm_jax.config import DataConfig
from glm_jax.data.shards import BLOCK_TOKENS, VERSION, Record, parse_record
from glm_jax.data.verify import check_shards
from glm_jax.errors import UserError
from glm_jax.tokenizer import Tokenizer


class TokenStream:
    """Random access to the tokens of one split of one source. Picklable.

    Attributes:
      name: of the source.
      language: of its documents.
      instructions: whether they are `[CLS] prompt [MASK] answer eos`, not plain text.
      length: tokens in the stream.
      documents: documents in the stream.
      fingerprint: of the tokenizer that made it.
      vocab_size: of that tokenizer.
      digest: SHA-256 over those of the shards, hexadecimal; equal for equal streams.
    """

    def __init__(self, directory: str, name: str, split: str, verify: str = "sha256"):
        """Opens and checks `directory/VERSION`, here or in a bucket.

        Args:
          verify: how shards are compared with the metadata; one of `verify.LEVELS`.

        Raises:
          UserError: no finished dataset there, or a shard that is missing or not the one that was
            written; see `check_shards`.
        """
        self._directory = epath.Path(directory) / VERSION
        self._split = split
        try:
            builder = tfds.builder_from_directory(self._directory)
            metadata = builder.info.metadata
            shards = metadata["splits"][split]["shards"]
            self.name = name
            self.language = metadata["language"]
            self.instructions = metadata["instructions"]
            self.fingerprint = metadata["tokenizer"]
            self.vocab_size = metadata["vocab_size"]
            self._eos = metadata["eos"]
            self._token_ends = _running_sums(shards, "tokens")
            self._record_ends = _running_sums(shards, "records")
            self._document_ends = _running_sums(shards, "documents")
            self.length = self._token_ends[-1]
            self.documents = self._document_ends[-1]
            self.digest = digest(shards)
        except (ImportError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"{self._directory}: not a token dataset with a split {split!r} "
                f"({type(error).__name__}: {error}); python -m glm_jax.prepare writes one"
            ) from error
        _check_agreement(self._directory, builder.info.splits[split].shard_lengths, shards)
        check_shards(self._directory, shards, verify)
        self._records = builder.as_data_source(split).data_source

    def read(self, offset: int, count: int) -> np.ndarray:
        """Reads `count` tokens from `offset` on: int32 [count]. The stream starts over at its end.

        Raises:
          UserError: a damaged record, or a token id outside the vocabulary.
        """
        parts = []
        while count > 0:
            record, start, size = self._place(offset % self.length)
            part = self._read_record(record, size).tokens[start : start + count]
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return np.concatenate(parts, dtype=np.int32)

    def document_at(self, offset: int) -> int:
        """Number in the split, from 0, of the document of the token at `offset`; reads one record.

        Raises:
          UserError: see `read`.
        """
        offset %= self.length
        record, start, size = self._place(offset)
        shard = bisect_right(self._token_ends, offset)
        before = self._document_ends[shard - 1] if shard else 0
        found = self._read_record(record, size)
        ended = np.count_nonzero(found.tokens[:start] == self._eos)
        return before + found.document + ended

    def _place(self, offset: int) -> tuple[int, int, int]:
        """Of the token at `offset` the record, the place in it, and the size of the record."""
        shard = bisect_right(self._token_ends, offset)
        begin = self._token_ends[shard - 1] if shard else 0
        first_record = self._record_ends[shard - 1] if shard else 0
        record, start = divmod(offset - begin, BLOCK_TOKENS)
        size = min(BLOCK_TOKENS, self._token_ends[shard] - begin - record * BLOCK_TOKENS)
        return first_record + record, start, size

    def _read_record(self, index: int, expected: int) -> Record:
        where = f"{self._directory}: record {index} of {self._split}"
        try:
            record = parse_record(self._records[index], self.vocab_size)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        tokens = record.tokens
        if len(tokens) != expected:
            raise UserError(f"{where} holds {len(tokens)} tokens, expected {expected}")
        unsigned = tokens.view(f"u{tokens.itemsize}")  # a negative id counts as a huge one
        if (largest := int(unsigned.max())) >= self.vocab_size:
            raise UserError(f"{where} holds token id {largest}, the vocabulary {self.vocab_size}")
        return record


def digest(shards: list[dict]) -> str:
    """SHA-256 over those of the shards, hexadecimal; see `shards.write_shard`."""
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def _running_sums(shards: list[dict], count: str) -> list[int]:
    return list(itertools.accumulate(shard[count] for shard in shards))


def _check_agreement(folder: epath.Path, shard_lengths: list[int], shards: list[dict]) -> None:
    for length, shard in itertools.zip_longest(shard_lengths, shards):
        records = -(-shard["tokens"] // BLOCK_TOKENS) if shard else None
        if not shard or not length == records == shard["records"]:
            raise UserError(
                f"{folder}: dataset_info.json says {length} records in a shard of which "
                f"metadata.json says {shard}"
            )


def open_sources(data: DataConfig, tokenizer: Tokenizer, split: str) -> dict[str, TokenStream]:
    """Opens one split of every configured source, by name in sorted order.

    Raises:
      UserError: no source is configured, one is missing or damaged, or was made with another
        tokenizer.
    """
    streams = {}
    for name in sorted(data.sources):
        directory = data.sources[name].dir or str(epath.Path(data.dir) / name)
        if not epath.Path(directory).is_dir():
            raise UserError(
                f"config.data.sources.{name}: {directory} is not a directory; "
                f"{data.dir} holds {', '.join(sources_in(data.dir)) or 'no source'}"
            )
        streams[name] = TokenStream(directory, name, split, data.verify)
        if streams[name].fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"config.data.sources.{name}: {directory} was made with tokenizer "
                f"{streams[name].fingerprint}, this is tokenizer {tokenizer.fingerprint}"
            )
    return streams


def sources_in(directory: str) -> list[str]:
    """Names of the sources that a folder of `prepare` holds, sorted."""
    return sorted(path.parent.name for path in epath.Path(directory).glob(f"*/{VERSION}"))
