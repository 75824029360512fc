"""From text files to token datasets: nothing lost, nothing half written, faults named."""

import gzip
import json
import subprocess
import sys

import pytest
from commands import run_command
from prepared import CHINESE, ENGLISH, all_documents, documents, make_tokenizer, read, run

from glm_jax import prepare, tokenizer
from glm_jax.data.sources import TokenStream
from glm_jax.errors import UserError
from glm_jax.preparation import local, shard_writer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("prepare") / "tokenizer")


@pytest.fixture
def inputs(tmp_path):
    """English in one gzipped JSON lines file, Chinese in a text file."""
    english, chinese = tmp_path / "en.jsonl.gz", tmp_path / "zh.txt"
    with gzip.open(english, "wt") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in ENGLISH)
    chinese.write_text("\n".join(CHINESE) + "\n")
    return [str(english), str(chinese)]


def test_every_document_is_in_one_split(inputs, tokenizer_dir, tmp_path):
    out = tmp_path / "out"
    manifest = run(inputs, tokenizer_dir, out, validation_share=0.1)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["en", "manifest.json", "tokenizer", "zh"]
    for name, texts in (("en", ENGLISH), ("zh", CHINESE)):
        train = documents(out, name, "train", tokenizer_dir)
        validation = documents(out, name, "validation", tokenizer_dir)
        assert 0 < len(validation) < len(texts) / 3
        assert sorted(train + validation) == sorted(texts)
        assert train != sorted(train, key=texts.index), "documents are shuffled"
        counts = manifest["sources"][name]["splits"]["train"]
        assert counts["documents"] == len(train)
        assert counts["characters"] == sum(map(len, train))
        assert counts["bytes"] == sum(len(text.encode()) for text in train)
        assert counts["tokens"] == len(read(out, name, "train"))
    tok = tokenizer.Tokenizer.load(out / "tokenizer")
    assert manifest["tokenizer"] == tok.fingerprint


def test_the_seed_decides(inputs, tokenizer_dir, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(inputs, tokenizer_dir, tmp_path / name, seed=seed)
    a, b, c = (read(tmp_path / name, "zh", "train").tolist() for name in "abc")
    assert a == b
    assert a != c


def test_language_may_be_given(inputs, tokenizer_dir, tmp_path):
    manifest = run(inputs, tokenizer_dir, tmp_path / "out", language="zh")
    assert list(manifest["sources"]) == ["zh"]


def test_chunks_and_shards(tokenizer_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "CHUNK_BYTES", 10_000)
    texts = [f"{i} " + "the lazy dog " * i for i in range(120)]
    texts[7] = "fox" * 350_000  # a line of a megabyte
    (tmp_path / "long.txt").write_text("\n".join(texts))
    manifest = run([str(tmp_path / "long.txt")], tokenizer_dir, tmp_path / "out", num_shards=7)
    assert manifest["sources"]["en"]["splits"]["train"]["shards"] == 7
    assert sorted(all_documents(tmp_path / "out", "en", tokenizer_dir)) == sorted(texts)
    stream = TokenStream(str(tmp_path / "out" / "en"), "en", "train")
    assert stream.document_at(stream.length - 1) == stream.documents - 1


def test_faulty_lines(inputs, tokenizer_dir, tmp_path):
    path = tmp_path / "faulty.jsonl"
    lines = [
        b'{"text": "good"}',
        b"",
        b'{"text": " "}',
        b"{",
        b'{"text": 3}',
        b"\xff",
        b'{"text": "nul \\u0000 and half \\ud800 of a pair"}',
        b'{"text": "good too"}',
    ]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"faulty.jsonl:4: not JSON"):
        run([str(path)], tokenizer_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
    manifest = run([str(path)], tokenizer_dir, tmp_path / "out", on_error="skip")
    counts = manifest["read"]
    assert (counts["documents"], counts["empty"], counts["faulty"]) == (3, 2, 3)
    assert counts["replaced"] == 1
    assert "faulty.jsonl:4" in prepare._summary(manifest)


def test_inputs_without_use(tokenizer_dir, tmp_path):
    with pytest.raises(UserError, match=r"absent.jsonl: no such file"):
        run([str(tmp_path / "absent.jsonl")], tokenizer_dir, tmp_path / "out")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no document in the inputs"):
        run([str(tmp_path / "empty.txt")], tokenizer_dir, tmp_path / "out")
    (tmp_path / "one.txt").write_text("one document")
    with pytest.raises(UserError, match="source en has 1 document; train and validation need"):
        run([str(tmp_path / "one.txt")], tokenizer_dir, tmp_path / "out")


def test_an_earlier_dataset_is_replaced_only_on_demand(inputs, tokenizer_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run(inputs, tokenizer_dir, out)
    with pytest.raises(UserError, match="is not empty; --overwrite replaces"):
        run(inputs, tokenizer_dir, out, seed=1)
    manifest = run(inputs, tokenizer_dir, out, seed=1, overwrite=True)
    assert manifest["options"]["seed"] == 1
    assert [path for path in tmp_path.iterdir() if "out" in path.name] == [out]


def test_out_is_a_folder_here(inputs, tokenizer_dir):
    with pytest.raises(UserError, match="--out=gs://bucket/data must be a folder of this machine"):
        run(inputs, tokenizer_dir, "gs://bucket/data")


def test_overwrite_spares_what_is_no_dataset(inputs, tokenizer_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no earlier dataset"):
        run(inputs, tokenizer_dir, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_failure_keeps_the_earlier_dataset(inputs, tokenizer_dir, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(inputs, tokenizer_dir, out)

    def full_disk(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as context:
        context.setattr(shard_writer, "write_shard", full_disk)
        with pytest.raises(UserError, match="out cannot be written: .*No space left on device"):
            run(inputs, tokenizer_dir, out, seed=1, overwrite=True)
    before = read(out, "en", "train").tolist()
    manifest = run(inputs, tokenizer_dir, out, seed=1, overwrite=True)
    assert manifest["options"]["seed"] == 1
    assert read(out, "en", "train").tolist() != before
    assert [path for path in tmp_path.iterdir() if "out" in path.name] == [out]


def test_a_full_disk_is_one_line(inputs, tokenizer_dir, tmp_path, monkeypatch):
    write_shard = shard_writer.write_shard
    monkeypatch.setattr(
        shard_writer, "write_shard", lambda _, *values: write_shard("/dev/full", *values)
    )
    with pytest.raises(UserError, match="out cannot be written: /dev/full: .*No space left") as got:
        run(inputs, tokenizer_dir, tmp_path / "out")
    assert "\n" not in str(got.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--decontaminate_ngram=20"], "--decontaminate_ngram has no use without --decontaminate"),
        (
            ["--num_processes=2", "--beam_pipeline_options=runner=DirectRunner"],
            "--num_processes is of this machine; with --beam_pipeline_options the runner has",
        ),
    ],
)
def test_a_flag_without_use_is_refused(tmp_path, flags, reason):
    command = ["-m", "glm_jax.prepare", "--input=a.txt", "--tokenizer=t", f"--out={tmp_path}/out"]
    finished = run_command(*command, *flags)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {reason}")
    assert finished.stderr.count("\n") == 1


def test_command(inputs, tokenizer_dir, tmp_path):
    command = [sys.executable, "-m", "glm_jax.prepare", f"--tokenizer={tokenizer_dir}"]
    command += [f"--input={path}" for path in inputs]

    def call(out):
        return subprocess.run(
            [*command, f"--out={out}"], capture_output=True, text=True, check=False
        )

    done = call(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["en", "train"]
    failed = call(tmp_path / "out")
    assert failed.returncode == 2
    assert failed.stderr == (
        f"error: --out={tmp_path / 'out'} is not empty; --overwrite replaces an earlier dataset\n"
    )
