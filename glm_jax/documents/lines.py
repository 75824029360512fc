"""Files with a document a line."""

import dataclasses
import io
import json
from collections.abc import Iterator

from glm_jax.documents.document import RecordError, decode, kind_of
from glm_jax.documents.files import is_jsonl, numbered_lines, open_lines


@dataclasses.dataclass(frozen=True)
class LinesChunk:
    """Whole lines of a file."""

    path: str
    first_line: int
    data: bytes

    def records(self) -> Iterator[tuple[int, bytes]]:
        """The lines and their numbers."""
        return numbered_lines(io.BytesIO(self.data), self.first_line)

    def fields(self, record: bytes) -> dict:
        """What `to_document` takes, from one of the lines.

        Raises:
            RecordError: not UTF-8, or not a JSON object.
        """
        line = decode(record)
        return _parse_json(line) if line.strip() and is_jsonl(self.path) else {"text": line}


def lines_chunks(path: str, max_bytes: int) -> Iterator[LinesChunk]:
    """The lines of a file, in pieces that end with the line in which `max_bytes` are reached.

    Raises:
        UserError: "file: cannot be read: reason", as soon as it cannot be read on.
    """
    first_line = 1
    with open_lines(path) as stream:
        while data := stream.read(max_bytes):
            data += b"" if data.endswith(b"\n") else stream.readline()
            yield LinesChunk(path, first_line, data)
            first_line += data.count(b"\n")


def _parse_json(line: str) -> dict:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError(f"a line must be an object, got {kind_of(fields)}")
    return fields
