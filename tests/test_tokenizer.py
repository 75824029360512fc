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
from glm_jax.tokenizer import INFO_FILE, MODEL_FILE, SPECIAL_PIECES, SpecialTokens, Tokenizer

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
    assert "en: 0." in run.stdout
    assert "zh: 0." in run.stdout
    info = json.loads((tmp_path / "a" / INFO_FILE).read_text())
    assert info["sampled_documents"] == {"en": 50, "zh": 50}
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
    assert all(1000 <= size < 1100 for size in info["sampled_bytes"].values())
    assert (tmp_path / "a" / MODEL_FILE).read_bytes() == (tmp_path / "b" / MODEL_FILE).read_bytes()


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
