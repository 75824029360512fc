"""A small tokenizer, ours and exported."""

import pytest

from glm_jax import tokenizer as tokenizers
from glm_jax.hub.tokenizer_files import write_tokenizer
from glm_jax.tokenizer import Tokenizer

TEXTS = {
    "en": [
        "The cat sat on the mat and looked at the dog.",
        "Paris is the capital of France, and Berlin is the capital of Germany.",
        "It was the best of times, it was the worst of times.",
        "  Two  spaces,\ttabs and 12345 digits -- and (brackets)!",
    ]
    * 20,
    "zh": [
        "北京是中国的首都，上海是中国最大的城市。",
        "今天天气很好，我们去公园散步吧！",
        "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
    ]
    * 20,
}


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """What the tokenizer was trained on."""
    return [*TEXTS["en"], *TEXTS["zh"]]


@pytest.fixture(scope="session")
def tokenizer(texts, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    model = tokenizers.train(texts, vocab_size=440)
    tokenizers.save(folder, model, TEXTS)
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def hub_tokenizer(tokenizer, tmp_path_factory):
    """The exported tokenizer as plain transformers loads it."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    folder = tmp_path_factory.mktemp("hub_tokenizer")
    write_tokenizer(tokenizer, folder, max_length=512)
    return transformers.AutoTokenizer.from_pretrained(folder)
