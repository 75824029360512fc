"""The dataset depends on the documents and the options alone; sources, copies, splits, restarts."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest
from prepared import (
    CHINESE,
    ENGLISH,
    all_documents,
    documents,
    hashes,
    make_tokenizer,
    read,
    run,
    write_lines,
)

from glm_jax import prepare
from glm_jax.data.shards import VERSION
from glm_jax.data.sources import TokenStream
from glm_jax.errors import UserError
from glm_jax.preparation import local, planning, work
from glm_jax.preparation.census import Census, Grid, Part
from glm_jax.preparation.encoded import PLACES, key
from glm_jax.preparation.encoding import Encoder
from glm_jax.preparation.manifest import make_plan
from glm_jax.preparation.options import Options
from glm_jax.preparation.verification import verify_dataset
from glm_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("preparation") / "tokenizer")


@pytest.fixture
def write(tmp_path):
    return lambda name, records: write_lines(tmp_path / name, records)


def streams(out) -> dict[str, str]:
    """All but what names the inputs."""
    return {name: digest for name, digest in hashes(out).items() if name != "manifest.json"}


def test_neither_order_nor_chunks_of_the_inputs_matter(write, tokenizer_dir, tmp_path, monkeypatch):
    one = write("one.jsonl", ENGLISH + CHINESE)
    run([one], tokenizer_dir, tmp_path / "one", num_shards=4)
    backwards = (ENGLISH + CHINESE)[::-1]
    several = [write(f"{i}.jsonl", backwards[i::7]) for i in range(7)]
    monkeypatch.setattr(local, "CHUNK_BYTES", 300)
    run(several, tokenizer_dir, tmp_path / "several", num_shards=4)
    assert streams(tmp_path / "several") == streams(tmp_path / "one")


def test_processes_give_the_same_bytes(write, tokenizer_dir, tmp_path):
    inputs = [write("en.jsonl", ENGLISH), write("zh.jsonl", CHINESE)]
    for count in (1, 2):
        run(inputs, tokenizer_dir, tmp_path / str(count), num_processes=count, num_shards=3)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_an_error_in_a_process_is_one_line(write, tokenizer_dir, tmp_path):
    with pytest.raises(UserError, match=r"faulty.jsonl:2: the field 'text' must be a string"):
        run(
            [write("faulty.jsonl", ["good", {"text": 3}])],
            tokenizer_dir,
            tmp_path / "out",
            num_processes=2,
        )
    assert not list(tmp_path.glob("out*"))


def test_copies_are_counted_and_left_out_on_demand(write, tokenizer_dir, tmp_path):
    inputs = [write("a.jsonl", ENGLISH + ENGLISH[:7]), write("b.jsonl", ENGLISH[3:9])]
    copies = {}
    for name, dedup in (("kept", False), ("dropped", True)):
        manifest = run(inputs, tokenizer_dir, tmp_path / name, dedup=dedup, num_shards=3)
        splits = manifest["sources"]["en"]["splits"].values()
        copies[name] = sum(split["copies"] for split in splits)
        split = [set(documents(tmp_path / name, "en", s, tokenizer_dir)) for s in SPLIT_NAMES]
        assert not split[0] & split[1], "copies are in one split"
    assert copies == {"kept": 13, "dropped": 13}
    found = all_documents(tmp_path / "kept", "en", tokenizer_dir)
    assert sorted(found) == sorted(ENGLISH + ENGLISH[:7] + ENGLISH[3:9])
    assert sorted(all_documents(tmp_path / "dropped", "en", tokenizer_dir)) == sorted(ENGLISH)


SPLIT_NAMES = ("train", "validation")


def test_copies_do_not_stand_together(write, tokenizer_dir, tmp_path):
    run([write("a.jsonl", ENGLISH * 10)], tokenizer_dir, tmp_path / "out")
    texts = documents(tmp_path / "out", "en", "train", tokenizer_dir)
    together = sum(a == b for a, b in itertools.pairwise(texts))
    assert together < len(texts) / 10


def test_the_same_text_as_prompt_and_as_document_differ():
    texts = [(b"ab", None), (b"a", b"b"), (b"ab", b""), (b"", b"ab")]
    assert len({key(0, *text) for text in texts}) == 4
    assert key(0, b"a", None) != key(1, b"a", None)


INSTRUCTIONS = [{"prompt": f"How many? {i}", "answer": f" {i} foxes."} for i in range(30)]


def test_instructions_are_stored_with_their_blank(write, tokenizer_dir, tmp_path):
    run([write("a.jsonl", INSTRUCTIONS)], tokenizer_dir, tmp_path / "out", source="chat")
    stream = TokenStream(str(tmp_path / "out" / "chat"), "chat", "train")
    assert stream.instructions
    assert stream.language == "en"
    tok = Tokenizer.load(tokenizer_dir)
    tokens = stream.read(0, stream.length)
    special, found = tok.special, []
    for document in np.split(tokens, np.flatnonzero(tokens == special.eos) + 1)[:-1]:
        (blank,) = np.flatnonzero(document == special.mask)
        assert (document[0], document[-1]) == (special.cls, special.eos)
        found.append((tok.decode(document[:blank]), tok.decode(document[blank:])))
    assert set(found) < {(line["prompt"], line["answer"]) for line in INSTRUCTIONS}
    assert len(found) == stream.documents


def test_plain_text_and_instructions_do_not_mix(write, tokenizer_dir, tmp_path):
    inputs = [write("a.jsonl", INSTRUCTIONS), write("b.jsonl", ENGLISH)]
    with pytest.raises(UserError, match="source en would mix 30 instructions with 40 documents"):
        run(inputs, tokenizer_dir, tmp_path / "out")
    run([inputs[1]], tokenizer_dir, tmp_path / "plain")
    assert not TokenStream(str(tmp_path / "plain" / "en"), "en", "train").instructions


@pytest.mark.parametrize(
    ("texts", "source", "names"),
    [
        (ENGLISH + CHINESE, "", ["en", "zh"]),
        (ENGLISH + CHINESE, "web", ["web_en", "web_zh"]),
        (CHINESE, "web", ["web"]),
    ],
)
def test_names_of_sources(write, tokenizer_dir, tmp_path, texts, source, names):
    manifest = run([write("a.jsonl", texts)], tokenizer_dir, tmp_path / "out", source=source)
    assert list(manifest["sources"]) == names
    assert manifest["sources"][names[-1]]["language"] == "zh"
    for name in names:
        assert len(read(tmp_path / "out", name, "validation"))


@pytest.mark.parametrize("name", ["a b", "../a", "2nd", "a-b", "tokenizer"])
def test_a_source_has_a_plain_name(write, tokenizer_dir, tmp_path, name):
    with pytest.raises(UserError, match="--source must be letters, digits and _"):
        run([write("a.jsonl", ENGLISH)], tokenizer_dir, tmp_path / "out", source=name)


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("num_shards", [1, 50])
def test_both_splits_have_a_document(write, tokenizer_dir, tmp_path, share, num_shards):
    run(
        [write("a.jsonl", ENGLISH)],
        tokenizer_dir,
        tmp_path / "out",
        validation_share=share,
        num_shards=num_shards,
    )
    splits = [documents(tmp_path / "out", "en", s, tokenizer_dir) for s in SPLIT_NAMES]
    assert sorted(itertools.chain(*splits)) == sorted(ENGLISH)
    assert min(map(len, splits)) >= 1
    if share != 0.02:
        assert min(map(len, splits)) == 1


def test_a_larger_share_has_the_smaller_in_it(write, tokenizer_dir, tmp_path):
    found = []
    for share in (0.1, 0.3):
        out = tmp_path / str(share)
        run([write("a.jsonl", ENGLISH)], tokenizer_dir, out, validation_share=share)
        found.append(set(documents(out, "en", "validation", tokenizer_dir)))
    assert found[0] < found[1]


def test_copies_of_one_document_are_not_enough(write, tokenizer_dir, tmp_path):
    with pytest.raises(UserError, match="source en has 1 document in 5 copies; train and valid"):
        run([write("a.jsonl", ["the fox"] * 5)], tokenizer_dir, tmp_path / "out")


def test_a_bucket_that_gave_its_only_document_is_no_shard():
    grid = Grid(0.0, 4)
    quarter = PLACES // 4
    train = Part(frozenset({1, 3}), (quarter, 3 * quarter))
    census = Census(2, 0, train, Part(frozenset(), ()))
    shards = planning.plan_shards({"en": census}, "", grid)
    assert [(s.split, s.index, s.count, s.bucket) for s in shards] == [
        ("train", 0, 1, 3),
        ("validation", 0, 1, 1),
    ]
    assert shards[1].start <= quarter < shards[1].end


def test_contaminated_documents_are_left_out(write, tokenizer_dir, tmp_path):
    long = "the quick brown fox jumps over the lazy dog and then over every other dog it can see"
    evaluation = write("evaluation.jsonl", [long])
    manifest = run(
        [write("a.jsonl", [*ENGLISH, f"See: {long}!"])],
        tokenizer_dir,
        tmp_path / "out",
        decontaminate=(evaluation,),
    )
    assert manifest["read"]["contaminated"] == 1
    assert sorted(all_documents(tmp_path / "out", "en", tokenizer_dir)) == sorted(ENGLISH)


class Killed(BaseException):
    pass


@pytest.fixture
def interrupted(write, tokenizer_dir, tmp_path, monkeypatch):
    """A call of `run` with the same inputs; the first one was killed after some chunks."""
    inputs = [write(f"{i}.jsonl", ENGLISH[i::4] + CHINESE[i::4]) for i in range(4)]
    monkeypatch.setattr(local, "CHUNK_BYTES", 300)

    def again(**options):
        return run(inputs, tokenizer_dir, tmp_path / "out", num_shards=2, **options)

    encode = local._EncodeChunk.__call__
    encoded = []

    def counted(self, item):
        if len(encoded) == 20:
            raise Killed
        encoded.append(item[0])
        encode(self, item)

    monkeypatch.setattr(local._EncodeChunk, "__call__", counted)
    with pytest.raises(Killed):
        again()
    encoded.clear()
    return again, encoded


def test_what_is_finished_is_not_done_again(interrupted, tmp_path):
    again, encoded = interrupted
    assert (tmp_path / "out.partial").exists()
    assert not (tmp_path / "out").exists()
    again()
    assert 0 < len(encoded) < 20
    assert 0 not in encoded
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "missing"])
@pytest.mark.parametrize("name", ["reading.json", "*.table.npy", "*.tokens.npy"])
def test_a_damaged_chunk_is_encoded_again(interrupted, tmp_path, name, damage):
    again, encoded = interrupted
    path = next((tmp_path / "out.partial" / "chunks" / "0000003").glob(name))
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        content[: len(content) // 2 if damage == "cut" else 0]
    )
    again()
    assert encoded.count(3) == 1
    assert not {0, 1, 2, 4} & set(encoded)


@pytest.mark.parametrize("what", ["report", "shard"])
def test_a_damaged_shard_is_written_again(write, tokenizer_dir, tmp_path, monkeypatch, what):
    inputs = [write("a.jsonl", ENGLISH)]
    run(inputs, tokenizer_dir, tmp_path / "whole")

    def killed(*_):
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(prepare, "complete_dataset", killed)
        with pytest.raises(Killed):
            run(inputs, tokenizer_dir, tmp_path / "out")
    partial = tmp_path / "out.partial"
    name = "en-train.array_record-00000-of-00001"
    report, shard = partial / "shards" / f"{name}.json", partial / "dataset/en" / VERSION / name
    (report if what == "report" else shard).write_bytes(b"")
    run(inputs, tokenizer_dir, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_another_plan_does_not_go_on(interrupted, tmp_path):
    again, encoded = interrupted
    with pytest.raises(UserError, match=r"begun with another options.seed \(0, now 1\); the same"):
        again(seed=1)
    assert len(list((tmp_path / "out.partial" / "chunks").iterdir())) == 20
    with pytest.raises(Killed):
        again(seed=1, overwrite=True)
    assert 0 in encoded


def test_an_input_that_has_grown_is_another_plan(interrupted, tmp_path):
    again, _ = interrupted
    with (tmp_path / "2.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(UserError, match=r"another inputs.*2.jsonl \(\d+, now \d+\)"):
        again()


def test_an_input_that_was_edited_is_another_plan(interrupted, tmp_path):
    again, _ = interrupted
    path = tmp_path / "2.jsonl"
    text = path.read_text()
    path.write_text(text.replace("quick", "swift"))
    assert len(path.read_text()) == len(text)
    with pytest.raises(UserError, match=r"another inputs_changed\.[^ ]*2.jsonl \(\d+, now \d+\)"):
        again()


def test_a_tfds_folder_was_changed_when_its_youngest_file_was(tokenizer_dir, tmp_path):
    for name, nanoseconds in (("a", 5), ("b", 9), ("c", 7)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(nanoseconds, nanoseconds))
    encoder = Encoder(Tokenizer.load(tokenizer_dir), Options())
    inputs = {str(tmp_path): 1, f"{tmp_path}#train": 1}
    assert set(make_plan(inputs, encoder)["inputs_changed"].values()) == {9}


def test_a_folder_of_that_name_is_spared(write, tokenizer_dir, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="out.partial is in the way, and no work of this program"):
        run([write("a.jsonl", ENGLISH)], tokenizer_dir, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out.partial" / "thesis.txt").exists()


@pytest.mark.parametrize("left", ["everything", "the plan"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_when_the_dataset_is_in_its_place(
    write, tokenizer_dir, tmp_path, monkeypatch, left, overwrite
):
    inputs, out = [write("a.jsonl", ENGLISH)], tmp_path / "out"
    if overwrite:
        run(inputs, tokenizer_dir, out, seed=1)

    def killed(dataset, target):
        if target.exists():
            target.rename(tmp_path / ".out.replaced")
        dataset.rename(target)
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(work, "take_place", killed)
        with pytest.raises(Killed):
            run(inputs, tokenizer_dir, out, overwrite=overwrite)
    manifest = (out / "manifest.json").stat()
    if left == "the plan":
        shutil.rmtree(tmp_path / "out.partial" / "chunks")
        shutil.rmtree(tmp_path / "out.partial" / "shards")
    with pytest.raises(UserError, match="begun with another options.seed"):
        run(inputs, tokenizer_dir, out, seed=2)
    again = run(inputs, tokenizer_dir, out, overwrite=overwrite)
    assert again == json.loads((out / "manifest.json").read_text())
    assert (out / "manifest.json").stat().st_ino == manifest.st_ino
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "out"}
    with pytest.raises(UserError, match="is not empty"):
        run(inputs, tokenizer_dir, out)


def test_two_programs_do_not_write_the_same(interrupted, tmp_path):
    again, _ = interrupted
    plan = json.loads((tmp_path / "out.partial" / "plan.json").read_text())
    with (
        work.Work(tmp_path / "out", plan, overwrite=False),
        pytest.raises(UserError, match="out.partial is being written by another process"),
    ):
        again()


def test_an_input_given_twice(write, tokenizer_dir, tmp_path):
    path = write("a.jsonl", ENGLISH)
    with pytest.raises(UserError, match=r"--input=.*a.jsonl is given twice"):
        run([path, path], tokenizer_dir, tmp_path / "out")
    (tmp_path / "link.jsonl").symlink_to(path)
    for other in (f"{tmp_path}/./a.jsonl", str(tmp_path / "link.jsonl")):
        with pytest.raises(UserError, match=r"--input=.*jsonl is given twice, also as .*jsonl$"):
            run([path, other], tokenizer_dir, tmp_path / "out")


def test_a_dataset_is_verified(write, tokenizer_dir, tmp_path):
    out = tmp_path / "out"
    run([write("a.jsonl", ENGLISH + CHINESE)], tokenizer_dir, out, num_shards=2)
    assert "shards of 2 sources" in verify_dataset(str(out))
    shard = out / "zh" / VERSION / "zh-train.array_record-00001-of-00002"
    content = bytearray(shard.read_bytes())
    content[70_000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="zh-train.array_record-00001-of-00002: .* was changed"):
        verify_dataset(str(out))
    with pytest.raises(UserError, match=r"manifest.json: not the manifest of a dataset"):
        verify_dataset(str(tmp_path))


def test_shards_by_size():
    assert planning.choose_num_shards({"a.jsonl": 1000}) == 1
    assert planning.choose_num_shards({"a.jsonl": 1 << 30, "b.jsonl.gz": 1 << 28}) == 8
    assert Grid(0.5, 3).range(2)[1] == PLACES
