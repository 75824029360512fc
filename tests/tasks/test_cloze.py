"""Multiple choice: both kinds of questions against the slow version, and malformed ones."""

import numpy as np
import pytest
from tasks.slow import part_b

from glm_jax.errors import UserError
from glm_jax.model.scoring import Scores
from glm_jax.tasks import cloze
from glm_jax.tasks.files import Line
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
SLOTS = 96
SENTENCES = [
    ("The capital of France is [MASK], I think.", ["Paris", "Rome", "Berlin"], "en"),
    ("法国的首都是[MASK]。", ["巴黎", "罗马城", "北京", "东京都"], "zh"),
    ("[MASK] is yellow.", ["Gold", "The old silver"], None),
    ("Gold is[MASK]", [" yellow", " white"], "en"),
]


def questions():
    for n, (text, choices, language) in enumerate(SENTENCES):
        for label in range(len(choices)):
            question = {"text": text, "choices": choices, "label": label}
            yield question | ({"language": language} if language and n else {})


def slow_choice(config, params, tokenizer, question, penalty) -> int:
    before, after = question["text"].split("[MASK]")
    space = before[len(before.rstrip()) :]
    before = tokenizer.encode(before.rstrip())
    context = [SPECIAL.cls, *before, SPECIAL.mask, *tokenizer.encode(after), SPECIAL.eos]
    spelled = [c if c[0] == " " else space + c for c in question["choices"]]
    encoded = [tokenizer.encode(choice).tolist() for choice in spelled]
    if any(len(ids) > 1 for ids in encoded):
        encoded = [[*ids, SPECIAL.eop] for ids in encoded]
    totals = []
    for ids in encoded:
        log_probs, _ = part_b(config, params, context, len(before) + 1, ids, SPECIAL.sop)
        totals.append(log_probs.sum() / len(ids) ** penalty)
    return int(np.argmax(totals))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_accuracy_is_that_of_the_slow_version(
    scorer, model_config, params, tokenizer, jsonl, penalty
):
    result = cloze.evaluate(scorer, tokenizer, [jsonl(*questions())], SLOTS, penalty)
    hits, languages = [], []
    for question in questions():
        chosen = slow_choice(model_config.model, params, tokenizer, question, penalty)
        hits.append(chosen == question["label"])
        languages.append(question.get("language"))
    assert result.figures["all"].score == np.mean(hits)
    for language in ("en", "zh"):
        mine = [hit for hit, name in zip(hits, languages, strict=True) if name == language]
        assert result.figures[language].n == len(mine)
        assert result.figures[language].score == np.mean(mine)


def test_choices_of_one_token_are_read_at_one_sop(tokenizer):
    pieces = [tokenizer.decode([token]) for token in range(300, tokenizer.vocab_size)]
    single = [p for p in pieces if len(tokenizer.encode(" " + p.strip())) == 1 and p.strip()][:3]
    fields = {"text": "It is [MASK].", "choices": [p.strip() for p in single], "label": 0}
    question = cloze.make_question(Line("f:1", fields), tokenizer, SLOTS)
    assert [len(answer) for answer in question.request.answers] == [1, 1, 1]
    longer = fields | {"choices": [*fields["choices"], "a very long choice"]}
    question = cloze.make_question(Line("f:1", longer), tokenizer, SLOTS)
    assert all(answer[-1] == SPECIAL.eop for answer in question.request.answers)


def test_a_row_holds_the_context_and_the_longest_choice(tokenizer):
    line = Line("f:1", {"text": "It is [MASK].", "choices": ["a", "yellow gold"], "label": 0})
    request = cloze.make_question(line, tokenizer, SLOTS).request
    needed = len(request.context) + max(map(len, request.answers))
    cloze.make_question(line, tokenizer, needed)
    with pytest.raises(UserError, match=rf"^f:1: .* do not fit a row of {needed - 1} "):
        cloze.make_question(line, tokenizer, needed - 1)


def test_the_length_penalty_divides_by_the_number_of_terms():
    def scores(*log_probs):
        return Scores(np.array(log_probs, np.float32), np.zeros(len(log_probs), bool))

    short, long = scores(-2.0), scores(-1.0, -1.0, -1.0)
    assert cloze.choose([short, long]) == 0
    assert cloze.choose([short, long], 1.0) == 1
    assert cloze.choose([short, short]) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "no blank"}, "must have one blank such as .MASK., got 0"),
        ({"text": "[MASK] and [sMASK]"}, "got 2"),
        ({"text": 3}, "the field 'text' must be a string"),
        ({"choices": []}, "'choices' must be a list of two or more"),
        ({"choices": "ab"}, "'choices' must be a list"),
        ({"choices": ["a", ""]}, "a choice must be a string that is not blank"),
        ({"choices": ["a", "[MASK]"]}, r"the special token \[MASK\] in a choice '\[MASK\]'"),
        ({"choices": ["a", "b</s>"]}, "the special token </s> in a choice 'b</s>'"),
        ({"text": "[CLS] It is [MASK]."}, r"the special token \[CLS\] in text '\[CLS\] It is'"),
        ({"text": "It is [MASK].<pad>"}, r"the special token <pad> in text '.<pad>'"),
        ({"choices": ["a", "a"]}, "two choices are the same"),
        ({"label": 2}, "'label' must be an index from 0 to 1, got 2"),
        ({"label": -1}, "'label' must be an index from 0 to 1, got -1"),
        ({"label": True}, "got True"),
        ({"label": None}, "got None"),
        ({"language": "fr"}, "'language' must be 'en' or 'zh'"),
        ({"choices": ["a", "gold " * 100]}, r"an answer of \d+ do not fit a row of 96"),
        ({"text": "gold " * 100 + "[MASK]"}, r"a context of \d+ tokens and an answer of 1 do not"),
    ],
)
def test_malformed_questions(scorer, tokenizer, jsonl, fields, message):
    good = {"text": "It is [MASK].", "choices": ["a", "b"], "label": 0}
    with pytest.raises(UserError, match=rf"input.jsonl:3: .*{message}"):
        cloze.evaluate(scorer, tokenizer, [jsonl(good, "", good | fields)], SLOTS)


def test_malformed_files(scorer, tokenizer, jsonl, tmp_path):
    with pytest.raises(UserError, match="input.jsonl:1: not JSON"):
        cloze.evaluate(scorer, tokenizer, [jsonl("{")], SLOTS)
    with pytest.raises(UserError, match="input.jsonl:1: a line must be an object"):
        cloze.evaluate(scorer, tokenizer, [jsonl("[1]")], SLOTS)
    with pytest.raises(UserError, match="nothing to evaluate"):
        cloze.evaluate(scorer, tokenizer, [jsonl()], SLOTS)
    with pytest.raises(UserError, match="missing.jsonl: cannot be read: No such file"):
        cloze.evaluate(scorer, tokenizer, [tmp_path / "missing.jsonl"], SLOTS)
    (tmp_path / "bytes.jsonl").write_bytes(b'\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match="bytes.jsonl:2: not UTF-8 at byte 10"):
        cloze.evaluate(scorer, tokenizer, [tmp_path / "bytes.jsonl"], SLOTS)
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UserError, match="cut.jsonl.gz: cannot be read"):
        cloze.evaluate(scorer, tokenizer, [tmp_path / "cut.jsonl.gz"], SLOTS)
