"""Exact match of filled blanks."""

import pytest

from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.tasks import fill

OPTIONS = DecodingOptions(max_new_tokens=4)
TEXTS = ["Gold is [MASK].", "水是[MASK]。", "The capital of France is [MASK]."]


@pytest.fixture(scope="module")
def filler(model_config, params, tokenizer):
    return Filler(model_config.model, params, tokenizer, batch_size=2)


def test_an_answer_counts_if_it_is_the_very_one(filler, jsonl):
    answers = [filled.answers[0] for filled in filler.fill(TEXTS, OPTIONS)]
    right = [
        {"text": text, "answer": f" {answer} ", "language": language}
        for text, answer, language in zip(TEXTS, answers, ["en", "zh", "en"], strict=True)
    ]
    wrong = {"text": TEXTS[0], "answer": answers[0] + "x"}
    result = fill.evaluate(filler, [jsonl(*right, wrong)], OPTIONS)
    scores = {group: (figure.n, figure.score) for group, figure in result.figures.items()}
    assert scores == {"all": (4, 0.75), "en": (2, 1.0), "zh": (1, 1.0)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": None}, "'answer' must be a string that is not blank"),
        ({"answer": " "}, "'answer' must be a string that is not blank"),
        ({"answer": "[MASK]"}, r"\[MASK\] in answer"),
        ({"text": "a [MASK] and [MASK]"}, "one blank"),
        ({"text": "gold " * 100 + "[MASK]"}, "position table"),
    ],
)
def test_mistakes(filler, jsonl, fields, message):
    question = {"text": TEXTS[0], "answer": "yellow"}
    with pytest.raises(UserError, match=f"input.jsonl:2: .*{message}"):
        fill.evaluate(filler, [jsonl(question, question | fields)], OPTIONS)
