"""A small random model with a real tokenizer, and a run of a few steps for the command line."""

import json
from pathlib import Path

import jax
import pytest
from training.samples import changed

from glm_jax import train
from glm_jax.config import MeshConfig, from_dict, with_vocab_size
from glm_jax.model import glm
from glm_jax.model.scoring import Scorer
from glm_jax.parallel.sharding import make_sharding
from glm_jax.tokenizer import Tokenizer

LENGTH = 96


@pytest.fixture(scope="session")
def tokenizer(data_dir):
    return Tokenizer.load(data_dir / "tokenizer")


@pytest.fixture(scope="session")
def model_config(tokenizer):
    values = {
        "num_layers": 2,
        "hidden_dim": 32,
        "num_heads": 2,
        "mlp_dim": 64,
        "max_positions": LENGTH,
        "init_std": 0.2,  # so that different contexts give different answers
        "dtype": "float32",
        "vocab_multiple": 64,
    }
    config = from_dict({"model": values, "data": {"seq_length": LENGTH}})
    return with_vocab_size(config, tokenizer.vocab_size)


@pytest.fixture(scope="session")
def one_device():
    return make_sharding(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="session")
def params(model_config):
    return glm.init_params(model_config.model, jax.random.key(1))


@pytest.fixture(scope="session")
def scorer(model_config, params, tokenizer, one_device):
    return Scorer(model_config.model, params, tokenizer.special, one_device, batch_size=4)


@pytest.fixture(scope="session")
def uniform_scorer(model_config, params, tokenizer, one_device):
    """Of a model for which every token is as likely as any other."""
    zeros = jax.tree.map(lambda x: x * 0, params)
    return Scorer(model_config.model, zeros, tokenizer.special, one_device, batch_size=4)


@pytest.fixture(scope="session")
def workdir(run_config, tmp_path_factory) -> Path:
    """A run of two steps on one device."""
    path = tmp_path_factory.mktemp("tasks") / "run"
    config = changed(run_config, "training", steps=2, eval_every=0)
    train.run(config, path, devices=jax.devices()[:1])
    return path


@pytest.fixture
def jsonl(tmp_path):
    """Writes objects as the lines of a file and returns its path."""

    def write(*objects, name: str = "input.jsonl") -> Path:
        path = tmp_path / name
        lines = (o if isinstance(o, str) else json.dumps(o, ensure_ascii=False) for o in objects)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write
