"""Token datasets on disk: one TFDS array_record dataset per source, read without TensorFlow.

A split of a source is one stream of tokens, `[CLS] document eos [CLS] document eos ..`, cut into
records of BLOCK_TOKENS tokens (the last one is shorter). So the record and the place of any token
are arithmetic, and a window touches one or two records.
"""

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from glm_jax.config import DataConfig
from glm_jax.errors import UserError
from glm_jax.tokenizer import Tokenizer

SPLITS = ("train", "validation")
VERSION = "1.0.0"
BLOCK_TOKENS = 4096
TOKENIZER_DIR = "tokenizer"


class _TokenBlocks(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of one source; `tfds.builder_from_directory` reads what it wrote."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # TFDS would search it for checksums of downloads; there are none

    def __init__(self, *, name: str, data_dir: str, metadata: dict, splits: Mapping):
        self.name = name
        self._metadata = metadata
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"tokens": tokens}),
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, download_manager):
        del download_manager  # nothing is downloaded
        return {name: self._generate_examples(blocks) for name, blocks in self._splits.items()}

    def _generate_examples(self, blocks: Iterable[np.ndarray]):
        for index, block in enumerate(blocks):
            yield index, {"tokens": block}


def write_source(
    directory: str, name: str, metadata: dict, splits: Mapping[str, Iterable[np.ndarray]]
) -> None:
    """Writes `directory/name/VERSION` from the token blocks (int32) of each split.

    Args:
      metadata: JSON values; `TokenStream` needs language, tokenizer (its fingerprint), vocab_size
        and, by split, splits.documents and splits.tokens.
      splits: every block holds BLOCK_TOKENS tokens, except the last of a split.
    """
    tfds.disable_progress_bar()
    builder = _TokenBlocks(name=name, data_dir=directory, metadata=metadata, splits=splits)
    # TFDS announces a download and makes a folder for it; there is nothing to download.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)


class TokenStream:
    """Random access to the tokens of one split of one source. Picklable.

    Attributes:
      name: of the source.
      language: of its documents.
      length: tokens in the stream.
      documents: documents in the stream.
      fingerprint: of the tokenizer that made it.
    """

    def __init__(self, directory: str, name: str, split: str):
        """Opens and checks `directory/VERSION`.

        Raises:
          UserError: no finished dataset there, or a shard that is missing, damaged at its end, or
            has another number of records than the dataset says.
        """
        self._directory = pathlib.Path(directory) / VERSION
        self._split = split
        try:
            builder = tfds.builder_from_directory(str(self._directory))
            metadata = builder.info.metadata
            counts = metadata["splits"][split]
            self.name = name
            self.language = metadata["language"]
            self.fingerprint = metadata["tokenizer"]
            self.vocab_size = metadata["vocab_size"]
            self.instructions = metadata.get("instructions", False)
            self.length = counts["tokens"]
            self.documents = counts["documents"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._directory}: not a token dataset with a split {split!r} "
                f"({type(error).__name__}: {error}); python -m glm_jax.prepare writes one"
            ) from error
        _check_shards(builder.info.splits[split], -(-self.length // BLOCK_TOKENS))
        self._blocks = builder.as_data_source(split)

    def read(self, offset: int, count: int) -> np.ndarray:
        """Reads `count` tokens from `offset` on: int32 [count]. The stream starts over at its end.

        Raises:
          UserError: a damaged record, or a token id outside the vocabulary.
        """
        parts = []
        while count > 0:
            block, start = divmod(offset % self.length, BLOCK_TOKENS)
            part = self._read_block(block)[start : start + count]
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return np.concatenate(parts)

    def _read_block(self, index: int) -> np.ndarray:
        where = f"{self._directory}: block {index} of {self._split}"
        try:
            tokens = self._blocks[index]["tokens"]
        except RuntimeError as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        expected = min(BLOCK_TOKENS, self.length - index * BLOCK_TOKENS)
        if len(tokens) != expected:
            raise UserError(f"{where} holds {len(tokens)} tokens, expected {expected}")
        largest = int(tokens.view(np.uint32).max())  # a negative id counts as a huge one
        if largest >= self.vocab_size:
            raise UserError(f"{where} holds token id {largest}, the vocabulary {self.vocab_size}")
        return tokens


def _check_shards(split, expected_records: int) -> None:
    found = 0
    for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
        if not path.exists():
            raise UserError(f"{path}: this shard of the dataset is missing")
        try:
            records = array_record_module.ArrayRecordReader(str(path)).num_records()
        except RuntimeError as error:
            raise UserError(f"{path}: this shard is damaged: {error}") from error
        if records != expected:
            raise UserError(f"{path}: holds {records} records, dataset_info.json says {expected}")
        found += records
    if found != expected_records:
        raise UserError(
            f"{split.filepaths[0].parent}: split {split.name} holds {found} records, "
            f"metadata.json says {expected_records}"
        )


def open_sources(data: DataConfig, tokenizer: Tokenizer, split: str) -> dict[str, TokenStream]:
    """Opens one split of every configured source, by name in sorted order.

    Raises:
      UserError: no source is configured, one is missing or damaged, or was made with another
        tokenizer.
    """
    streams = {}
    for name in sorted(data.sources):
        directory = data.sources[name].dir or str(pathlib.Path(data.dir) / name)
        if not pathlib.Path(directory).is_dir():
            raise UserError(
                f"config.data.sources.{name}: {directory} is not a directory; "
                f"{data.dir} holds {', '.join(sources_in(data.dir)) or 'no source'}"
            )
        streams[name] = TokenStream(directory, name, split)
        if streams[name].fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"config.data.sources.{name}: {directory} was made with tokenizer "
                f"{streams[name].fingerprint}, this is tokenizer {tokenizer.fingerprint}"
            )
    return streams


def sources_in(directory: str) -> list[str]:
    """Names of the sources that a folder of `prepare` holds, sorted."""
    return sorted(path.parent.name for path in pathlib.Path(directory).glob(f"*/{VERSION}"))
