"""Exact match: the share of blanks that greedy decoding fills with the very answer."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler, encode_context
from glm_jax.tasks.continuation import check_row
from glm_jax.tasks.files import located, read_questions, text_field
from glm_jax.tasks.result import Result, by_language, mean
from glm_jax.tokenizer import Tokenizer


def evaluate(
    filler: Filler,
    tokenizer: Tokenizer,
    paths: Sequence[str | Path],
    slots: int,
    options: DecodingOptions,
    limit: int = 0,
    track: Callable[[Sequence], Iterable] = iter,
) -> Result:
    """Share of answers that are filled exactly, white space at the ends aside, by language.

    Args:
      paths: JSONL with `text` (one blank), `answer` and optionally `language`.
      slots: of a row, which holds a context and its answer.
      track: iterates over batches, and may show how far it is.

    Raises:
      UserError: "file:line: reason" for a question that is malformed or too long, before anything
        is decoded; or more new tokens than a row has.
    """
    if options.max_new_tokens > slots:
        raise UserError(f"--max_new_tokens {options.max_new_tokens} is more than a row of {slots}")
    lines = read_questions(paths, limit)
    answers = [text_field(line, "answer").strip() for line in lines]
    for line, answer in zip(lines, answers, strict=True):
        with located(line.where):
            context = encode_context(line.fields["text"], tokenizer)
            check_row(context.tokens, len(tokenizer.encode(answer)) + 1, slots)  # eop is one more
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
