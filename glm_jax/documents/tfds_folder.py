"""Datasets that TFDS has prepared as array_record or parquet, read without TensorFlow.

Shards are read one by one: TFDS's own data source of parquet files holds a whole split in memory.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from glm_jax.documents.document import FIELDS
from glm_jax.documents.files import reading
from glm_jax.documents.parquet import Rows, cut_rows, read_rows
from glm_jax.errors import UserError

_INFO_FILE = "dataset_info.json"

_ARRAY_RECORD, _PARQUET = "array_record", "parquet"
_PARQUET_COLUMNS = ("data",)  # where TFDS keeps the serialized record
_READ_RECORDS = 256
_GUESSED_RECORD_BYTES = 4096  # of a dataset that does not state its size


class Shard(NamedTuple):
    """A file of a split, and what dataset_info.json says of it."""

    path: str
    records: int


@dataclasses.dataclass(frozen=True)
class TfdsChunk:
    """Which records of a shard to read. `path` is the shard's."""

    folder: str
    path: str
    rows: Rows  # without row groups in an array_record shard

    def records(self) -> Iterator[tuple[int, bytes]]:
        """The serialized records and their numbers in the shard.

        Raises:
            UserError: "file: cannot be read: reason".
        """
        if self.rows.row_groups:
            for number, (record,) in read_rows(self.path, _PARQUET_COLUMNS, self.rows):
                yield number, record
        else:
            yield from _read_array_record(self.path, self.rows)

    def fields(self, record: bytes) -> dict:
        """What `to_document` takes, from one of the records."""
        return _builder(self.folder).info.features.deserialize_example_np(record)


def check_tfds(path: str) -> None:
    """Refuses a dataset before anything is read.

    Raises:
        UserError: "file: reason": unreadable, without such features, or a tfrecord dataset; no such
            split, or a shard is missing.
    """
    for shard in _shards(path):
        if not epath.Path(shard.path).is_file():
            raise UserError(f"{shard.path}: this shard of the dataset is missing")


def tfds_chunks(path: str, max_bytes: int) -> Iterator[TfdsChunk]:
    """The records of a split, or of all splits, in pieces of about `max_bytes`.

    Raises:
        UserError: see `check_tfds`; or a shard does not hold what dataset_info.json says.
    """
    folder, _ = _split_name(path)
    builder = _builder(folder)
    for shard in _shards(path):
        if builder.info.file_format.value == _PARQUET:
            pieces = list(cut_rows(shard.path, _PARQUET_COLUMNS, max_bytes))
        else:
            pieces = list(_cut_array_record(shard.path, max_bytes, _record_bytes(builder)))
        found = sum(rows.count for rows in pieces)
        if found != shard.records:
            raise UserError(
                f"{shard.path}: holds {found} records, {_INFO_FILE} says {shard.records}"
            )
        for rows in pieces:
            yield TfdsChunk(folder, shard.path, rows)


def tfds_bytes(path: str) -> int:
    """Bytes of the shards on disk."""
    return sum(epath.Path(shard.path).stat().length for shard in _shards(path))


def _split_name(path: str) -> tuple[str, str | None]:
    folder, found, split = path.rpartition("#")
    return (folder, split) if found else (path, None)


@functools.cache  # by process: a worker reads many pieces of a dataset
def _builder(folder: str) -> tfds.core.DatasetBuilder:
    with reading(folder):
        builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    if file_format not in (_ARRAY_RECORD, _PARQUET):
        raise UserError(
            f"{folder}: a dataset in {file_format} is not read; where TensorFlow is installed, "
            f"'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record "
            "--out_dir=FOLDER' makes one that is"
        )
    _check_features(folder, builder.info.features)
    return builder


def _check_features(folder: str, features: tfds.features.FeaturesDict) -> None:
    names = [name for name in FIELDS if name in features]
    if "text" not in names and not {"prompt", "answer"} <= set(names):
        found = ", ".join(sorted(features))
        raise UserError(f"{folder}: no feature 'text', nor 'prompt' and 'answer'; it has {found}")
    for name in names:
        if not isinstance(features[name], tfds.features.Text):
            raise UserError(f"{folder}: the feature {name!r} must be a Text")


def _shards(path: str) -> list[Shard]:
    folder, split = _split_name(path)
    splits = _builder(folder).info.splits
    if split is not None and split not in splits:
        raise UserError(f"{path}: no such split; there is {', '.join(splits)}")
    chosen = [splits[split]] if split is not None else list(splits.values())
    return [
        Shard(str(file), length)
        for info in chosen
        for file, length in zip(info.filepaths, info.shard_lengths, strict=True)
    ]


def _record_bytes(builder: tfds.core.DatasetBuilder) -> int:
    splits = builder.info.splits.values()
    records = sum(split.num_examples for split in splits)
    return int(sum(split.num_bytes for split in splits)) // max(records, 1) or _GUESSED_RECORD_BYTES


def _cut_array_record(path: str, max_bytes: int, record_bytes: int) -> Iterator[Rows]:
    with reading(path):
        records = array_record_module.ArrayRecordReader(path).num_records()
    step = max(1, max_bytes // record_bytes)
    for start in range(0, records, step):
        yield Rows((), start, min(step, records - start), start + 1)


def _read_array_record(path: str, rows: Rows) -> Iterator[tuple[int, bytes]]:
    with reading(path):
        reader = array_record_module.ArrayRecordReader(path)
        end = rows.skip + rows.count
        for start in range(rows.skip, end, _READ_RECORDS):
            records = reader.read(start, min(start + _READ_RECORDS, end))
            yield from enumerate(records, start + 1)
