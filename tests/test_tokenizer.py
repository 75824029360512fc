import dataclasses
import io
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from glm_jax import tokenizer
from glm_jax.errors import UserError
from glm_jax.tokenizer import (
    INFO_FILE,
    MODEL_FILE,
    SPECIAL_PIECES,
    SpecialTokens,
    Tokenizer,
    fertility,
    sampling,
)
from glm_jax.tokenizer.memory import available_memory

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = {
    "en": [f"The quick brown fox number {i} jumps over\nthe lazy dog." for i in range(50)],
    "zh": [f"今天天气很好，第{i}只敏捷的狐狸跳过懒狗。" for i in range(50)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "parent" / "folder"
    tokenizer.save(path, tokenizer.train(TEXTS["en"] + TEXTS["zh"], 400), TEXTS)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return Tokenizer.load(folder)


ODD_TEXTS = (
    "",
    " ",
    "  two  spaces ",
    "tab\tand\r\nCRLF\n\n",
    "NUL\x00and\x7f",
    "\u3000全角\u3000ＡＢ１２",
    "emoji \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "rare \U00020000龘",
    "e\u0301 é ﬁ ①",
    "\u2581",
    "a \u2581\u2581b\u2581",
    "\u2028\u0085\ufeff",
    "[MASK][gMASK] <sop> </s> <0x41>",
)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_round_trip_of_odd_texts(loaded, text):
    ids = loaded.encode(text)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert loaded.decode(ids) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(loaded, text):
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert np.all(ids >= len(SPECIAL_PIECES))


@given(
    st.lists(st.sampled_from([*SPECIAL_PIECES, " ", "a", "[", "]", "<", ">", "\u2581"]), max_size=8)
)
def test_text_never_produces_a_special_token(loaded, parts):
    text = "".join(parts)
    ids = loaded.encode(text)
    assert np.all(ids >= len(SPECIAL_PIECES))
    assert loaded.decode(ids) == text


@pytest.mark.parametrize("num_threads", [1, 2])
def test_batch_is_single(loaded, num_threads):
    batch = loaded.encode_batch(ODD_TEXTS, num_threads=num_threads)
    assert all(ids.dtype == np.int32 for ids in batch)
    assert [ids.tolist() for ids in batch] == [loaded.encode(t).tolist() for t in ODD_TEXTS]
    assert loaded.decode_batch(batch) == list(ODD_TEXTS)
    assert loaded.encode_batch([]) == []


def test_special_tokens_have_their_ids_and_no_text(loaded):
    assert loaded.special == SpecialTokens()
    assert [loaded.pieces[i] for i in loaded.control_ids] == list(SPECIAL_PIECES)
    assert len(loaded.pieces) == loaded.vocab_size == 400
    special = dataclasses.asdict(loaded.special)
    del special["unk"]
    fox = loaded.encode(" fox").tolist()
    assert loaded.decode([*special.values(), *fox, loaded.special.eop]) == " fox"


def test_a_line_feed_is_a_token_of_its_own(loaded):
    assert [piece for piece in loaded.pieces if "\n" in piece] == []
    assert loaded.encode("\n\n").tolist() == [loaded.pieces.index("<0x0A>")] * 2


def test_decode_takes_lists_and_arrays(loaded):
    ids = loaded.encode("the fox")
    assert loaded.decode(ids.tolist()) == loaded.decode(ids.astype(np.int64)) == "the fox"
    assert loaded.decode([]) == ""


@pytest.mark.parametrize("token", [-1, 400])
def test_decode_rejects_an_id_outside_the_vocabulary(loaded, token):
    with pytest.raises(UserError, match=f"token id {token} is outside the vocabulary of 400"):
        loaded.decode([20, token])


def test_encode_rejects_a_lone_surrogate(loaded):
    with pytest.raises(UserError, match=r"lone surrogate, '\\ud800', at character 2"):
        loaded.encode("ab\ud800")


def test_pickle(loaded):
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy.encode("fox \u2581").tolist() == loaded.encode("fox \u2581").tolist()
    assert copy.fingerprint == loaded.fingerprint
    assert copy.dir == loaded.dir


def test_training_is_deterministic_and_the_fingerprint_tells_models_apart(loaded):
    texts = TEXTS["en"] + TEXTS["zh"]
    assert tokenizer.train(texts, 400) == (loaded.dir / MODEL_FILE).read_bytes()
    assert tokenizer.train(texts, 401) != tokenizer.train(texts, 400)
    assert loaded.fingerprint == json.loads((loaded.dir / INFO_FILE).read_text())["sha256"]


def test_a_vocabulary_that_does_not_fit_names_the_limit():
    with pytest.raises(UserError, match=r"vocab_size 99999 is too large .* largest") as error:
        tokenizer.train(TEXTS["en"], 99999)
    largest = int(str(error.value).split(": ")[1].split()[0])
    assert tokenizer.train(TEXTS["en"], largest)
    with pytest.raises(UserError, match=f"{largest} is the largest possible"):
        tokenizer.train(TEXTS["en"], largest + 1)
    with pytest.raises(UserError, match=r"vocab_size 5 is too small .* smallest possible"):
        tokenizer.train(TEXTS["en"], 5)


def test_a_long_line_is_trained_on_too():
    letters = "".join(chr(0x4E00 + i) for i in range(100))
    assert len(tokenizer.train([letters * 400], 500)) > 0


def test_a_folder_is_never_overwritten(loaded):
    with pytest.raises(UserError, match="already exists"):
        tokenizer.save(loaded.dir, b"", {})


def damaged(folder, tmp_path, model=None, info=None):
    copy = shutil.copytree(folder, tmp_path / "copy")
    if model is not None:
        (copy / MODEL_FILE).write_bytes(model)
    if info is not None:
        (copy / INFO_FILE).write_text(info)
    return copy


def test_missing_files(folder, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer_info\.json: cannot be read: No such file"):
        Tokenizer.load(tmp_path)
    copy = damaged(folder, tmp_path)
    (copy / MODEL_FILE).unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model: cannot be read: No such file"):
        Tokenizer.load(copy)


def test_a_changed_model_is_noticed(folder, tmp_path):
    model = (folder / MODEL_FILE).read_bytes()
    with pytest.raises(UserError, match="damaged or replaced"):
        Tokenizer.load(damaged(folder, tmp_path, model=model[:-5]))


@pytest.mark.parametrize("info", ["", "{", "[]", "{}", '{"sha256": "x"}'])
def test_a_bad_description_is_noticed(folder, tmp_path, info):
    with pytest.raises(UserError, match="not a tokenizer description"):
        Tokenizer.load(damaged(folder, tmp_path, info=info))


def test_another_kind_of_tokenizer_is_noticed(folder, tmp_path):
    with pytest.raises(UserError, match="kind must be .*'sentencepiece-bpe'.*, got 'wordpiece'"):
        Tokenizer.load(
            damaged(folder, tmp_path, info=json.dumps({"kind": "wordpiece", "sha256": ""}))
        )


@pytest.mark.parametrize("model", [b"", b"junk" * 10])
def test_a_file_that_is_no_model(tmp_path, model):
    with pytest.raises(UserError, match="not a SentencePiece model"):
        tokenizer.save(tmp_path / "bad", model, {})
    assert not (tmp_path / "bad").exists()


def foreign_model(**changes) -> bytes:
    options = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "pad_id": 0,
        "unk_id": 1,
        "eos_id": 2,
        "bos_id": -1,
        "control_symbols": list(SPECIAL_PIECES[3:]),
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS["en"] + TEXTS["zh"]),
        model_writer=model,
        **options | changes,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pad_id": 3, "unk_id": 0, "bos_id": 1}, "id 0 must be <pad>, it is <unk>"),
        ({"control_symbols": ["[MASK]"]}, r"id 3 must be \[CLS\], it is \[MASK\]"),
        (
            {"control_symbols": [], "user_defined_symbols": list(SPECIAL_PIECES[3:])},
            r"\[CLS\] must be a control symbol",
        ),
        ({"byte_fallback": False, "vocab_size": 150}, "must have byte_fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "the model changes text"),
        ({"remove_extra_whitespaces": True}, "the model changes text"),
        ({"add_dummy_prefix": True}, "puts a space before text"),
    ],
)
def test_a_foreign_model_breaks_the_contract(tmp_path, changes, reason):
    tokenizer.save(tmp_path / "foreign", foreign_model(**changes), {})
    with pytest.raises(UserError, match=reason):
        Tokenizer.load(tmp_path / "foreign")


def train_script(*arguments):
    return subprocess.run(
        [sys.executable, "tokenizers/train.py", *map(str, arguments)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = [text for pair in zip(TEXTS["en"], TEXTS["zh"], strict=True) for text in pair]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_train_script(tmp_path, corpus):
    run = train_script(f"--input={corpus}", f"--out={tmp_path / 'a'}", "--vocab_size=400")
    assert run.returncode == 0, run.stderr
    size = f"{corpus.stat().st_size / 1e6:.4g}"  # no more than there is
    assert f"sampling up to {size} MB en, {size} MB zh: training may need 0.06" in run.stdout
    assert "tokens/word" in run.stdout
    info = json.loads((tmp_path / "a" / INFO_FILE).read_text())
    assert info["sampled_documents"] == {"en": 49, "zh": 49}
    assert {name: f["documents"] for name, f in info["fertility"].items()} == {"en": 1, "zh": 1}
    assert Tokenizer.load(tmp_path / "a").vocab_size == 400

    run = train_script(f"--input={corpus}", f"--out={tmp_path / 'a'}")
    assert run.returncode == 2
    assert "already exists" in run.stderr


def test_train_script_balances_the_languages_by_bytes(tmp_path, corpus):
    for out in "ab":
        run = train_script(
            f"--input={corpus}", f"--out={tmp_path / out}", "--vocab_size=330", "--max_bytes=1000"
        )
        assert run.returncode == 0, run.stderr
    info = json.loads((tmp_path / "a" / INFO_FILE).read_text())
    assert all(900 <= size < 1100 for size in info["sampled_bytes"].values())
    assert (tmp_path / "a" / MODEL_FILE).read_bytes() == (tmp_path / "b" / MODEL_FILE).read_bytes()


def test_train_script_has_shares_and_sizes_in_multiples(tmp_path, corpus):
    instructions = tmp_path / "more.jsonl"
    record = {"prompt": "What is 龘?", "answer": "A 龘 is 龘.", "language": "zh"}
    instructions.write_text(f"{json.dumps(record)}\n" * 200)
    run = train_script(
        f"--input={tmp_path}/*.jsonl",
        f"--out={tmp_path / 'a'}",
        "--vocab_size=340",
        "--vocab_multiple=64",
        "--max_bytes=2000",
        "--language_share=en=0.25",
    )
    assert run.returncode == 0, run.stderr
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.vocab_size == 384
    assert "龘" in loaded.pieces
    sizes = json.loads((tmp_path / "a" / INFO_FILE).read_text())["sampled_bytes"]
    assert 900 < sizes["en"] < 1100
    assert 2800 < sizes["zh"] < 3100


@pytest.mark.parametrize(
    ("shares", "budgets"),
    [
        ([], {"en": 100, "zh": 100}),
        (["zh=0.6"], {"en": 80, "zh": 120}),
        (["zh=1"], {"en": 0, "zh": 200}),
        (["zh=0.3", "en=0.7"], {"en": 140, "zh": 60}),
    ],
)
def test_language_budgets(shares, budgets):
    assert sampling.language_budgets(100, shares) == budgets


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        (["fr=0.5"], "must be like zh=0.6, got 'fr=0.5'"),
        (["zh"], "must be like zh=0.6, got 'zh'"),
        (["zh=2"], "must be like zh=0.6, got 'zh=2'"),
        (["zh=0.6", "en=0.6"], "the shares add up to 1.2, not to 1"),
        (["zh=0.1", "en=0.6"], "the shares add up to 0.7, not to 1"),
    ],
)
def test_language_shares_that_cannot_be(shares, reason):
    with pytest.raises(UserError, match=reason):
        sampling.language_budgets(100, shares)


def test_a_sample_larger_than_the_memory_is_refused_with_one_that_fits():
    with pytest.raises(UserError, match=r"are available; --max_bytes=(\d+) would fit") as error:
        sampling.check_memory({"en": 10**15, "zh": 10**15}, 10**15, 10**16)
    fitting = int(str(error.value).split("--max_bytes=")[-1].split()[0])
    fitting = round(0.9 * fitting)
    full = {"en": fitting, "zh": fitting}
    assert "GB of memory" in sampling.check_memory(full, fitting, 10**16)


def test_a_sample_is_no_larger_than_the_inputs():
    text_bytes = sampling.most_text({"a.jsonl": 1000, "b.txt": 500, "c.jsonl.gz": 100})
    assert text_bytes == 2300
    said = sampling.check_memory({"en": 10**15, "zh": 1000}, 10**15, text_bytes)
    assert said.startswith("sampling up to 0.0023 MB en, 0.001 MB zh: ")


@pytest.mark.parametrize(
    ("own", "folder", "names"),
    [
        ("0::/a/b\n", "a", ("memory.max", "memory.current", "inactive_file")),
        ("0::/elsewhere\n", ".", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:devices:/\n4:cpu,memory:/a/b\n0::/\n",
            "memory/a/b",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, own, folder, names):
    limit, used, cache = names
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (tmp_path / "own").write_text(own)
    (group / limit).write_text("9000\n")
    (group / used).write_text("5000\n")
    (group / "memory.stat").write_text(f"anon 3000\n{cache} 1500\n")
    assert available_memory(tmp_path / "cgroup", tmp_path / "own") == 5500
    (group / limit).write_text("max\n")
    assert available_memory(tmp_path / "cgroup", tmp_path / "own") > 1 << 20
    assert available_memory(tmp_path / "cgroup", tmp_path / "absent") > 1 << 20


def test_a_sample_is_uniform_and_bounded():
    sample = sampling.Sample(100)
    for i in range(1000):
        sample.add(f"text {i:05}")
    assert sample.num_bytes == sum(map(len, sample.texts())) == 100
    assert 200 < sum(int(text[5:]) for text in sample.texts()) / 10 < 800
    trained, held_out = sampling.hold_out(sample.texts())
    assert len(held_out) == 1
    assert [*held_out, *trained] == sample.texts()
    assert sampling.hold_out(["one"]) == (["one"], [])


def test_fertility(folder):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    text = "the fox\n\u9f98"
    measured = fertility.measure_fertility(processor, [text], spaced=True)
    tokens = len(processor.encode(text))
    assert measured == fertility.Fertility(
        documents=1,
        bytes=11,
        tokens_per_character=round(tokens / 9, 4),
        tokens_per_word=round(tokens / 3, 4),
        bytes_per_token=round(11 / tokens, 4),
        byte_tokens=round(3 / tokens, 6),
        uncovered_characters=round(1 / 9, 6),
    )
    plain = fertility.measure_fertility(processor, ["狐狸"], spaced=False)
    assert (plain.tokens_per_word, plain.byte_tokens, plain.uncovered_characters) == (None, 0, 0)


def test_train_script_errors_are_one_line(tmp_path, corpus):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for arguments, reason in (
        ((f"--input={corpus}",), "vocab_size 32000 is too large for this text"),
        ((f"--input={empty}",), "has no documents"),
        ((f"--input={tmp_path / 'none.txt'}",), "none.txt: no such file"),
    ):
        run = train_script(f"--out={tmp_path / 'c'}", *arguments)
        assert run.returncode == 2
        assert run.stderr.startswith("error: ")
        assert reason in run.stderr
        assert run.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()
