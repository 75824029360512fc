"""Parquet files with a document a row."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from glm_jax.documents.document import FIELDS
from glm_jax.documents.files import reading
from glm_jax.errors import UserError

_BUFFER_BYTES = 1 << 20  # rows are read in pieces of about so much, not a row group at once
# Reading a part of a row group decodes what stands before it, so that many parts cost more than
# the balance they bring.
_MAX_PARTS = 16


class Rows(NamedTuple):
    """Consecutive rows of a file."""

    row_groups: tuple[int, ...]
    skip: int  # rows of the first of these groups that stand before
    count: int
    first: int  # number of the first row in the file, from 1


@dataclasses.dataclass(frozen=True)
class ParquetChunk:
    """Which rows of a file to read."""

    path: str
    rows: Rows

    def records(self) -> Iterator[tuple[int, dict]]:
        """The rows and their numbers in the file.

        Raises:
            UserError: "file: cannot be read: reason".
        """
        columns = text_columns(self.path)
        for number, values in read_rows(self.path, columns, self.rows):
            yield number, dict(zip(columns, values, strict=True))

    def fields(self, record: dict) -> dict:
        """What `to_document` takes, from one of the rows."""
        return record


def parquet_chunks(path: str, max_bytes: int) -> Iterator[ParquetChunk]:
    """The rows of a file in pieces of about `max_bytes`: row groups, or parts of a large one.

    Raises:
        UserError: "file: cannot be read: reason".
    """
    for rows in cut_rows(path, text_columns(path), max_bytes):
        yield ParquetChunk(path, rows)


def text_columns(path: str) -> list[str]:
    """The columns of a file that make documents.

    Raises:
        UserError: the file cannot be read, or has no such columns.
    """
    with reading(path), _open(path) as file:
        schema = file.schema_arrow
    columns = [name for name in FIELDS if name in schema.names]
    if "text" not in columns and not {"prompt", "answer"} <= set(columns):
        raise UserError(
            f"{path}: no column 'text', nor 'prompt' and 'answer'; it has {', '.join(schema.names)}"
        )
    for name in columns:
        if not _is_string(schema.field(name).type):
            raise UserError(
                f"{path}: the column {name!r} must hold strings, it is {schema.field(name).type}"
            )
    return columns


def cut_rows(path: str, columns: Sequence[str], max_bytes: int) -> Iterator[Rows]:
    """Cuts a file by the sizes that it states of its row groups.

    Raises:
        UserError: "file: cannot be read: reason".
    """
    with reading(path), _open(path) as file:
        metadata = file.metadata
    first, groups, size, count = 1, (), 0, 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        groups, count = (*groups, index), count + group.num_rows
        size += _column_bytes(group, columns)
        if size >= max_bytes or index == metadata.num_row_groups - 1:
            parts = min(size // max_bytes or 1, _MAX_PARTS) if len(groups) == 1 else 1
            step = math.ceil(count / parts) or 1
            for skip in range(0, count, step):
                yield Rows(groups, skip, min(step, count - skip), first + skip)
            first, groups, size, count = first + count, (), 0, 0


def read_rows(path: str, columns: Sequence[str], rows: Rows) -> Iterator[tuple[int, tuple]]:
    """The values of some columns, as bytes or None, of each row; with its number in the file.

    Raises:
        UserError: "file: cannot be read: reason", as soon as it cannot be read on.
    """
    start, end, position = rows.skip, rows.skip + rows.count, 0
    with reading(path), _open(path) as file:
        group = file.metadata.row_group(rows.row_groups[0])
        batch_rows = max(1, _BUFFER_BYTES * group.num_rows // _column_bytes(group, columns))
        for batch in file.iter_batches(
            batch_rows, rows.row_groups, list(columns), use_threads=False
        ):
            part = batch.slice(max(start - position, 0), max(end - max(start, position), 0))
            number = rows.first + max(position - start, 0)
            values = [_as_bytes(part.column(name)).to_pylist() for name in columns]
            yield from enumerate(zip(*values, strict=True), number)
            position += batch.num_rows
            if position >= end:
                return


def _open(path: str) -> pq.ParquetFile:
    # pyarrow's own reader of local files is faster than Python's.
    source = path if "://" not in path else epath.Path(path).open("rb")
    return pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _as_bytes(column: pa.Array) -> pa.Array:
    """Strings as bytes, since what is no UTF-8 is a fault of its row."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_null,
        )
    )


def _column_bytes(group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
    chunks = [group.column(i) for i in range(group.num_columns)]
    return max(1, sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in columns))
