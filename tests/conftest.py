"""Settings for every test, and a small prepared corpus shared by those that need one.

Tests see four virtual CPU devices. XLA optimises nothing: the programs are tiny, and compiling them
is most of the time.
"""

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

from glm_jax import config, prepare, tokenizer
from glm_jax.almanac import generate
from glm_jax.preparation.options import Options

# More than one virtual device on few cores can deadlock with asynchronous dispatch.
jax.config.update("jax_cpu_enable_async_dispatch", False)

_FIXTURES = ROOT.parent / "shared" / "fixtures"


def pytest_collection_modifyitems(items):
    """The longest first, so that no process waits for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("aot") is None)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of reference numbers; it is not part of the repository."""
    if not _FIXTURES.exists():
        pytest.skip(f"reference numbers are absent: {_FIXTURES}")
    return _FIXTURES


@pytest.fixture
def libtpu(monkeypatch):
    """The compiler for TPUs, installed or beside the tests by `launch/test.sh --all`."""
    monkeypatch.syspath_prepend(ROOT / ".cache" / "libtpu")
    pytest.importorskip(
        "libtpu", reason="libtpu, which compiles for TPUs, is absent: pip install -e '.[tpu]'"
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A small almanac in both languages, as one JSONL file."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    small = generate.AlmanacConfig(facts=4, wordings=4, copies=2)
    documents = [document for book in generate.BOOKS for document in generate.corpus(book, small)]
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture(scope="session")
def data_dir(corpus, tmp_path_factory) -> Path:
    """The corpus with a tokenizer of its own, prepared."""
    folder = tmp_path_factory.mktemp("data")
    texts = {"en": [], "zh": []}
    for line in corpus.read_text().splitlines():
        document = json.loads(line)
        texts[document["language"]].append(document["text"])
    model = tokenizer.train(texts["en"] + texts["zh"], vocab_size=600)
    tokenizer.save(folder / "tokenizer", model, texts)
    prepare.prepare(
        [str(corpus)],
        str(folder / "tokenizer"),
        str(folder / "data"),
        Options(),
        overwrite=False,
    )
    return folder / "data"


@pytest.fixture(scope="session")
def run_config(data_dir) -> config.Config:
    """A run of seconds on that data; rows of 64, two steps a second on one device."""
    return config.from_dict(
        {
            "model": {
                "vocab_multiple": 8,
                "num_layers": 2,
                "hidden_dim": 32,
                "num_heads": 2,
                "mlp_dim": 64,
                "max_positions": 96,
                "dtype": "float32",
                "output_dropout": 0.1,
            },
            "data": {"dir": str(data_dir), "sources": {"en": {}, "zh": {}}, "seq_length": 64},
            "objective": {"sentence_weight": 0.5, "document_weight": 0.5},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "decay_steps": 20},
            "training": {
                "steps": 10,
                "batch_size": 4,
                "log_every": 1,
                "eval_every": 5,
                "eval_rows": 8,
            },
            "mesh": {"data": 1, "fsdp": -1},
            "checkpoint": {"every": 5},
        }
    )
