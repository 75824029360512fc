"""Token datasets: what is written is read, and what is damaged is named."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from toy_dataset import TOKENIZER, VOCAB_SIZE, random_stream, write

from glm_jax.config import from_dict
from glm_jax.data.shards import BLOCK_TOKENS, SPLITS, VERSION, parse_record
from glm_jax.data.sources import TokenStream, open_sources
from glm_jax.data.verify import LEVELS
from glm_jax.errors import UserError
from glm_jax.tokenizer import SpecialTokens


@pytest.fixture
def copy(dataset, tmp_path):
    """A copy of the English source that a test may damage."""
    shutil.copytree(dataset.dir / "en", tmp_path / "en")
    return tmp_path / "en"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A source of five training shards, and its training tokens."""
    directory = tmp_path_factory.mktemp("sharded")
    tokens = random_stream(np.random.default_rng(1), 200, 300)
    write(directory, "en", dict.fromkeys(SPLITS, tokens), num_shards=5)
    return str(directory / "en"), tokens


def train_shard(source):
    return next((source / VERSION).glob("*train*"))


def change_metadata(source, **shard) -> None:
    """Changes the line of the first training shard."""
    path = source / VERSION / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["splits"]["train"]["shards"][0] |= shard
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("offset", [0, 1, BLOCK_TOKENS - 1, 10**9])
@pytest.mark.parametrize("count", [1, 500, BLOCK_TOKENS + 1])
def test_reads_what_was_written(dataset, offset, count):
    tokens = dataset.tokens["en"]["train"]
    stream = TokenStream(str(dataset.dir / "en"), "en", "train")
    assert stream.length == len(tokens)
    expected = tokens[(offset + np.arange(count)) % len(tokens)]
    assert stream.read(offset, count).tolist() == expected.tolist()
    assert stream.read(offset, count).dtype == np.int32


def test_a_record_is_what_tfds_reads(dataset):
    """Its own parser is slower; the format is its."""
    source = tfds.builder_from_directory(str(dataset.dir / "en" / VERSION)).as_data_source("train")
    for index in range(len(source)):
        record = parse_record(source.data_source[index], VOCAB_SIZE)
        assert record.tokens.tolist() == source[index]["tokens"].tolist()
        assert record.tokens.dtype == source[index]["tokens"].dtype
        assert record.document == source[index]["document"]
    with pytest.raises(ValueError, match="no record"):
        parse_record(b"\x0a\xff", VOCAB_SIZE)
    with pytest.raises(ValueError, match="no record"):
        parse_record(b"", VOCAB_SIZE)


def test_starts_over_more_than_once(tmp_path):
    tokens = random_stream(np.random.default_rng(0), 2, 10)
    write(tmp_path, "en", {"train": tokens, "validation": tokens})
    stream = TokenStream(str(tmp_path / "en"), "en", "train")
    assert stream.read(3, 100).tolist() == np.resize(tokens, 103)[3:].tolist()


@pytest.mark.parametrize("offset", [0, 4096, 17_000, 59_000, 10**9])
@pytest.mark.parametrize("count", [1, 5_000, 130_000])
def test_shards_are_one_stream(sharded, offset, count):
    directory, tokens = sharded
    stream = TokenStream(directory, "en", "train")
    assert (stream.length, stream.documents) == (len(tokens), 200)
    expected = tokens[(offset + np.arange(count)) % len(tokens)]
    np.testing.assert_array_equal(stream.read(offset, count), expected)


def test_a_position_leads_to_its_document(sharded):
    directory, tokens = sharded
    stream = TokenStream(directory, "en", "train")
    number = np.concatenate([[0], np.cumsum(tokens == SpecialTokens().eos)[:-1]])
    ends = np.cumsum([shard["tokens"] for shard in stream_shards(directory)])
    for offset in {0, 1, *range(0, len(tokens), 997), *ends - 1, *ends[:-1], *ends[:-1] + 1}:
        assert stream.document_at(int(offset)) == number[offset]
    assert stream.document_at(len(tokens) + 5) == 0


def stream_shards(directory) -> list[dict]:
    builder = tfds.builder_from_directory(f"{directory}/{VERSION}")
    return builder.info.metadata["splits"]["train"]["shards"]


def test_tfds_reads_it(sharded):
    directory, tokens = sharded
    source = tfds.builder_from_directory(f"{directory}/{VERSION}").as_data_source("train")
    records = [record["tokens"] for record in source]
    assert {record.dtype for record in records} == {np.dtype(np.uint16)}
    np.testing.assert_array_equal(np.concatenate(records), tokens)


def test_ids_of_a_large_vocabulary(tmp_path):
    tokens = random_stream(np.random.default_rng(0), 20, 300)
    tokens[5] = 100_000
    write(tmp_path, "en", dict.fromkeys(SPLITS, tokens), vocab_size=150_000)
    stream = TokenStream(str(tmp_path / "en"), "en", "train")
    assert stream.read(0, len(tokens)).tolist() == tokens.tolist()


def test_the_digest_is_of_the_content(sharded, tmp_path):
    directory, tokens = sharded
    changed = tokens.copy()
    changed[7] += 1
    digests = {TokenStream(directory, "en", "train").digest}
    for name, stream in (("same", tokens), ("other", changed)):
        write(tmp_path / name, "en", dict.fromkeys(SPLITS, stream), num_shards=5)
        digests.add(TokenStream(str(tmp_path / name / "en"), "en", "train").digest)
    assert len(digests) == 2


def test_streams_pickle(dataset):
    stream = TokenStream(str(dataset.dir / "en"), "en", "train")
    again = pickle.loads(pickle.dumps(stream))
    assert again.read(7, 99).tolist() == stream.read(7, 99).tolist()


def test_sources_are_opened_in_sorted_order(make_config):
    config = make_config(sources={"zh": {"weight": 1.0}, "en": {"weight": 1.0}})
    assert list(open_sources(config.data, TOKENIZER, "validation")) == ["en", "zh"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"fr": {}}, "config.data.sources.fr: .*fr is not a directory; .* holds en, zh"),
    ],
)
def test_unknown_sources(dataset, sources, message):
    data = from_dict({"data": {"dir": str(dataset.dir), "sources": sources}}).data
    with pytest.raises(UserError, match=message):
        open_sources(data, TOKENIZER, "train")


def test_another_tokenizer(make_config):
    class Other:
        fingerprint = "a" * 64

    with pytest.raises(UserError, match=f"sources.en: .*{'f' * 64}, this is tokenizer {'a' * 64}"):
        open_sources(make_config().data, Other, "train")


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match=r"2.0.0: not a token dataset with a split 'train'"):
        TokenStream(str(tmp_path), "en", "train")


@pytest.mark.parametrize("level", LEVELS)
def test_missing_shard(copy, level):
    train_shard(copy).unlink()
    with pytest.raises(UserError, match=r"en-train.array_record.*missing"):
        TokenStream(str(copy), "en", "train", level)


@pytest.mark.parametrize("level", LEVELS)
def test_truncated_shard(copy, level):
    content = train_shard(copy).read_bytes()
    train_shard(copy).write_bytes(content[: len(content) // 2])
    message = r"en-train.array_record.*has \d+ bytes, metadata.json says \d+"
    with pytest.raises(UserError, match=message):
        TokenStream(str(copy), "en", "train", level)


def flip(source) -> None:
    content = bytearray(train_shard(source).read_bytes())
    content[3_000] ^= 1
    train_shard(source).write_bytes(content)


def test_flipped_bits_are_noticed_before_the_first_row(copy):
    flip(copy)
    with pytest.raises(UserError, match=r"en-train.array_record.* was changed or damaged: its sha"):
        TokenStream(str(copy), "en", "train")


def test_flipped_bits_are_noticed_late_where_only_sizes_are_checked(copy):
    flip(copy)
    stream = TokenStream(str(copy), "en", "train", "size")
    with pytest.raises(UserError, match=r"record .* of train cannot be read"):
        stream.read(0, stream.length)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ({"records": 9}, r"dataset_info.json says . records in a shard of which metadata.json"),
        ({"tokens": 1}, r"dataset_info.json says . records in a shard of which metadata.json"),
        ({"sha256": "0"}, r"was changed or damaged: its sha256 is .*, metadata.json says 0"),
        ({"bytes": 3}, r"has \d+ bytes, metadata.json says 3"),
    ],
)
def test_metadata_that_disagree_with_the_shards(copy, shard, message):
    change_metadata(copy, **shard)
    with pytest.raises(UserError, match=message):
        TokenStream(str(copy), "en", "train")


def test_the_config_chooses_the_check(dataset, tmp_path):
    shutil.copytree(dataset.dir, tmp_path / "data")
    flip(tmp_path / "data" / "en")
    data = {"dir": str(tmp_path / "data"), "sources": {"en": {}}}
    assert open_sources(from_dict({"data": data | {"verify": "size"}}).data, TOKENIZER, "train")
    with pytest.raises(UserError, match="en-train.array_record.* changed or damaged"):
        open_sources(from_dict({"data": data}).data, TOKENIZER, "train")
    with pytest.raises(UserError, match="data.verify must be one of sha256, size, got 'md5'"):
        from_dict({"data": data | {"verify": "md5"}})


@pytest.mark.parametrize("wrong", [VOCAB_SIZE, -1])
def test_token_outside_the_vocabulary(tmp_path, wrong):
    tokens = np.full(BLOCK_TOKENS + 10, 30, np.int32)
    tokens[-1] = wrong
    write(tmp_path, "en", {"train": tokens, "validation": tokens})
    stream = TokenStream(str(tmp_path / "en"), "en", "train")
    stream.read(0, 10)
    with pytest.raises(UserError, match=r"record 1 of train holds token id .* the vocabulary 200"):
        stream.read(BLOCK_TOKENS, 5)
