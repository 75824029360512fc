"""From the names of inputs to documents, whatever their format."""

import os
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Literal, Protocol

from etils import epath

from glm_jax.documents import lines
from glm_jax.documents.document import Counts, Document, RecordError, to_document
from glm_jax.documents.files import LINE_SUFFIXES, check_file
from glm_jax.errors import UserError

PARQUET_SUFFIX = ".parquet"
SUFFIXES = (*LINE_SUFFIXES, PARQUET_SUFFIX)

OnError = Literal["fail", "skip"]

_CHUNK_BYTES = 1 << 20
_WILDCARDS = "*?"


class Chunk(Protocol):
    """A piece of an input, cheap to send to a worker process; see `chunks`."""

    path: str

    def records(self) -> Iterator[tuple[int, object]]: ...

    def fields(self, record: object) -> dict: ...


def read_documents(
    paths: Iterable[str | os.PathLike],
    on_error: OnError = "fail",
    counts: Counts | None = None,
) -> Iterator[Document]:
    """Yields the documents of `paths`, one after another in the order given.

    Files end in one of `SUFFIXES`. A `.jsonl` line is an object with a string `text` and,
    optionally, a `language` ('en' or 'zh'; otherwise detected from the text), or, for instruction
    data, with strings `prompt` and `answer`. A `.txt` line is a document. Lines end at a line feed,
    with or without a carriage return before it; files are UTF-8. A `.parquet` file has columns of
    these names. So has the folder of a dataset that TFDS prepared as array_record or parquet;
    "FOLDER#split" is one of its splits. Paths may begin with gs://.

    Args:
        paths: what to read; see `expand_inputs` for patterns.
        on_error: 'fail' raises at the first faulty record; 'skip' leaves faulty ones out and counts
            them.
        counts: receives the numbers; a caller that does not need them passes nothing.

    Raises:
        UserError: "file: reason" for a missing, unreadable or truncated file or an unknown suffix
            (always, and for every path before anything is read where that can be known), or
            "file:line: reason" for a faulty line or row.
    """
    paths = [os.fspath(path) for path in paths]
    for path in paths:
        check_readable(path)
    return _read_all(paths, on_error, Counts() if counts is None else counts)


def expand_inputs(patterns: Iterable[str]) -> list[str]:
    """Inputs in the order given, with the sorted matches of a pattern such as "D/*.jsonl.gz".

    Raises:
        UserError: nothing matches a pattern.
    """
    return [path for pattern in patterns for path in _matches(pattern)]


def check_readable(path: str | os.PathLike) -> None:
    """Refuses an input before anything is read.

    Raises:
        UserError: "file: reason": it is no file or dataset, its name ends in none of `SUFFIXES`, or
            it is a table without the columns that make documents.
    """
    path = os.fspath(path)
    if path.endswith(LINE_SUFFIXES):
        check_file(path)
    elif path.endswith(PARQUET_SUFFIX):
        check_file(path)
        _parquet().text_columns(path)
    elif _is_dataset(path):
        _tfds_folder().check_tfds(path)
    else:
        raise UserError(
            f"{path}: the name must end in one of {', '.join(SUFFIXES)}, or be the folder of a "
            "TFDS dataset"
        )


def chunks(path: str | os.PathLike, max_bytes: int) -> Iterator[Chunk]:
    """Cuts an input into pieces for `documents_of`, in order; the cuts depend on nothing else.

    Pieces are picklable and cheap to send: the lines of a text file, which only one process can
    decompress, or which rows of a table to read.

    Args:
        path: what `check_readable` accepts.
        max_bytes: of uncompressed text of a piece, about: no line is cut, and a large row group of
            a parquet file only into a few parts.

    Raises:
        UserError: "file: cannot be read: reason", as soon as it cannot be read on.
    """
    path = os.fspath(path)
    if path.endswith(LINE_SUFFIXES):
        return lines.lines_chunks(path, max_bytes)
    if path.endswith(PARQUET_SUFFIX):
        return _parquet().parquet_chunks(path, max_bytes)
    return _tfds_folder().tfds_chunks(path, max_bytes)


def documents_of(chunk: Chunk, on_error: OnError, counts: Counts) -> Iterator[Document]:
    """The documents of a piece, in order; adds to `counts`. See `read_documents`.

    Raises:
        UserError: "file:line: reason" for a faulty record, or the file cannot be read.
    """
    for number, record in chunk.records():
        try:
            document = to_document(chunk.fields(record), chunk.path, number, counts)
        except RecordError as error:
            fault = f"{chunk.path}:{number}: {error}"
            if on_error != "skip":
                raise UserError(fault) from error
            counts.faulty += 1
            counts.first_fault = counts.first_fault or fault
            continue
        if document is not None:
            yield document


def input_bytes(path: str | os.PathLike) -> int:
    """Bytes on disk of an input that `check_readable` accepts."""
    path = os.fspath(path)
    if path.endswith(SUFFIXES):
        return epath.Path(path).stat().length
    return _tfds_folder().tfds_bytes(path)


def _read_all(paths: Sequence[str], on_error: OnError, counts: Counts) -> Iterator[Document]:
    for path in paths:
        for chunk in chunks(path, _CHUNK_BYTES):
            yield from documents_of(chunk, on_error, counts)


def _matches(pattern: str) -> list[str]:
    wildcards = [index for index, letter in enumerate(pattern) if letter in _WILDCARDS]
    if not wildcards:
        return [pattern]
    root, _, rest = pattern[: wildcards[0]].rpartition("/")
    root += "/" if pattern.startswith("/") and not root else ""
    found = epath.Path(root or ".").glob(rest + pattern[wildcards[0] :])
    if not (matches := sorted(map(str, found))):
        raise UserError(f"{pattern}: no file matches")
    return matches


def _is_dataset(path: str) -> bool:
    folder, found, _ = path.rpartition("#")
    return (epath.Path(folder if found else path) / "dataset_info.json").is_file()


# Imported where they are needed: TFDS and Arrow take a second, and most inputs are lines.


def _parquet() -> ModuleType:
    from glm_jax.documents import parquet

    return parquet


def _tfds_folder() -> ModuleType:
    from glm_jax.documents import tfds_folder

    return tfds_folder
