"""Reads text documents from JSON lines and plain text files, and says which lines are at fault."""

import dataclasses
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Literal

from glm_jax.errors import UserError
from glm_jax.language import LANGUAGES, detect_language

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document and where it came from.

    `text` is not blank and holds no lone surrogates, so that it always encodes to UTF-8; nothing
    else about it is normalised. `line` counts from 1.
    """

    text: str
    language: str  # en | zh
    path: str
    line: int


@dataclasses.dataclass
class Counts:
    """What `read_documents` met; it adds to these numbers as it goes."""

    documents: int = 0
    characters: int = 0
    empty: int = 0  # blank lines and blank texts, left out
    replaced: int = 0  # documents in which lone surrogates became U+FFFD
    faulty: int = 0  # lines left out under on_error='skip'
    first_fault: str = ""  # "file:line: reason" of the first of them


class _LineError(Exception):
    """A line that holds no usable document; the message is the reason."""


_Parser = Callable[[str], tuple[str, str | None]]  # line -> text, language if the line says it


def read_documents(
    paths: Iterable[str | pathlib.Path],
    on_error: Literal["fail", "skip"] = "fail",
    counts: Counts | None = None,
) -> Iterator[Document]:
    """Yields the documents of `paths`, file by file in the order given.

    A `.jsonl` line is an object with a string `text` and, optionally, a `language` ('en' or 'zh';
    otherwise detected from the text). A `.txt` line is a document. Either may be gzipped. Lines end
    at a line feed, with or without a carriage return before it; files are UTF-8.

    Args:
        paths: files that end in one of `SUFFIXES`.
        on_error: 'fail' raises at the first faulty line; 'skip' leaves faulty lines out and counts
            them.
        counts: receives the numbers; a caller that does not need them passes nothing.

    Raises:
        UserError: "file: reason" for a missing, unreadable or truncated file or an unknown suffix
            (always, and for every path before anything is read where that can be known), or
            "file:line: reason" for a faulty line.
    """
    paths = [pathlib.Path(path) for path in paths]
    for path in paths:
        check_readable(path)
    return _read_files(paths, on_error, Counts() if counts is None else counts)


def check_readable(path: pathlib.Path) -> None:
    """Refuses a path before anything is read.

    Raises:
        UserError: "file: reason": it is no file, or its name ends in none of `SUFFIXES`.
    """
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")


def _read_files(paths: list[pathlib.Path], on_error: str, counts: Counts) -> Iterator[Document]:
    for path in paths:
        parse = _parse_json if path.name.endswith((".jsonl", ".jsonl.gz")) else _parse_plain
        for number, line in read_lines(path):
            try:
                document = _parse_line(line, parse, path, number, counts)
            except _LineError as error:
                fault = f"{path}:{number}: {error}"
                if on_error != "skip":
                    raise UserError(fault) from error
                counts.faulty += 1
                counts.first_fault = counts.first_fault or fault
                continue
            if document is None:
                counts.empty += 1
                continue
            counts.documents += 1
            counts.characters += len(document.text)
            yield document


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, gzipped where its name ends in .gz; see `numbered_lines`.

    Raises:
        UserError: "file: cannot be read: reason", as soon as it cannot be read on.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            yield from numbered_lines(stream)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from error


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of UTF-8 text from 1, without line ends and without a byte order mark."""
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _parse_line(
    line: bytes, parse: _Parser, path: pathlib.Path, number: int, counts: Counts
) -> Document | None:
    """Returns the document of one line, or None for a blank one; raises `_LineError`."""
    try:
        decoded = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _LineError(f"not UTF-8 at byte {error.start}") from error
    if not decoded.strip():
        return None
    text, language = parse(decoded)
    if not text.strip():
        return None
    clean = _LONE_SURROGATE.sub("\ufffd", text)
    counts.replaced += clean != text
    return Document(clean, language or detect_language(clean), str(path), number)


def _parse_plain(line: str) -> tuple[str, None]:
    return line, None


def _parse_json(line: str) -> tuple[str, str | None]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _LineError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise _LineError(f"a line must be an object, got {_kind(record)}")
    if "text" not in record:
        raise _LineError("the field 'text' is missing")
    text, language = record["text"], record.get("language")
    if not isinstance(text, str):
        raise _LineError(f"the field 'text' must be a string, got {_kind(text)}")
    if language is not None and language not in LANGUAGES:
        raise _LineError(f"the field 'language' must be 'en' or 'zh', got {language!r:.40}")
    return text, language


def _kind(value) -> str:
    return {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )
