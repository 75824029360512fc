"""Token datasets: what is written is read, and what is damaged is named."""

import json
import pickle
import shutil

import numpy as np
import pytest
from toy_dataset import TOKENIZER, VOCAB_SIZE, random_stream, write

from glm_jax.config import from_dict
from glm_jax.data.sources import BLOCK_TOKENS, VERSION, TokenStream, open_sources
from glm_jax.errors import UserError


@pytest.fixture
def copy(dataset, tmp_path):
    """A copy of the English source that a test may damage."""
    shutil.copytree(dataset.dir / "en", tmp_path / "en")
    return tmp_path / "en"


def train_shard(source):
    return next((source / VERSION).glob("*train*"))


@pytest.mark.parametrize("offset", [0, 1, BLOCK_TOKENS - 1, 10**9])
@pytest.mark.parametrize("count", [1, 500, BLOCK_TOKENS + 1])
def test_reads_what_was_written(dataset, offset, count):
    tokens = dataset.tokens["en"]["train"]
    stream = TokenStream(str(dataset.dir / "en"), "en", "train")
    assert stream.length == len(tokens)
    expected = tokens[(offset + np.arange(count)) % len(tokens)]
    assert stream.read(offset, count).tolist() == expected.tolist()
    assert stream.read(offset, count).dtype == np.int32


def test_starts_over_more_than_once(tmp_path):
    tokens = random_stream(np.random.default_rng(0), 2, 10)
    write(tmp_path, "en", {"train": tokens, "validation": tokens})
    stream = TokenStream(str(tmp_path / "en"), "en", "train")
    assert stream.read(3, 100).tolist() == np.resize(tokens, 103)[3:].tolist()


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
    with pytest.raises(UserError, match=r"1.0.0: not a token dataset with a split 'train'"):
        TokenStream(str(tmp_path), "en", "train")


def test_missing_shard(copy):
    train_shard(copy).unlink()
    with pytest.raises(UserError, match=r"en-train.array_record.*missing"):
        TokenStream(str(copy), "en", "train")


def test_truncated_shard(copy):
    content = train_shard(copy).read_bytes()
    train_shard(copy).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"en-train.array_record.*(damaged|holds 0 records)"):
        TokenStream(str(copy), "en", "train")


def test_flipped_bits(copy):
    content = bytearray(train_shard(copy).read_bytes())
    content[3_000] ^= 255
    train_shard(copy).write_bytes(content)
    stream = TokenStream(str(copy), "en", "train")
    with pytest.raises(UserError, match=r"block .* of train cannot be read"):
        stream.read(0, stream.length)


def test_metadata_that_disagrees_with_the_shards(copy):
    path = copy / VERSION / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["splits"]["train"]["tokens"] += BLOCK_TOKENS
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"split train holds . records, metadata.json says"):
        TokenStream(str(copy), "en", "train")


@pytest.mark.parametrize("wrong", [VOCAB_SIZE, -1])
def test_token_outside_the_vocabulary(tmp_path, wrong):
    tokens = np.full(BLOCK_TOKENS + 10, 30, np.int32)
    tokens[-1] = wrong
    write(tmp_path, "en", {"train": tokens, "validation": tokens})
    stream = TokenStream(str(tmp_path / "en"), "en", "train")
    stream.read(0, 10)
    with pytest.raises(UserError, match=r"block 1 of train holds token id .* the vocabulary 200"):
        stream.read(BLOCK_TOKENS, 5)
