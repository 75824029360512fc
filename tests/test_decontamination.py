import json
import pickle
import random
import unicodedata

import pytest
from commands import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.decontamination import Decontaminator, EvaluationCounts
from glm_jax.errors import UserError
from glm_jax.text_units import find_units

WORDS = [f"word{i}" for i in range(40)]
SENTENCE = "The quick brown fox jumps over the lazy dog and runs far away from here"
CHINESE = "今天天气很好我们一起去公园散步吧"


def units(text):
    found = find_units(text)
    return [text[start:end].lower() for start, end in zip(found.starts, found.ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ,.!", []),
        ("Hello, WORLD_2!", ["hello", "world", "2"]),
        ("don't", ["don", "t"]),
        ("用Python写，很 简单。", ["用", "python", "写", "很", "简", "单"]),
        ("ＡＢ１２ \U000e0100x", ["ａｂ１２", "x"]),
        ("ひらカナ 한국어", ["ひ", "ら", "カ", "ナ", "한국어"]),
        ("\U00020000a", ["\U00020000", "a"]),
        ("a\ud800b", ["a", "b"]),
    ],
)
def test_units(text, expected):
    assert units(text) == expected


def test_forms_of_a_character_are_one():
    for form, plain in (("ＡＢ１２", "ab12"), ("①", "1"), ("É", "é"), ("Ω", "ω")):
        assert find_units(form).values.tolist() == find_units(plain).values.tolist()


def test_units_of_a_long_text_are_those_of_its_words():
    words = random.Random(0).choices(["a", "bc", "中文", "it's", "x" * 40_000], k=3000)
    found = find_units(" ".join(words))
    expected = [find_units(word).values for word in words]
    assert found.values.tolist() == [value for values in expected for value in values.tolist()]


@settings(deadline=None)  # the first call builds tables
@given(st.lists(st.text(st.sampled_from("abA中 ,"), min_size=1), max_size=4))
def test_equal_units_have_equal_values_and_others_do_not(parts):
    text = " ".join(parts)
    values = find_units(text).values.tolist()
    spelled = units(text)
    assert len(set(zip(values, spelled, strict=True))) == len(set(values)) == len(set(spelled))


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        f"Before. {SENTENCE.upper()}! After.",
        SENTENCE.replace(" ", ", "),
        "words around " + " ".join(SENTENCE.split()[1:14]) + " other words",
    ],
)
def test_a_shared_ngram_is_found(text):
    finder = Decontaminator([SENTENCE])
    assert finder.is_contaminated(text)
    assert "fox" in finder.first_matches([text])[0].lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        " ".join(SENTENCE.split()[:12]),
        " ".join(reversed(SENTENCE.split())),
        SENTENCE.replace("lazy", "idle"),
        SENTENCE.replace("the lazy", "thelazy"),
    ],
)
def test_less_is_not(text):
    assert not Decontaminator([SENTENCE]).is_contaminated(text)


def test_an_accent_may_be_a_character_of_its_own():
    text = "Un café très animé où l'été dernier nous avons dîné près de la forêt brûlée"
    apart = unicodedata.normalize("NFD", text)
    assert len(apart) > len(text)
    for evaluation, found in ((text, apart), (apart, text)):
        match = Decontaminator([evaluation]).first_matches(["é", f"Ainsi : {found}.", text])[1]
        assert match is not None
        assert match.startswith("Un café très")


def test_chinese_is_compared_by_characters():
    finder = Decontaminator([CHINESE])
    assert finder.first_matches([f"他说：“{CHINESE[1:14]}。”"]) == ["天天气很好我们一起去公园散"]
    assert not finder.is_contaminated(CHINESE[1:13])


@settings(deadline=None)  # the first call builds tables
@given(
    evaluation=st.lists(st.lists(st.sampled_from(WORDS[:4]), max_size=8), min_size=1, max_size=4),
    texts=st.lists(st.lists(st.sampled_from(WORDS[:5]), max_size=12), max_size=5),
    ngram=st.integers(1, 5),
)
def test_matches_are_those_of_a_plain_search(evaluation, texts, ngram):
    evaluation.append(["a"] * ngram)
    finder = Decontaminator(map(" ".join, evaluation), ngram)
    ngrams = {tuple(e[i : i + ngram]) for e in evaluation for i in range(len(e) - ngram + 1)}
    expected = []
    for words in texts:
        windows = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
        expected.append(next((" ".join(w) for w in windows if w in ngrams), None))
    assert finder.first_matches([" ".join(words) for words in texts]) == expected


def test_short_evaluation_texts_are_matched_whole_or_counted():
    finder = Decontaminator([" ".join(WORDS[:9]), "too short", SENTENCE])
    assert finder.counts == EvaluationCounts(texts=2, ngrams=4, too_short=1)
    assert finder.is_contaminated(" ".join(WORDS[:12]))
    assert not finder.is_contaminated(" ".join(WORDS[:8]))
    assert finder.is_contaminated(SENTENCE)
    assert not finder.is_contaminated("too short")
    with pytest.raises(UserError, match=r"no evaluation text has 8 words .* \(1 are shorter\)"):
        Decontaminator(["too short"])
    with pytest.raises(UserError, match="1 unit or more, got 0"):
        Decontaminator([SENTENCE], 0)


def test_pickle_and_fingerprint():
    finder = Decontaminator([SENTENCE, CHINESE])
    copy = pickle.loads(pickle.dumps(finder))
    assert copy.is_contaminated(CHINESE)
    assert copy.fingerprint == finder.fingerprint
    assert Decontaminator([CHINESE, SENTENCE.lower()]).fingerprint == finder.fingerprint
    assert Decontaminator([SENTENCE]).fingerprint != finder.fingerprint
    assert Decontaminator([SENTENCE, CHINESE], 12).fingerprint != finder.fingerprint
    code = (
        f"from glm_jax.decontamination import *; print(Decontaminator([{SENTENCE!r}]).fingerprint)"
    )
    assert run_command("-c", code).stdout.strip() == Decontaminator([SENTENCE]).fingerprint


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_evaluation_files(tmp_path):
    words = " ".join
    path = write(
        tmp_path / "a.jsonl",
        {"text": f"{words(WORDS[:6])} [MASK] {words(WORDS[7:13])}", "answer": WORDS[6]},
        {
            "text": f"{words(WORDS[20:26])}[MASK] {words(WORDS[27:33])}",
            "choices": ["wrong", f" {WORDS[26]}"],
            "label": 1,
        },
        {"prompt": words(WORDS[5:12]), "answer": words(WORDS[30:36])},
        {"text": " "},
        {"text": f"[gMASK] {words(WORDS[13:26])}", "language": "fr"},
    )
    finder = Decontaminator.from_files([path])
    assert finder.counts == EvaluationCounts(texts=4, ngrams=4, too_short=0)
    for start in (0, 20, 13):
        assert finder.is_contaminated(words(WORDS[start : start + 13]))
    assert finder.is_contaminated(words(WORDS[5:12] + WORDS[30:36]))
    assert not finder.is_contaminated(words(WORDS[1:14]))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "x"}, "the field 'text' is missing"),
        ({"text": "x [MASK]", "choices": ["a"], "label": 1}, "'label' must be an index"),
        ({"text": "x [MASK]", "answer": 3}, "the field 'answer' must be a string, got number"),
    ],
)
def test_a_faulty_evaluation_line_is_named(tmp_path, record, reason):
    path = write(tmp_path / "a.jsonl", {"text": SENTENCE}, record)
    with pytest.raises(UserError, match=f"{path}:2: .*{reason}"):
        Decontaminator.from_files([path])
