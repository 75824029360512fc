"""Bits per byte: windows, formulas, and the slow obvious version."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks.slow import part_b
from training.samples import changed

from glm_jax.errors import UserError
from glm_jax.tasks import bpb
from glm_jax.tasks.continuation import document_mask
from glm_jax.tokenizer import SPECIAL_PIECES, SpecialTokens

SPECIAL = SpecialTokens()
TEXTS = [
    ("The capital of France is Paris, and gold is yellow. " * 5, "en"),
    ("法国的首都是巴黎。" * 12, "zh"),
    ("Gold is yellow.", "en"),
    ("A", "en"),
]


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_token_is_scored_once(length, size, stride, unidirectional):
    windows = bpb.Windows(size, min(size, stride), unidirectional)
    tokens = np.arange(16, 16 + length, dtype=np.int32)
    scored = []
    for request in bpb.window_requests(tokens, windows, SPECIAL.gmask, SPECIAL):
        (answer,) = request.answers
        context = request.context
        assert (context[0], context[-1], request.mask) == (
            SPECIAL.cls,
            SPECIAL.gmask,
            len(context) - 1,
        )
        before = [*context[1:-1], *answer[: request.given]]
        seen = len(scored)
        assert before == scored[seen - len(before) :]  # what a token follows is what is before it
        assert len(context) + len(answer) <= size + 2
        assert not unidirectional or len(context) == 2
        scored.extend(answer[request.given :])
    np.testing.assert_array_equal(scored, tokens)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_figures_are_those_of_the_slow_version(
    scorer, model_config, params, tokenizer, jsonl, unidirectional
):
    path = jsonl(*({"text": text, "language": language} for text, language in TEXTS))
    windows = bpb.Windows(40, 16, unidirectional)
    result = bpb.evaluate(scorer, tokenizer, [path], windows, SPECIAL.gmask)
    nll = {}
    for text, _ in TEXTS:
        total, tokens = 0.0, tokenizer.encode(text)
        for start in [0, *range(40, len(tokens), 16)]:
            new = tokens[start : start + (40 if start == 0 else 16)]
            before = tokens[max(start - 24, 0) : start]
            if unidirectional:
                context, answer = [SPECIAL.cls, SPECIAL.gmask], [*before, *new]
            else:
                context, answer = [SPECIAL.cls, *before, SPECIAL.gmask], new
            log_probs, _ = part_b(
                model_config.model, params, context, len(context) - 1, answer, SPECIAL.sop
            )
            total -= log_probs[-len(new) :].sum()
        nll[text] = total
    size = {text: len(text.encode()) for text, _ in TEXTS}
    for group in ("all", "en", "zh"):
        texts = [text for text, language in TEXTS if group in ("all", language)]
        bits = sum(nll[text] for text in texts) / math.log(2)
        expected = bits / sum(size[text] for text in texts)
        assert result.figures[group].n == len(texts)
        assert result.figures[group].score == pytest.approx(expected, rel=1e-5)
        assert result.more["bytes"][group] == sum(size[text] for text in texts)
        assert result.more["tokens"][group] == sum(len(tokenizer.encode(text)) for text in texts)
    english = [text for text, language in TEXTS if language == "en"]
    per_word = sum(nll[t] for t in english) / sum(len(t.split()) for t in english)
    assert result.more["word_perplexity"]["en"] == pytest.approx(math.exp(per_word), rel=1e-4)
    chinese = TEXTS[1][0]
    per_character = math.exp(nll[chinese] / len(chinese))
    assert result.more["word_perplexity"]["zh"] == pytest.approx(per_character, rel=1e-4)
    assert set(result.more["word_perplexity"]) == {"en", "zh"}


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_a_token(
    uniform_scorer, model_config, tokenizer, jsonl
):
    path = jsonl(*({"text": text} for text, _ in TEXTS))
    windows = bpb.make_windows(model_config, stride=10)
    result = bpb.evaluate(uniform_scorer, tokenizer, [path], windows, SPECIAL.gmask)
    bits = math.log2(model_config.model.vocab_size) * result.more["tokens"]["all"]
    assert result.figures["all"].score * result.more["bytes"]["all"] == pytest.approx(bits)


def test_limit_counts_for_each_file(uniform_scorer, model_config, tokenizer, jsonl):
    paths = [jsonl({"text": "a"}, {"text": "b"}, name=f"{i}.jsonl") for i in range(2)]
    windows = bpb.make_windows(model_config)
    result = bpb.evaluate(uniform_scorer, tokenizer, paths, windows, SPECIAL.gmask, limit=1)
    assert result.figures["all"].n == 2


def test_default_windows(model_config):
    assert bpb.make_windows(model_config) == bpb.Windows(94, 47, False)
    longer = changed(changed(model_config, "model", max_positions=1024), "data", seq_length=1024)
    assert bpb.make_windows(longer) == bpb.Windows(1022, 256, False)
    assert bpb.make_windows(model_config, 20, 18, unidirectional=True) == bpb.Windows(18, 18, True)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((20, 19), "--stride 19 must be from 1 to 18, the tokens of a window of 20 slots"),
        ((2, 0), "--stride 1 must be from 1 to 0"),
        ((200, 0), r"--window 200 is more than the position table holds \(model.max_positions 96"),
    ],
)
def test_windows_that_cannot_be(model_config, sizes, message):
    with pytest.raises(UserError, match=message):
        bpb.make_windows(model_config, *sizes)


def test_mistakes_in_the_file(uniform_scorer, model_config, tokenizer, jsonl):
    windows = bpb.make_windows(model_config)

    def evaluate(path):
        return bpb.evaluate(uniform_scorer, tokenizer, [path], windows, SPECIAL.gmask)

    with pytest.raises(UserError, match=r"input.jsonl:2: the field 'text' is missing"):
        evaluate(jsonl({"text": "a"}, {"txt": "b"}))
    with pytest.raises(UserError, match=r"nothing to evaluate in .*input.jsonl"):
        evaluate(jsonl("", "  "))
    for piece in SPECIAL_PIECES:
        text = "gold " * 50 + f"is {piece} here"
        message = f"input.jsonl:2: the special token {re.escape(piece)} in text '"
        with pytest.raises(UserError, match=message) as error:
            evaluate(jsonl({"text": "a"}, {"text": text}))
        assert f"is {piece} here'" in str(error.value)


def test_the_mask_is_one_the_model_was_trained_on(model_config):
    assert document_mask(model_config.objective, SPECIAL) == SPECIAL.mask
    trained = changed(model_config, "objective", document_weight=0.3)
    assert document_mask(trained.objective, SPECIAL) == SPECIAL.gmask
