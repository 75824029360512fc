"""Files of lines, compressed or not, here or in a bucket."""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from glm_jax.errors import UserError

_COMPRESSED = ("", ".gz", ".zst")
JSON_SUFFIXES = tuple(f".jsonl{compressed}" for compressed in _COMPRESSED)
LINE_SUFFIXES = JSON_SUFFIXES + tuple(f".txt{compressed}" for compressed in _COMPRESSED)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def is_jsonl(name: str) -> bool:
    """Whether the lines of a file are JSON, by its name."""
    return name.endswith(JSON_SUFFIXES)


def check_lines_readable(path: str | os.PathLike) -> None:
    """Refuses a file of lines before anything is read.

    Raises:
        UserError: "file: reason": it is no file, or its name ends in none of `LINE_SUFFIXES`.
    """
    if not os.fspath(path).endswith(LINE_SUFFIXES):
        raise UserError(f"{path}: the name must end in one of {', '.join(LINE_SUFFIXES)}")
    check_file(path)


def check_file(path: str | os.PathLike) -> None:
    """Refuses what is no file.

    Raises:
        UserError: "file: reason".
    """
    with reading(path):
        file = epath.Path(path)
        if not file.is_file():
            raise UserError(f"{path}: {'not a file' if file.exists() else 'no such file'}")


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Names the file in what goes wrong with it.

    Raises:
        UserError: "file: cannot be read: reason".
    """
    try:
        yield
    except ImportError as error:  # gs:// without gcsfs
        raise UserError(f"{path}: cannot be read: {error}") from error
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), error)
        raise UserError(f"{path}: cannot be read: {reason}") from error


@contextlib.contextmanager
def open_lines(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file as bytes, decompressed as its name says (.gz, .zst).

    Raises:
        UserError: "file: cannot be read: reason", as soon as it cannot be read on.
    """
    name = os.fspath(path)
    with reading(path), epath.Path(path).open("rb") as stream:
        if name.endswith(".gz"):
            with gzip.open(stream) as decompressed:
                yield decompressed
        elif name.endswith(".zst"):
            with _open_zstd(stream) as decompressed:
                yield decompressed
        else:
            yield stream


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """The lines of a file; see `open_lines` and `numbered_lines`.

    Raises:
        UserError: "file: cannot be read: reason", as soon as it cannot be read on.
    """
    with open_lines(path) as stream:
        yield from numbered_lines(stream)


def numbered_lines(stream: BinaryIO, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """The lines of UTF-8 text from number `first`, without line ends and byte order mark."""
    for number, line in enumerate(stream, start=first):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _open_zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow  # it takes a third of a second, and few inputs need it

    source = pyarrow.PythonFile(stream, mode="r")
    return io.BufferedReader(pyarrow.CompressedInputStream(source, "zstd"))
