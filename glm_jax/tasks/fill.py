"""Exact match: the share of blanks that greedy decoding fills with the very answer."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.tasks.files import read_questions, text_field
from glm_jax.tasks.result import Result, by_language, mean


def evaluate(
    filler: Filler,
    paths: Sequence[str | Path],
    options: DecodingOptions,
    limit: int = 0,
    track: Callable[[Sequence], Iterable] = iter,
) -> Result:
    """Share of answers that are filled exactly, white space at the ends aside, by language.

    Args:
      paths: JSONL with `text` (one blank), `answer` and optionally `language`.
      track: iterates over batches, and may show how far it is.

    Raises:
      UserError: "file:line: reason" for a question that is malformed or too long.
    """
    lines = read_questions(paths, limit)
    answers = [text_field(line, "answer").strip() for line in lines]
    starts = range(0, len(lines), filler.batch_size)
    batches = [lines[start : start + filler.batch_size] for start in starts]
    results = []
    for batch in track(batches):
        results += filler.try_fill([line.fields["text"] for line in batch], options)
    for line, result in zip(lines, results, strict=True):
        if isinstance(result, UserError):
            raise UserError(f"{line.where}: {result}")
    hits = [
        result.answers[0].strip() == answer for result, answer in zip(results, answers, strict=True)
    ]
    languages = [line.fields.get("language") for line in lines]
    return Result("exact_match", by_language(languages, mean, hits))
