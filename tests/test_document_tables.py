"""Documents of parquet files and of TFDS datasets."""

import json
import pickle
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_documents import read_in_chunks

from glm_jax.documents import Counts, check_readable, chunks, input_bytes, read_documents
from glm_jax.errors import UserError


def write_parquet(path, rows_in_group=None, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


TEXTS = [f"text number {i}" for i in range(40)]


def test_parquet(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        url=["u"] * 4,
        text=pa.array(["one", "二", None, " "], pa.large_string()),
        prompt=pa.array([None, None, "p", None]).dictionary_encode(),
        answer=[None, None, "a", None],
        language=["zh", None, None, None],
    )
    counts = Counts()
    documents = list(read_documents([path], counts=counts))
    assert [(d.text, d.answer, d.language, d.line) for d in documents] == [
        ("one", None, "zh", 1),
        ("二", None, "zh", 2),
        ("p", "a", "en", 3),
    ]
    assert {d.path for d in documents} == {str(path)}
    assert (counts.empty, counts.instructions, counts.characters) == (1, 1, 6)


@settings(max_examples=30)
@given(rows_in_group=st.integers(1, 50), max_bytes=st.integers(1, 1000))
def test_parquet_chunks_of_any_size_hold_the_documents(tmp_path_factory, rows_in_group, max_bytes):
    path = tmp_path_factory.mktemp("chunks") / "a.parquet"
    write_parquet(path, rows_in_group, text=[*TEXTS, None])
    counts = Counts()
    expected = list(read_documents([path], "skip", counts))
    assert [d.line for d in expected] == list(range(1, 41))
    assert (counts.documents, counts.faulty) == (40, 1)
    assert read_in_chunks(path, max_bytes) == (expected, counts)


def test_a_large_row_group_is_cut_and_small_ones_are_joined(tmp_path):
    large = write_parquet(tmp_path / "large.parquet", text=TEXTS)
    counts = [chunk.rows.count for chunk in chunks(large, 200)]
    assert len(counts) > 2
    assert sum(counts) == 40
    assert len(list(chunks(large, 1))) <= 16
    small = write_parquet(tmp_path / "small.parquet", 1, text=TEXTS)
    assert len(list(chunks(small, 300))) < 20
    assert all(len(pickle.dumps(chunk)) < 1000 for chunk in chunks(small, 300))


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    text = [random.Random(i).randbytes(8000).hex() for i in range(1000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": text}), path, write_batch_size=16, use_dictionary=False)
    before = pa.total_allocated_bytes()
    documents = read_documents([path])
    assert [next(documents).text for _ in range(300)] == text[:300]
    assert pa.total_allocated_bytes() - before < path.stat().st_size / 3
    documents.close()


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"content": ["a"]}, "no column 'text', nor 'prompt' and 'answer'; it has content"),
        ({"prompt": ["a"]}, "no column 'text', nor 'prompt' and 'answer'"),
        ({"text": [1]}, "the column 'text' must hold strings, it is int64"),
    ],
)
def test_a_table_without_text_is_refused_before_anything_is_read(tmp_path, columns, reason):
    path = write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(UserError, match=f"{path}: {reason}"):
        read_documents([path])


def test_faulty_rows_are_named(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        text=pa.array([b"good", b"a\xff", b"x"], pa.binary()),
        language=["en", "en", "fr"],
    )
    with pytest.raises(UserError, match=f"{path}:2: not UTF-8 at byte 1"):
        list(read_documents([path]))
    counts = Counts()
    assert [d.text for d in read_documents([path], "skip", counts)] == ["good"]
    assert (counts.faulty, counts.first_fault) == (2, f"{path}:2: not UTF-8 at byte 1")


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=TEXTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{path}: cannot be read: ") as error:
        read_documents([path])
    assert "\n" not in str(error.value)


class Texts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({"title": text, "text": text})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, manager):
        return {
            "train": self._generate_examples(TEXTS),
            "test": self._generate_examples(["试", "验"]),
        }

    def _generate_examples(self, texts):
        for key, text in enumerate(texts):
            yield key, {"title": "t", "text": text}


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def dataset(request, tmp_path_factory):
    builder = Texts(data_dir=tmp_path_factory.mktemp("tfds"), file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return builder.data_path


def test_tfds_dataset(dataset):
    documents = list(read_documents([dataset]))
    assert sorted(d.text for d in documents) == sorted([*TEXTS, "试", "验"])
    assert {d.language for d in documents if d.text == "试"} == {"zh"}
    train = list(read_documents([f"{dataset}#train"]))
    assert [d.text for d in train] == TEXTS
    assert train[-1].line == 20
    assert "train" in train[-1].path
    assert "00001-of-00002" in train[-1].path
    assert input_bytes(dataset) > input_bytes(f"{dataset}#test") > 0
    for max_bytes in (1, 100, 1 << 20):
        assert read_in_chunks(f"{dataset}#train", max_bytes)[0] == train


def test_a_tfds_split_that_is_not_there(dataset):
    with pytest.raises(UserError, match=r"#dev: no such split; there is t"):
        check_readable(f"{dataset}#dev")


def copy_with(dataset, folder, **changes):
    folder.mkdir()
    for file in dataset.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | changes))
    return folder


def test_a_tfrecord_dataset_is_refused_with_the_way_out(dataset, tmp_path):
    copy = copy_with(dataset, tmp_path / "1.0.0", fileFormat="tfrecord")
    with pytest.raises(UserError, match="tfds convert_format --dataset_version_dir=.*array_record"):
        check_readable(copy)


def test_a_missing_or_damaged_shard_is_named(dataset, tmp_path):
    copy = copy_with(dataset, tmp_path / "1.0.0")
    shard = next(iter(copy.glob("*train*00001-of-00002")))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"{shard}: (cannot be read|holds 0 records)"):
        list(read_documents([copy]))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard}: this shard of the dataset is missing"):
        read_documents([copy])


def test_a_dataset_without_text_and_a_folder_without_a_dataset(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"no feature 'text', .* it has document, tokens"):
        check_readable(data_dir / "en" / "2.0.0")
    for path in (tmp_path, f"{tmp_path}#train"):
        with pytest.raises(UserError, match="or be the folder of a TFDS dataset"):
            check_readable(path)
