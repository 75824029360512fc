"""Our PyTorch class against the GLM-4 classes of transformers, from the same weights."""

import dataclasses

import numpy as np
import pytest

from glm_jax import layouts
from glm_jax.config import ModelConfig

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from layouts.tiny_models import MODELS, random_params  # noqa: E402
from torch_models import torch_model  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # the models are too small to share

CONFIGS = {
    "glm": MODELS["glm"],
    "glm4": dataclasses.replace(
        MODELS["chatglm2"], residual="sandwich", num_kv_heads=4, qkv_bias=False
    ),
}
SPECIAL = {"mask_token_ids": [6, 6, 6], "cls_token_id": None, "eos_token_id": 2, "pad_token_id": 2}
GMASK, SOP, PAD = 6, 7, 2
# The classes of transformers normalise in float32 and turn by float32 angles in any case.
ATOL = 5e-6


def native_model(name: str, config: ModelConfig, tensors: dict):
    fields = layouts.find_layout(name).write_config(config)
    hub = transformers.AutoConfig.for_model(
        **{k: v for k, v in fields.items() if k != "architectures"},
        eos_token_id=None,
        pad_token_id=PAD,
    )
    model = transformers.AutoModelForCausalLM.from_config(hub).double().eval()
    model.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()})
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=CONFIGS)
def models(request):
    """Name of the layout, config, our model and that of transformers."""
    name, config = request.param, CONFIGS[request.param]
    params = random_params(config)
    ours = torch_model(config, params, **SPECIAL)
    native = native_model(name, config, layouts.export_tensors(name, params, config))
    return name, config, ours, native


def random_tokens(*shape: int):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(10, MODELS["chatglm2"].vocab_size, shape))


def test_logits_loss_and_gradients(models):
    name, config, ours, native = models
    tokens = random_tokens(3, 24)
    labels = torch.cat([tokens[:, 1:], torch.full((3, 1), -100)], dim=1)
    output, expected = ours(tokens, labels=labels), native(tokens, labels=tokens)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=ATOL)
    torch.testing.assert_close(output.loss, expected.loss.double(), rtol=0, atol=1e-6)

    output.loss.backward()
    expected.loss.backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in native.named_parameters()}
    gradients = layouts.load_params(name, gradients, config)
    gradients = layouts.export_tensors("glm_jax", gradients, config)
    assert gradients.keys() == {key for key, _ in ours.named_parameters()}
    for key, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[key], rtol=0, atol=2e-6, err_msg=key)


@torch.no_grad()
def test_packed_texts_are_those_of_rows_of_their_own(models):
    _, _, ours, native = models
    tokens, lengths = random_tokens(1, 30), [13, 17]
    start = torch.tensor([[0] * 13 + [13] * 17])
    slot = torch.arange(30)[None]
    logits = ours(
        tokens,
        position_ids=torch.stack([slot - start, torch.zeros_like(slot)], dim=1),
        kv_start=start,
        kv_end=slot + 1,
    ).logits
    alone = [native(part).logits for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(logits, torch.cat(alone, dim=1), rtol=0, atol=ATOL)


GREEDY = {"max_new_tokens": 32, "do_sample": False}


@pytest.mark.parametrize("start", [[], [GMASK, SOP]], ids=["text", "gmask_sop"])
def test_greedy_answers(models, start):
    _, _, ours, native = models
    tokens = torch.cat([torch.tensor([start] * 2).long(), random_tokens(2, 9)], dim=1)
    expected = native.generate(tokens, attention_mask=torch.ones_like(tokens), **GREEDY)
    for use_cache in (True, False):
        answers = ours.generate(tokens, eos_token_id=None, use_cache=use_cache, **GREEDY)
        assert answers.tolist() == expected.tolist()
    assert len(set(expected[0, tokens.shape[1] :].tolist())) > 8


def test_greedy_answers_of_padded_rows(models):
    _, _, ours, native = models
    tokens, mask = random_tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    tokens[0, :5], mask[0, :5] = PAD, 0
    answers, expected = (
        model.generate(tokens, attention_mask=mask, eos_token_id=None, **GREEDY)
        for model in (ours, native)
    )
    assert answers.tolist() == expected.tolist()


@torch.no_grad()
def test_an_end_of_document_that_is_also_padding_is_seen(models):
    _, _, ours, native = models
    tokens = random_tokens(1, 12)
    tokens[0, 4] = PAD
    logits, expected = (model(tokens).logits for model in (ours, native))
    torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)
