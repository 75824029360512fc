import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_jax.documents import Counts, read_documents
from glm_jax.errors import UserError
from glm_jax.language import detect_language


def write(path, data: bytes):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(*records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl(tmp_path, name):
    path = write(
        tmp_path / name,
        lines({"text": "one\r\ntwo\x00", "source": 1}, {"text": "三四"}, {"text": "x"}),
    )
    documents = list(read_documents([path]))
    assert [d.text for d in documents] == ["one\r\ntwo\x00", "三四", "x"]
    assert [d.language for d in documents] == ["en", "zh", "en"]
    assert [d.line for d in documents] == [1, 2, 3]
    assert {d.path for d in documents} == {str(path)}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.txt", "a.txt.gz"])
def test_text_is_one_document_a_line(tmp_path, name):
    path = write(tmp_path / name, "\ufeffone\r\n\n  \n二 \u2028 ok\n三".encode())
    counts = Counts()
    documents = list(read_documents([path], counts=counts))
    assert [(d.text, d.line) for d in documents] == [("one", 1), ("二 \u2028 ok", 4), ("三", 5)]
    assert counts == Counts(documents=3, characters=10, empty=2)


def test_language_field_wins_over_the_text(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        lines({"text": "hello", "language": "zh"}, {"text": "你好", "language": None}),
    )
    assert [d.language for d in read_documents([path])] == ["zh", "zh"]


def test_files_are_read_in_the_order_given(tmp_path):
    b, a = write(tmp_path / "b.txt", b"1\n2"), write(tmp_path / "a.txt", b"3")
    assert [d.text for d in read_documents([b, a])] == ["1", "2", "3"]


def test_lone_surrogates_are_replaced_and_pairs_kept(tmp_path):
    path = write(
        tmp_path / "a.jsonl", b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "c"}\n'
    )
    counts = Counts()
    documents = list(read_documents([path], counts=counts))
    assert [d.text for d in documents] == ["a\ufffdb", "\U0001f600", "c"]
    assert counts.replaced == 1


def test_long_line(tmp_path):
    text = "a中" * 500_000
    path = write(tmp_path / "a.jsonl", lines({"text": text}))
    assert next(read_documents([path])).text == text


FAULTS = {
    b"{": "not JSON",
    b"[" * 100_000: "not JSON",
    b'{"text": ' + b"9" * 5000 + b"}": "not JSON",
    b'{"text": "\xff"}': "not UTF-8 at byte 10",
    b'"text"': "a line must be an object, got string",
    b'{"content": "x"}': "the field 'text' is missing",
    b'{"text": null}': "the field 'text' must be a string, got null",
    b'{"text": ["x"]}': "the field 'text' must be a string, got array",
    b'{"text": "x", "language": "fr"}': "the field 'language' must be 'en' or 'zh', got 'fr'",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[:12].decode(errors="replace"))
def test_faulty_line(tmp_path, fault):
    path = write(tmp_path / "a.jsonl", b'{"text": "x"}\n' + fault + b'\n{"text": "y"}\n')
    with pytest.raises(UserError) as error:
        list(read_documents([path]))
    assert str(error.value).startswith(f"{path}:2: {FAULTS[fault]}")
    assert "\n" not in str(error.value)

    counts = Counts()
    documents = list(read_documents([path], on_error="skip", counts=counts))
    assert [d.text for d in documents] == ["x", "y"]
    assert counts.faulty == 1
    assert counts.first_fault == str(error.value)


def test_unreadable_files_are_errors_before_anything_is_read(tmp_path):
    good = write(tmp_path / "a.txt", b"x")
    for path, reason in (
        (tmp_path / "b.txt", "no such file"),
        (tmp_path / "b.csv", "the name must end in one of .jsonl"),
        (tmp_path, "the name must end in one of .jsonl"),
    ):
        with pytest.raises(UserError, match=f"{path}: {reason}"):
            read_documents([good, path], on_error="skip")
    folder = tmp_path / "folder.txt"
    folder.mkdir()
    with pytest.raises(UserError, match="not a file"):
        read_documents([folder])


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"x" + data])
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(b"some text\n" * 1000)))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_documents([path], on_error="skip"))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), max_size=5))
def test_any_text_survives_jsonl(tmp_path_factory, texts):
    path = write(
        tmp_path_factory.mktemp("any") / "a.jsonl", lines(*({"text": text} for text in texts))
    )
    assert [d.text for d in read_documents([path])] == texts


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", "en"),
        ("12 + 34 = 46 !", "en"),
        ("Plain English.", "en"),
        ("The word 汉字 in an English sentence about writing.", "en"),
        ("用 Python 写程序很简单", "zh"),
        ("iPhone手机壳", "zh"),
        ("𠀀𠀁", "zh"),
        ("ひらがな", "en"),
    ],
)
def test_detect_language(text, language):
    assert detect_language(text) == language
