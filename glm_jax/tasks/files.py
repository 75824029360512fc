"""Reads files of questions, and says which line is at fault."""

import contextlib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from glm_jax.documents import Document, read_documents
from glm_jax.errors import UserError
from glm_jax.language import LANGUAGES

BLANK = re.compile(r"\[MASK\]|\[sMASK\]|\[gMASK\]")


class Line(NamedTuple):
    """A JSON object and where it stands, "file:line"."""

    where: str
    fields: dict


def read_texts(paths: Iterable[str | Path], limit: int = 0) -> list[Document]:
    """The documents of files (`documents.read_documents`).

    Args:
      limit: at most so many of each file; 0 for all.

    Raises:
      UserError: see `read_documents`; or there is no document.
    """
    documents = []
    for path in paths:
        documents += itertools.islice(read_documents([path]), limit or None)
    return _not_empty(documents, paths)


def read_questions(paths: Iterable[str | Path], limit: int = 0) -> list[Line]:
    """The objects of JSONL files, gzipped or not; blank lines are left out.

    Each has a string `text` with exactly one blank and may have a `language`, en or zh.

    Args:
      limit: at most so many of each file; 0 for all.

    Raises:
      UserError: "file:line: reason" for a faulty line, "file: reason" for a file that cannot be
        read; or there is no question.
    """
    lines = []
    for path in map(Path, paths):
        lines += itertools.islice(_objects(path), limit or None)
    for line in lines:
        _check_question(line)
    return _not_empty(lines, paths)


def text_field(line: Line, name: str) -> str:
    """A string field of a question.

    Raises:
      UserError: it is missing, empty or not a string, or a mask token stands in it.
    """
    value = line.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{line.where}: the field {name!r} must be a string that is not blank")
    check_plain(line.where, name, value)
    return value


def check_plain(where: str, name: str, text: str) -> None:
    """Raises: UserError: a mask token stands in a text that has no place for one."""
    if found := BLANK.search(text):
        raise UserError(f"{where}: {found[0]} in {name} {text[:60]!r}, where no blank can stand")


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _objects(path: Path) -> Iterator[Line]:
    for number, text in enumerate(_read(path).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserError(f"{where}: a line must be an object")
        yield Line(where, fields)


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from error


def _check_question(line: Line) -> None:
    text, language = line.fields.get("text"), line.fields.get("language")
    if not isinstance(text, str):
        raise UserError(f"{line.where}: the field 'text' must be a string")
    blanks = len(BLANK.findall(text))
    if blanks != 1:
        raise UserError(f"{line.where}: the text must have one blank such as [MASK], got {blanks}")
    if language is not None and language not in LANGUAGES:
        raise UserError(f"{line.where}: the field 'language' must be 'en' or 'zh'")


def _not_empty(items: list, paths: Iterable[str | Path]) -> list:
    if not items:
        raise UserError(f"nothing to evaluate in {', '.join(map(str, paths))}")
    return items
