import gzip
import importlib.util
import json
import pickle

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_jax.documents import (
    Counts,
    chunks,
    documents_of,
    expand_inputs,
    input_bytes,
    read_documents,
)
from glm_jax.errors import UserError
from glm_jax.language import detect_language


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


COMPRESS = {".gz": gzip.compress, ".zst": zstd}


def write(path, data: bytes):
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def lines(*records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
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


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.txt", "a.txt.gz", "a.txt.zst"])
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
    b'{"text": "x", "prompt": "y"}': "a record has either 'text' or 'prompt' and 'answer'",
    b'{"text": "x", "answer": "y"}': "a record has either 'text' or 'prompt' and 'answer'",
    b'{"prompt": "x"}': "the field 'answer' is missing",
    b'{"answer": "x"}': "the field 'prompt' is missing",
    b'{"prompt": "x", "answer": 3}': "the field 'answer' must be a string, got number",
    b'{"prompt": "x", "answer": " "}': "the field 'answer' is blank",
    b'{"prompt": "", "answer": "x"}': "the field 'prompt' is blank",
    b'{"text": "x", "language": "fr"}': "the field 'language' must be 'en' or 'zh', got 'fr'",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[:28].decode(errors="replace"))
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


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"x" + data])
def test_damaged_compression(tmp_path, suffix, damage):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(damage(COMPRESS[suffix](b"some text\n" * 1000)))
    with pytest.raises(UserError, match=f"{path}: cannot be read: ") as error:
        list(read_documents([path], on_error="skip"))
    assert "\n" not in str(error.value)


def test_parts_of_a_compressed_file_are_read_on(tmp_path):
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(compress(b"one\n") + compress(b"two\n"))
        assert [d.text for d in read_documents([path])] == ["one", "two"]


def test_instructions_have_a_prompt_and_an_answer(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        lines(
            {"prompt": "Two and two?", "answer": "four", "text": None},
            {"prompt": "二加二？", "answer": "四\ud800", "language": None},
            {"prompt": " ", "answer": ""},
            {"text": "plain", "prompt": None},
        ),
    )
    counts = Counts()
    documents = list(read_documents([path], counts=counts))
    assert [(d.text, d.answer, d.language) for d in documents] == [
        ("Two and two?", "four", "en"),
        ("二加二？", "四\ufffd", "zh"),
        ("plain", None, "en"),
    ]
    assert counts == Counts(documents=3, instructions=2, characters=27, empty=1, replaced=1)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs"), reason="gcsfs would ask the network")
def test_a_bucket_needs_gcsfs():
    with pytest.raises(UserError, match="gs://bucket/a.txt: cannot be read: .*gcsfs"):
        read_documents(["gs://bucket/a.txt"])


def test_patterns(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "c.jsonl"):
        write(tmp_path / name, b"12345")
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    deep = write(folder / "a.txt", b"1")
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    assert expand_inputs([f"{tmp_path}/*.txt", b]) == [a, b, b]
    assert expand_inputs([f"{tmp_path}/d*/*/?.txt"]) == [str(deep)]
    with pytest.raises(UserError, match=r"\*\.parquet: no file matches"):
        expand_inputs([f"{tmp_path}/*.parquet"])
    monkeypatch.chdir(tmp_path)
    assert expand_inputs(["*.txt"]) == ["a.txt", "b.txt"]
    assert input_bytes("a.txt") == 5


def read_in_chunks(path, max_bytes):
    """What `read_documents` gives, and the counts, by way of pickled chunks."""
    documents, total = [], Counts()
    for chunk in chunks(path, max_bytes):
        counts = Counts()
        documents += documents_of(pickle.loads(pickle.dumps(chunk)), "skip", counts)
        total += counts
    return documents, total


LINES = st.sampled_from(
    [b"", b"  ", b"{", b'{"text": "\xe4\xb8\xad"}', b'{"text": ""}', b'{"prompt": "a"}', b"\xff\r"]
)


@given(
    content=st.lists(LINES, max_size=12).map(b"\n".join),
    name=st.sampled_from(["a.jsonl", "a.txt.gz", "a.jsonl.zst"]),
    bom=st.booleans(),
    max_bytes=st.integers(1, 60),
)
def test_chunks_of_any_size_hold_the_documents(tmp_path_factory, content, name, bom, max_bytes):
    path = tmp_path_factory.mktemp("chunks") / name
    write(path, b"\xef\xbb\xbf" * bom + content)
    counts = Counts()
    expected = list(read_documents([path], "skip", counts))
    assert read_in_chunks(path, max_bytes) == (expected, counts)
    pieces = [chunk.data for chunk in chunks(path, max_bytes)]
    longest = max(map(len, content.split(b"\n"))) + 4
    assert all(len(piece) < max_bytes + longest for piece in pieces)
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])


def test_counts_add_up_and_the_first_fault_is_the_earliest():
    first, second = Counts(documents=1, faulty=1, first_fault="a:1: x"), Counts(characters=2)
    assert first + second == Counts(documents=1, characters=2, faulty=1, first_fault="a:1: x")
    assert (second + first + Counts(first_fault="b")).first_fault == "a:1: x"


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


@given(st.text(st.sampled_from("a汉字é，1 _\U00020000")))
def test_detect_language_counts_letters(text):
    han = sum(letter in "汉字\U00020000" for letter in text)
    letters = sum(letter in "a汉字é\U00020000" for letter in text)
    assert detect_language(text) == ("zh" if han and han >= 0.2 * letters else "en")
