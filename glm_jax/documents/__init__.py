"""Reads text documents from files and datasets, and says which of their records are at fault.

`read_documents` is all a program of one process needs. One with workers cuts its inputs with
`chunks` and lets them parse the pieces with `documents_of`; the documents are the same.
"""

from glm_jax.documents.document import Counts, Document
from glm_jax.documents.files import (
    check_lines_readable,
    is_jsonl,
    numbered_lines,
    read_lines,
)
from glm_jax.documents.reading import (
    SUFFIXES,
    Chunk,
    check_readable,
    chunks,
    documents_of,
    expand_inputs,
    input_bytes,
    read_documents,
)

__all__ = [
    "SUFFIXES",
    "Chunk",
    "Counts",
    "Document",
    "check_lines_readable",
    "check_readable",
    "chunks",
    "documents_of",
    "expand_inputs",
    "input_bytes",
    "is_jsonl",
    "numbered_lines",
    "read_documents",
    "read_lines",
]
