"""A document, and how the fields of a record become one, whatever file it is read from."""

import dataclasses
import re
from collections.abc import Mapping

from glm_jax.language import LANGUAGES, detect_language

FIELDS = ("text", "prompt", "answer", "language")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document and where it came from.

    `text` is not blank and holds no lone surrogates, so that it always encodes to UTF-8; nothing
    else about it is normalised. Instruction data have an `answer`, of which the same is true; then
    `text` is the prompt. `line` counts from 1; in a dataset it is the number of the record.
    """

    text: str
    language: str  # en | zh
    path: str
    line: int
    answer: str | None = None


@dataclasses.dataclass
class Counts:
    """What was met in reading; `a + b` is of what was read first and of what came after it."""

    documents: int = 0
    instructions: int = 0  # of the documents, those with an answer
    characters: int = 0  # of texts and answers
    empty: int = 0  # blank lines and blank texts, left out
    replaced: int = 0  # documents in which lone surrogates became U+FFFD
    faulty: int = 0  # records left out under on_error='skip'
    first_fault: str = ""  # "file:line: reason" of the first of them

    def __add__(self, later: "Counts") -> "Counts":
        sums = {
            field.name: getattr(self, field.name) + getattr(later, field.name)
            for field in dataclasses.fields(self)
            if field.name != "first_fault"
        }
        return Counts(**sums, first_fault=self.first_fault or later.first_fault)


class RecordError(Exception):
    """A record that holds no usable document; the message is the reason."""


def to_document(
    fields: Mapping[str, object], path: str, line: int, counts: Counts
) -> Document | None:
    """The document of a record, or None for a blank one; adds to `counts`.

    Args:
        fields: of the record. A string `text`, or strings `prompt` and `answer`; optionally a
            `language`, en or zh, otherwise detected. Bytes are UTF-8. Others are ignored.

    Raises:
        RecordError: the fields do not make a document.
    """
    raw = _texts(fields)
    blank = [not text.strip() for text in raw]
    if all(blank):
        counts.empty += 1
        return None
    if any(blank):
        raise RecordError(f"the field {('prompt', 'answer')[blank.index(True)]!r} is blank")
    clean = [_LONE_SURROGATE.sub("\ufffd", text) for text in raw]
    language = _language(fields) or detect_language("".join(clean))
    counts.documents += 1
    counts.instructions += len(clean) == 2
    counts.characters += sum(map(len, clean))
    counts.replaced += clean != raw
    return Document(clean[0], language, path, line, *clean[1:])


def string_field(fields: Mapping[str, object], name: str) -> str:
    """A string of a record; bytes are UTF-8.

    Raises:
        RecordError: it is missing or no string.
    """
    if name not in fields:
        raise RecordError(f"the field {name!r} is missing")
    value = fields[name]
    if isinstance(value, bytes):
        return decode(value)
    if not isinstance(value, str):
        raise RecordError(f"the field {name!r} must be a string, got {kind_of(value)}")
    return value


def decode(value: bytes) -> str:
    """UTF-8 as a string.

    Raises:
        RecordError: it is none.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 at byte {error.start}") from error


def kind_of(value) -> str:
    """What JSON calls a value that is not what it should be."""
    return {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )


def _texts(fields: Mapping[str, object]) -> list[str]:
    """[text], or [prompt, answer]."""
    # A table has a column of both kinds where it mixes them, null where a row is of the other.
    given = {name for name in ("text", "prompt", "answer") if fields.get(name) is not None}
    if not given & {"prompt", "answer"}:
        return [string_field(fields, "text")]
    if "text" in given:
        raise RecordError("a record has either 'text' or 'prompt' and 'answer', not both")
    return [string_field(fields, "prompt"), string_field(fields, "answer")]


def _language(fields: Mapping[str, object]) -> str | None:
    value = fields.get("language")
    if isinstance(value, bytes):
        value = decode(value)
    if value is not None and value not in LANGUAGES:
        raise RecordError(f"the field 'language' must be 'en' or 'zh', got {value!r:.40}")
    return value
