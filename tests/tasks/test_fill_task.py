"""Exact match of filled blanks."""

import pytest

from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.tasks import fill

SLOTS = 96
OPTIONS = DecodingOptions(max_new_tokens=4)
TEXTS = ["Gold is [MASK].", "水是[MASK]。", "The capital of France is [MASK]."]
NO_FILLER = None  # whatever the positions of a model, the row of its training is the limit


@pytest.fixture(scope="module")
def filler(model_config, params, tokenizer):
    return Filler(model_config.model, params, tokenizer, batch_size=2)


def test_an_answer_counts_if_it_is_the_very_one(filler, tokenizer, jsonl):
    answers = [filled.answers[0] for filled in filler.fill(TEXTS, OPTIONS)]
    right = [
        {"text": text, "answer": f" {answer} ", "language": language}
        for text, answer, language in zip(TEXTS, answers, ["en", "zh", "en"], strict=True)
    ]
    wrong = {"text": TEXTS[0], "answer": answers[0] + "x"}
    result = fill.evaluate(filler, tokenizer, [jsonl(*right, wrong)], SLOTS, OPTIONS)
    scores = {group: (figure.n, figure.score) for group, figure in result.figures.items()}
    assert scores == {"all": (4, 0.75), "en": (2, 1.0), "zh": (1, 1.0)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": None}, "'answer' must be a string that is not blank"),
        ({"answer": " "}, "'answer' must be a string that is not blank"),
        ({"answer": "[MASK]"}, r"the special token \[MASK\] in answer"),
        ({"answer": "a <sop>"}, "the special token <sop> in answer"),
        ({"text": "[dBLOCK] is [MASK]"}, r"the special token \[dBLOCK\] in text"),
        ({"text": "a [MASK] and [MASK]"}, "one blank"),
        ({"text": "gold " * 100 + "[MASK]"}, r"a context of \d+ tokens and an answer of"),
        ({"answer": "gold " * 100}, r"an answer of \d+ do not fit a row of 96"),
    ],
)
def test_mistakes_come_before_anything_is_decoded(tokenizer, jsonl, fields, message):
    question = {"text": TEXTS[0], "answer": "yellow"}
    path = jsonl(question, question | fields)
    with pytest.raises(UserError, match=f"input.jsonl:2: .*{message}"):
        fill.evaluate(NO_FILLER, tokenizer, [path], SLOTS, OPTIONS)


def test_a_row_bounds_what_is_decoded(tokenizer, jsonl):
    path = jsonl({"text": TEXTS[0], "answer": "yellow"})
    with pytest.raises(UserError, match="^--max_new_tokens 4 is more than a row of 3$"):
        fill.evaluate(NO_FILLER, tokenizer, [path], 3, OPTIONS)
