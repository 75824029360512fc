"""Multiple choice: the choice that is most probable in the blank of a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glm_jax.errors import UserError
from glm_jax.model.decoding import encode_context
from glm_jax.model.scoring import Request, Scorer, Scores
from glm_jax.tasks.continuation import check_row
from glm_jax.tasks.files import Line, check_plain, located, read_questions
from glm_jax.tasks.result import Result, by_language, mean
from glm_jax.tokenizer import BLANK, Tokenizer


class Question(NamedTuple):
    request: Request
    label: int
    language: str | None


def evaluate(
    scorer: Scorer,
    tokenizer: Tokenizer,
    paths: Sequence[str | Path],
    slots: int,
    length_penalty: float = 0.0,
    limit: int = 0,
) -> Result:
    """Share of questions whose most probable choice is the right one, by language.

    If all choices of a question are one token, their log-probabilities at the sop decide;
    otherwise the sum over a choice's tokens and eop does (GLM 2021's single- and multi-token
    cloze).

    Args:
      paths: JSONL with `text` (one blank), `choices`, `label` (an index into them) and optionally
        `language`.
      slots: of a row, which holds a context and the longest of its choices.
      length_penalty: the sum is divided by the number of its terms to this power.

    Raises:
      UserError: "file:line: reason" for a question that is malformed or too long.
    """
    lines = read_questions(paths, limit)
    questions = [make_question(line, tokenizer, slots) for line in lines]
    answers = scorer.score([question.request for question in questions])
    hits = [
        choose(scores, length_penalty) == question.label
        for question, scores in zip(questions, answers, strict=True)
    ]
    languages = [question.language for question in questions]
    return Result("accuracy", by_language(languages, mean, hits))


def choose(scores: Sequence[Scores], length_penalty: float = 0.0) -> int:
    """Index of the best choice, the first of equal ones."""
    totals = [
        score.log_probs.sum(dtype=np.float64) / len(score.log_probs) ** length_penalty
        for score in scores
    ]
    return int(np.argmax(totals))


def make_question(line: Line, tokenizer: Tokenizer, slots: int) -> Question:
    """Checks a question and encodes it.

    A choice takes the place of the blank and of the white space before it, as in training, so it is
    encoded with that white space unless it brings its own.

    Raises:
      UserError: see `evaluate`.
    """
    choices = _check_choices(line)
    text = line.fields["text"]
    with located(line.where):
        context = encode_context(text, tokenizer)
        blank = BLANK.search(text)
        space = blank[0].removesuffix(blank[1])
        spelled = [choice if choice[0].isspace() else space + choice for choice in choices]
        answers = tokenizer.encode_batch(spelled)
        if any(len(answer) > 1 for answer in answers):
            answers = [np.append(answer, np.int32(tokenizer.special.eop)) for answer in answers]
        check_row(context.tokens, max(map(len, answers)), slots)
    request = Request(context.tokens, context.blanks[0], answers)
    return Question(request, line.fields["label"], line.fields.get("language"))


def _check_choices(line: Line) -> list[str]:
    choices, label = line.fields.get("choices"), line.fields.get("label")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{line.where}: the field 'choices' must be a list of two or more")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise UserError(f"{line.where}: a choice must be a string that is not blank")
        check_plain(line.where, "a choice", choice)
    if len(set(choices)) < len(choices):
        raise UserError(f"{line.where}: two choices are the same")
    if type(label) is not int or not 0 <= label < len(choices):
        raise UserError(
            f"{line.where}: the field 'label' must be an index from 0 to {len(choices) - 1}, "
            f"got {label!r}"
        )
    return choices
