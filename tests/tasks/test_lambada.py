"""LAMBADA: how passages are cut and put, and when an answer counts."""

import math

import numpy as np
import pytest
from tasks.slow import part_b

from glm_jax.errors import UserError
from glm_jax.model.scoring import Scores
from glm_jax.tasks import lambada
from glm_jax.tasks.files import read_texts
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
SLOTS = 64
TEXTS = [
    "Gold is yellow, and the capital of France is Paris",
    "Water is clear.\n\nSilver is  white.",
    "The capital of Italy is Rome. " * 10 + "Gold is yellow",
]


def test_both_directions_are_those_of_the_slow_version(
    scorer, model_config, params, tokenizer, jsonl
):
    path = jsonl(*({"text": text} for text in TEXTS))
    result = lambada.evaluate(scorer, tokenizer, [path], SLOTS, SPECIAL.gmask)
    hits = {"bidirectional": [], "unidirectional": []}
    nll = dict.fromkeys(hits, 0.0)
    for text in TEXTS:
        answer = tokenizer.encode(" " + text.split()[-1])
        before = tokenizer.encode(text[: text.rindex(text.split()[-1])].strip())
        before = before[max(0, len(before) - (SLOTS - 3 - len(answer))) :]
        rest = [*before[1:], *answer]
        for direction, seen, part in (
            ("bidirectional", before, answer),
            ("unidirectional", before[:1], rest),
        ):
            context = [SPECIAL.cls, *seen, SPECIAL.gmask, SPECIAL.eos]
            mask = len(context) - 2
            log_probs, flags = part_b(model_config.model, params, context, mask, part, SPECIAL.sop)
            hits[direction].append(flags[-len(answer) :].all())
            nll[direction] -= log_probs[-len(answer) :].sum()
    for direction in hits:
        assert result.figures[direction].n == 3
        assert result.figures[direction].score == np.mean(hits[direction])
        expected = math.exp(nll[direction] / 3)
        assert result.more["perplexity"][direction] == pytest.approx(expected, rel=1e-4)


def test_an_answer_counts_if_each_of_its_tokens_is_the_argmax(tokenizer, jsonl):
    class Fixed:
        special = SPECIAL

        def score(self, requests):
            assert all(request.answers[0][-1] != SPECIAL.eop for request in requests)
            flags = iter([[True, True], [True, False], [False, True], [True]])
            return [[Scores(np.full(2, -1.0), np.array(next(flags)))] for _ in requests]

    path = jsonl(*({"text": TEXTS[0]} for _ in range(4)))
    result = lambada.evaluate(Fixed(), tokenizer, [path], SLOTS, SPECIAL.gmask)
    for figure in result.figures.values():
        assert (figure.n, figure.score) == (4, 0.5)
        assert figure.stderr == pytest.approx(math.sqrt(0.25 / 3))
    assert result.more["perplexity"]["bidirectional"] == pytest.approx(math.exp(2))


def test_the_answer_is_the_last_word_with_its_space(jsonl):
    path = jsonl({"text": " It was  the\ncat, the  cat.\n"})
    (document,) = read_texts([path])
    assert lambada.split_last_word(document) == ("It was  the\ncat, the", " cat.")


def test_a_prompt_with_an_answer_is_no_text(jsonl):
    path = jsonl({"text": "plain text"}, {"prompt": "Two and two?", "answer": "four"})
    with pytest.raises(UserError, match=f"{path}:2: a line with 'text' is needed"):
        read_texts([path])


def test_long_passages_lose_their_beginning():
    context = np.arange(100, 200, dtype=np.int32)
    passage = lambada.Passage("here", context, np.array([7, 8], np.int32))
    both = lambada.bidirectional(passage, 20, SPECIAL.gmask, SPECIAL)
    expected = [SPECIAL.cls, *range(185, 200), SPECIAL.gmask, SPECIAL.eos]
    np.testing.assert_array_equal(both.context, expected)
    assert (both.mask, both.given) == (16, 0)
    one = lambada.unidirectional(passage, 20, SPECIAL.gmask, SPECIAL)
    np.testing.assert_array_equal(one.context, [SPECIAL.cls, 185, SPECIAL.gmask, SPECIAL.eos])
    np.testing.assert_array_equal(one.answers[0], [*range(186, 200), 7, 8])
    assert (one.mask, one.given) == (2, 14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alone", r"input.jsonl:2: a passage needs at least two words"),
        ("Paris is [MASK] here", r"input.jsonl:2: the special token \[MASK\] in text 'Paris"),
        ("Paris is <eop> here", r"input.jsonl:2: the special token <eop> in text 'Paris"),
        ("a " + "long" * 40, r"input.jsonl:2: an answer of \d+ tokens does not fit a row of 64"),
    ],
)
def test_mistakes(scorer, tokenizer, jsonl, text, message):
    path = jsonl({"text": "Gold is yellow"}, {"text": text})
    with pytest.raises(UserError, match=message):
        lambada.evaluate(scorer, tokenizer, [path], SLOTS, SPECIAL.gmask)
