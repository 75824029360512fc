"""A token dataset with two sources of random tokens."""

import types

import numpy as np
import pytest
from toy_dataset import IS_SENTENCE_END, TOKENIZER, random_stream, write

from glm_jax.config import Config, from_dict
from glm_jax.data import rows, sources
from glm_jax.tokenizer import SpecialTokens


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> types.SimpleNamespace:
    """`dir`, and `tokens[source][split]` as written: en has few long documents, zh many short."""
    directory = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    tokens = {
        name: {
            "train": random_stream(rng, documents, mean_length),
            "validation": random_stream(rng, documents // 5, mean_length),
        }
        for name, documents, mean_length in (("en", 30, 400), ("zh", 300, 30))
    }
    for name, streams in tokens.items():
        write(directory, name, streams)
    return types.SimpleNamespace(dir=directory, tokens=tokens)


@pytest.fixture
def make_config(dataset):
    def make(seq_length=128, seed=0, sources=None, **objective) -> Config:
        return from_dict(
            {
                "seed": seed,
                "model": {"max_positions": 2048},
                "objective": objective,
                "data": {
                    "dir": str(dataset.dir),
                    "seq_length": seq_length,
                    "sources": sources or {"en": {"weight": 1.0}, "zh": {"weight": 2.0}},
                },
            }
        )

    return make


@pytest.fixture
def open_rows():
    def open_split(config: Config, split="train") -> rows.Rows:
        streams = sources.open_sources(config.data, TOKENIZER, split)
        return rows.Rows(config, streams, SpecialTokens(), IS_SENTENCE_END, split)

    return open_split
