"""Reads files of questions, and says which line is at fault."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from glm_jax.documents import Document, read_documents, read_lines
from glm_jax.errors import UserError
from glm_jax.language import LANGUAGES
from glm_jax.tokenizer import BLANK, SPECIAL_PIECES

_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_PIECES)))
_SHOWN = 20  # characters of a text on either side of what is wrong in it


class Line(NamedTuple):
    """A JSON object and where it stands, "file:line"."""

    where: str
    fields: dict


def read_texts(paths: Iterable[str | Path], limit: int = 0) -> list[Document]:
    """The documents of files (`documents.read_documents`).

    Args:
      limit: at most so many of each file; 0 for all.

    Raises:
      UserError: see `read_documents` and `check_plain`; or there is no document, or it is a prompt
        with an answer.
    """
    documents = []
    for path in paths:
        documents += itertools.islice(read_documents([path]), limit or None)
    for document in documents:
        where = f"{document.path}:{document.line}"
        if document.answer is not None:
            raise UserError(f"{where}: a line with 'text' is needed, not 'prompt' and 'answer'")
        check_plain(where, "text", document.text)
    return _not_empty(documents, paths)


def read_questions(paths: Iterable[str | Path], limit: int = 0) -> list[Line]:
    """The objects of JSONL files, gzipped or not; blank lines are left out.

    Each has a string `text` with exactly one blank and no other special token, and may have a
    `language`, en or zh.

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
      UserError: it is missing, empty or not a string, or a special token stands in it.
    """
    value = line.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{line.where}: the field {name!r} must be a string that is not blank")
    check_plain(line.where, name, value)
    return value


def check_plain(where: str, name: str, text: str) -> None:
    """Refuses what is spelled like a special token: it would be read as its characters.

    A figure over such a text would not be what its file seems to ask for.

    Args:
      where: "file:line" of the text.
      name: of the text, for the message.

    Raises:
      UserError: one of `tokenizer.SPECIAL_PIECES` stands in the text.
    """
    if found := _SPECIAL.search(text):
        excerpt = text[max(0, found.start() - _SHOWN) : found.end() + _SHOWN]
        raise UserError(f"{where}: the special token {found[0]} in {name} {excerpt!r}")


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _objects(path: Path) -> Iterator[Line]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 at byte {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserError(f"{where}: a line must be an object")
        yield Line(where, fields)


def _check_question(line: Line) -> None:
    text, language = line.fields.get("text"), line.fields.get("language")
    if not isinstance(text, str):
        raise UserError(f"{line.where}: the field 'text' must be a string")
    blanks = len(BLANK.findall(text))
    if blanks != 1:
        raise UserError(f"{line.where}: the text must have one blank such as [MASK], got {blanks}")
    for part in BLANK.split(text)[::2]:
        check_plain(line.where, "text", part)
    if language is not None and language not in LANGUAGES:
        raise UserError(f"{line.where}: the field 'language' must be 'en' or 'zh'")


def _not_empty(items: list, paths: Iterable[str | Path]) -> list:
    if not items:
        raise UserError(f"nothing to evaluate in {', '.join(map(str, paths))}")
    return items
