"""The adapter for lm-evaluation-harness; skipped without it."""

import json
import math

import numpy as np
import pytest
from tasks.slow import part_b

from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.tasks import bpb
from glm_jax.tokenizer import SPECIAL_PIECES, SpecialTokens

Instance = pytest.importorskip(
    "lm_eval.api.instance", reason="needs lm_eval: pip install -e '.[eval]'"
).Instance
harness = pytest.importorskip("glm_jax.tasks.harness")

SPECIAL = SpecialTokens()
OWN = ["glm_jax_choice_en", "glm_jax_choice_zh"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def filler(model_config, params, tokenizer):
    return Filler(model_config.model, params, tokenizer)


@pytest.fixture(scope="module")
def model(model_config, scorer, filler, tokenizer):
    windows = bpb.make_windows(model_config)
    return harness.GLMHarness(scorer, filler, tokenizer, windows, SPECIAL.gmask)


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def test_a_continuation_follows_its_prompt(model, model_config, params, tokenizer):
    assert model.loglikelihood(instances("loglikelihood", ("Gold", ""), ("Gold", " i")))[0] == (
        0,
        True,
    )
    prompt, long = "The capital of France is ", "Gold is yellow. " * 20
    asked = [(prompt, "Paris"), (prompt, "Rome, I think"), ("", "水"), (long, "And"), (prompt, "x")]
    found = model.loglikelihood(instances("loglikelihood", *asked))
    for (context, text), (log_prob, is_greedy) in zip(asked, found, strict=True):
        space = context[len(context.rstrip()) :]
        answer = tokenizer.encode(space + text)
        before = tokenizer.encode(context.rstrip())[-(96 - 2 - len(answer)) :]
        part_a = [SPECIAL.cls, *before, SPECIAL.gmask]
        log_probs, flags = part_b(
            model_config.model, params, part_a, len(before) + 1, answer, SPECIAL.sop
        )
        assert log_prob == pytest.approx(log_probs.sum(), rel=1e-5)
        assert is_greedy == flags.all()


def test_what_is_generated_is_greedy(model, filler):
    prompt = "The capital of France is"
    asked = [(prompt, {"until": ["\n\n"], "max_gen_toks": 5}), (prompt, {"until": ["\n\n"]})]
    five, half_a_row = model.generate_until(instances("generate_until", *asked))
    expected = filler.fill([prompt + "[gMASK]"], DecodingOptions(max_new_tokens=5))[0].answers[0]
    assert five == expected.split("\n\n")[0]
    assert half_a_row.startswith(five)
    (score,) = model.loglikelihood(instances("loglikelihood", (prompt, expected)))
    assert not expected or score[1]  # the scorer calls the generated text greedy


def test_generation_stops_and_refuses(model):
    assert harness._until("one. two\nthree", {"until": ["\n", ". "]}) == "one"
    assert harness._until("one", {"until": "n"}) == "o"
    with pytest.raises(UserError, match="generation is greedy"):
        model.generate_until(instances("generate_until", ("a", {"do_sample": True})))
    (text,) = model.generate_until(
        instances("generate_until", ("金是黄色的。" * 60, {"max_gen_toks": 2}))
    )
    assert isinstance(text, str)


@pytest.mark.parametrize("piece", SPECIAL_PIECES)
def test_special_tokens_are_refused(model, piece):
    def ask(kind, *arguments):
        request = Instance(kind, {}, arguments, 0, metadata=("questions", 7, 1))
        return getattr(model, kind)([request])

    for kind, arguments, name in (
        ("loglikelihood", (f"a {piece}", "b"), "prompt"),
        ("loglikelihood", ("a", f" {piece}"), "continuation"),
        ("loglikelihood_rolling", (f"a {piece}",), "document"),
        ("generate_until", (f"a {piece}", {"until": [piece]}), "prompt"),
    ):
        with pytest.raises(UserError) as error:
            ask(kind, *arguments)
        message = f"harness: questions, item 7: the special token {piece} in {name} "
        assert str(error.value).startswith(message)


def test_rolling_is_bpb(model, scorer, model_config, tokenizer):
    text = "Gold is yellow. " * 30
    (found,) = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    windows = bpb.make_windows(model_config)
    (nll,), _ = bpb.score_texts(scorer, [tokenizer.encode(text)], windows, SPECIAL.gmask)
    assert found == pytest.approx(-nll)


@pytest.mark.slow
def test_the_harness_runs_our_tasks(model):
    found = harness.evaluate(model, OWN)
    assert found["n"] == dict.fromkeys(OWN, 20)
    for name in OWN:
        score, stderr = found["scores"][name]["acc"], found["stderr"][name]["acc"]
        assert stderr == pytest.approx(math.sqrt(score * (1 - score) / 19))
        assert set(found["scores"][name]) >= {"acc", "acc_norm"}
    assert harness.evaluate(model, OWN[:1], limit=3)["n"] == {OWN[0]: 3}


@pytest.mark.slow
def test_no_such_task(model, tmp_path):
    with pytest.raises(UserError, match="no task glm_jax_nothing in"):
        harness.evaluate(model, ["glm_jax_nothing"])
    with pytest.raises(UserError, match="is not a folder"):
        harness.evaluate(model, OWN, tmp_path / "missing")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_our_items_are_well_formed_and_the_answer_may_stand_anywhere(language):
    path = harness.TASKS_DIR / f"choice_{language}.jsonl"
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({item["text"] for item in items}) == len(items) == 20
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert np.bincount([item["label"] for item in items]).tolist() == [5, 5, 5, 5]
