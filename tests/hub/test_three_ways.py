"""Greedy answers of 32 tokens: `fill`, our PyTorch class and the class of transformers."""

import dataclasses

import pytest
from layouts.tiny_models import MODELS, random_params

from glm_jax import layouts
from glm_jax.export import export_model
from glm_jax.hub.model_files import Release
from glm_jax.layouts import parameters
from glm_jax.layouts.sources import ArraySource
from glm_jax.model.decoding import DecodingOptions, Filler, encode_context

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.torch

TEXTS = ["The cat sat on the[gMASK]", "Paris is the capital[gMASK]", "北京是[gMASK]"]
LENGTH = 32


@pytest.mark.parametrize("layout", ["glm", "glm4"])
def test_all_three_write_the_same(layout, tokenizer, tmp_path):
    config = dataclasses.replace(MODELS[layout], vocab_size=tokenizer.vocab_size)
    params = random_params(config)
    source = ArraySource(config, parameters.flatten(params))
    for name in ("glm_jax", layout):
        release = Release(layouts.find_layout(name), config, tokenizer, None, "float32")
        export_model(release, source, tmp_path / name)

    filled = Filler(config, params, tokenizer).fill(TEXTS, DecodingOptions(LENGTH))
    ours = [answer.token_ids[0] for answer in filled]
    auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_pretrained(tmp_path / "glm_jax", trust_remote_code=True)
    hub = transformers.AutoTokenizer.from_pretrained(tmp_path / "glm_jax", trust_remote_code=False)
    answers = model.fill_blanks(hub, TEXTS, LENGTH, do_sample=False)
    assert [answer.token_ids[0] for answer in answers] == ours

    native = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / layout)
    assert "Glm" in type(native).__name__
    stops = {tokenizer.special.eop, tokenizer.special.eos}
    for text, answer in zip(TEXTS, ours, strict=True):
        prompt = [*encode_context(text, tokenizer).tokens.tolist(), tokenizer.special.sop]
        ids = torch.tensor([prompt])
        written = native.generate(ids, max_new_tokens=LENGTH, do_sample=False)[0, len(prompt) :]
        assert [token for token in written.tolist() if token not in stops] == answer
    assert max(map(len, ours)) == LENGTH
    assert len({tuple(answer) for answer in ours}) == len(TEXTS)
