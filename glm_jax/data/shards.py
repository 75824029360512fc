"""The files of a token dataset: array_record shards and the metadata with which TFDS reads them.

A split of a source is one stream of tokens, `[CLS] document eos [CLS] document eos ..`. It is made
of shards of whole documents that are written independently; each is cut into records of
BLOCK_TOKENS tokens, of which the last is shorter. So the record of any token is found by the counts
of the shards and arithmetic, and a window touches one or two records.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

SPLITS = ("train", "validation")
VERSION = "2.0.0"
BLOCK_TOKENS = 4096
TOKENIZER_DIR = "tokenizer"

# TFDS writes one record to a chunk, so that one is read at a time. Compressed, Zipfian 16-bit ids
# take half of the bytes, and writing them would take as long as SentencePiece.
_WRITER_OPTIONS = "group_size:1,uncompressed"


def token_dtype(vocab_size: int) -> type[np.integer]:
    """What token ids are stored as."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def features(vocab_size: int) -> tfds.features.FeaturesDict:
    """A record: `tokens` [up to BLOCK_TOKENS], and the `document` that the first is of.

    Documents are numbered from 0 in their shard.
    """
    return tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Tensor(
                shape=(None,), dtype=token_dtype(vocab_size), encoding="bytes"
            ),
            "document": np.int64,
        }
    )


def shard_name(source: str, split: str, index: int, count: int) -> str:
    """File name of shard `index` of `count`, as TFDS names it."""
    return f"{source}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_shard(
    path: str | os.PathLike, tokens: np.ndarray, sizes: np.ndarray, vocab_size: int
) -> dict:
    """Writes documents as one local array_record file; returns its line in the metadata.

    Args:
      tokens: of the documents one after another, [n] with n > 0.
      sizes: tokens of each document, [documents].

    Returns:
      tokens, documents, records, bytes (of the file) and sha256.

    Raises:
      OSError: the file cannot be written, such as on a full disk.
    """
    record_features = features(vocab_size)
    serializer = ExampleSerializer(record_features.get_serialized_info())
    tokens = tokens.astype(token_dtype(vocab_size), copy=False)
    begins = np.arange(0, len(tokens), BLOCK_TOKENS)
    documents = np.searchsorted(np.cumsum(sizes), begins, side="right")
    with _writing(path) as writer:
        for begin, document in zip(begins.tolist(), documents.tolist(), strict=True):
            record = {"tokens": tokens[begin : begin + BLOCK_TOKENS], "document": document}
            example = serializer.get_tf_example(record_features.encode_example(record))
            # Otherwise the order of the features is another in every process.
            writer.write(example.SerializeToString(deterministic=True))
    return {
        "tokens": len(tokens),
        "documents": len(sizes),
        "records": len(begins),
        "bytes": os.path.getsize(path),
        "sha256": sha256(path),
    }


@contextlib.contextmanager
def _writing(path: str | os.PathLike) -> Iterator[array_record_module.ArrayRecordWriter]:
    """A writer that is closed; what array_record raises as a RuntimeError is an OSError here."""
    try:
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
        yield writer
        writer.close()
    except RuntimeError as error:
        raise OSError(f"{path}: {' '.join(str(error).split())}") from error


class Record(NamedTuple):
    """Consecutive tokens of a shard.

    Attributes:
      tokens: uint16 or int32 [up to BLOCK_TOKENS], read-only.
      document: number in the shard of the document of the first of them.
    """

    tokens: np.ndarray
    document: int


def parse_record(serialized: bytes, vocab_size: int) -> Record:
    """A record of `write_shard`, in less than half the time that TFDS's general parser takes.

    Raises:
      ValueError: it is none.
    """
    try:
        fields = tf_example_pb2.Example.FromString(serialized).features.feature
        (tokens,) = fields["tokens"].bytes_list.value
        (document,) = fields["document"].int64_list.value
    except (DecodeError, ValueError) as error:
        raise ValueError(f"no record of tokens: {error}") from error
    return Record(np.frombuffer(tokens, token_dtype(vocab_size)), document)


def sha256(path: str | os.PathLike) -> str:
    """Of a file, here or in a bucket."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_metadata(source: str, split: str, shards: Sequence[dict], **counts: int) -> dict:
    """The metadata of a split: `counts`, tokens and documents in all, and the shards by name.

    Args:
      shards: what `write_shard` returned, in the order of their numbers.
    """
    named = [
        {"name": shard_name(source, split, index, len(shards)), **shard}
        for index, shard in enumerate(shards)
    ]
    totals = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens")}
    return totals | counts | {"shards": named}


def write_metadata(directory: str | os.PathLike, source: str, metadata: dict) -> None:
    """Makes the shards in `directory/source/VERSION` a dataset.

    Args:
      metadata: JSON values; `TokenStream` needs language, tokenizer (its fingerprint), vocab_size,
        eos, instructions and, by split, `splits` (see `split_metadata`).
    """
    folder = epath.Path(directory) / source / VERSION
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(source, tfds.core.Version(VERSION), os.fspath(folder), ""),
        features=features(metadata["vocab_size"]),
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=source, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["records"] for shard in metadata["splits"][split]["shards"]],
            num_bytes=sum(shard["bytes"] for shard in metadata["splits"][split]["shards"]),
            filename_template=template,
        )
        for split in SPLITS
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
