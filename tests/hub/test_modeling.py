"""Our PyTorch class against the published code's numbers, without JAX, and its own equivalences."""

import dataclasses

import numpy as np
import pytest

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.layouts.safetensors_files import SafetensorsFiles

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("transformers", reason="needs transformers")

from layouts.tiny_models import MODELS as TINY  # noqa: E402
from torch_models import NUM_CONTROL, random_model, torch_model  # noqa: E402

from glm_jax.hub.blanks_glm_jax import Row  # noqa: E402
from glm_jax.hub.modeling_glm_jax import GLMJaxRMSNorm  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # the models are too small to share

LEARNED = ModelConfig(
    vocab_size=160,
    num_layers=3,
    hidden_dim=48,
    num_heads=4,
    mlp_dim=192,
    max_positions=64,
    activation="gelu",
)
ROTARY = dataclasses.replace(
    LEARNED,
    hidden_dim=64,
    mlp_dim=256,
    position="rope_2d",
    residual="deepnorm",
    activation="gelu_tanh",
    tie_embeddings=False,
)
# Tied random weights repeat one token, which would show little of generation.
UNTIED = dataclasses.replace(LEARNED, tie_embeddings=False)
GLM_130B = dataclasses.replace(
    ROTARY,
    mlp_dim=168,
    position="rope_1d",
    span_position="mixed",
    activation="geglu",
    tie_embeddings=True,
)
MIXED = dataclasses.replace(GLM_130B, tie_embeddings=False)
SANDWICH = dataclasses.replace(TINY["chatglm2"], residual="sandwich", context="bidirectional")
MODELS = {
    "learned_2d": UNTIED,
    "rope_2d": ROTARY,
    "causal": TINY["chatglm2"],
    "sandwich": SANDWICH,
    "mixed": MIXED,
}
PUBLISHED = {
    "glm_2021": ("glm_2021", LEARNED),
    "glm_2021_scaled": ("glm_2021", LEARNED),
    "chatglm_v1": ("chatglm", ROTARY),
    "glm_130b": ("glm_130b", GLM_130B),
    "chatglm2": ("chatglm2", TINY["chatglm2"]),
}
MASK, SMASK, GMASK, SOP, EOP, EOS, CLS = 4, 5, 6, 7, 8, 2, 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_logits_loss_and_gradients(fixtures, name):
    layout, config = PUBLISHED[name]
    reference = SafetensorsFiles(fixtures / f"{name}.safetensors")

    def ours(prefix: str) -> dict:
        part = {k.removeprefix(prefix): reference[k] for k in reference if k.startswith(prefix)}
        return layouts.load_params(layout, part, config)

    model = torch_model(config, ours("param."))

    tokens = reference["input_ids"]
    slot = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    kv_end = np.maximum(slot + 1, reference["sep"][:, None] if "sep" in reference else 0)
    positions = reference.get("position_ids", slot)
    if positions.ndim == 2:
        positions = np.stack([positions, np.zeros_like(positions)], axis=1)
    inputs = {
        "input_ids": tokens,
        "position_ids": positions,
        "labels": reference["labels"],
        "kv_start": np.zeros_like(kv_end),
        "kv_end": kv_end,
        "attention_mask": np.ones_like(kv_end),
    }
    inputs = {k: torch.tensor(v).long() for k, v in inputs.items()}
    output = model(**inputs)
    logits, loss = output.logits.detach().numpy(), output.loss.item()
    # The numbers of ChatGLM2 are those of a float32 run.
    atol = 5e-5 if name == "chatglm2" else 2e-5
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=atol)
    np.testing.assert_allclose(loss, reference["loss"][0], rtol=0, atol=2e-6)

    output.loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    published = dict(layouts.export_tensors("glm_jax", ours("grad."), config))
    assert gradients.keys() == published.keys()
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, published[key], rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("learned_2d", [*range(7), 2, 2, 2, 4, 4]),
        ("causal", [*range(12)]),
        ("sandwich", [*range(12)]),
        ("mixed", [*range(7), 2, 2, 2, 10, 11]),
    ],
)
def test_default_positions_and_ranges_are_those_of_blank_infilling(name, position):
    """Context in both directions or causal, then the answers in the order of the blanks."""
    context = [CLS, 20, MASK, 21, GMASK, 22, EOS]
    row = [*context, SOP, 30, 31, SOP, 40]
    block = [0] * 7 + [1, 2, 3, 1, 2]
    kv_end = [*range(1, 8)] if name == "causal" else [7] * 7
    kv_end += [8, 9, 10, 11, 12]
    model = random_model(MODELS[name])
    with torch.no_grad():
        derived = model(torch.tensor([row])).logits
        explicit = model(
            torch.tensor([row]),
            position_ids=torch.tensor([[position, block]]),
            kv_start=torch.zeros(1, 12, dtype=torch.long),
            kv_end=torch.tensor([kv_end]),
        ).logits
    torch.testing.assert_close(derived, explicit, rtol=0, atol=1e-12)


def test_a_slot_without_visible_keys_gives_zero_attention():
    model = random_model(UNTIED)
    tokens, zeros = torch.tensor([[CLS, 20, 0]]), torch.zeros(1, 3, dtype=torch.long)
    kv_end = torch.tensor([[2, 2, 0]])
    positions = torch.zeros(1, 2, 3, dtype=torch.long)
    attended = []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: attended.append(inputs[0])
    )
    model(tokens, position_ids=positions, kv_start=zeros, kv_end=kv_end)
    assert (attended[0][0, 2] == 0).all()
    assert (attended[0][0, :2] != 0).all()


def test_more_answers_than_blanks_are_refused():
    with pytest.raises(ValueError, match="more <sop> than blanks"):
        random_model(UNTIED)(torch.tensor([[CLS, 20, MASK, EOS, SOP, 30, SOP]]))


def _choices(model, context: list[int], answers: dict[int, list[int]]) -> list[int]:
    """The greedy next token after every slot of a row whose positions are written out by hand.

    `answers`: index of a blank in the context -> what follows its sop.
    """
    config = model.config
    ids, positions = list(context), [(i, 0) for i in range(len(context))]
    for blank, answer in answers.items():
        is_document = context[blank] == GMASK
        in_slots = {"blank": False, "slot": True, "mixed": is_document}[config.span_position]
        for i, token in enumerate([SOP, *answer]):
            positions.append((len(ids) if in_slots else blank, i + 1))
            ids.append(token)
    slot = torch.arange(len(ids))
    is_causal = (slot >= len(context)) | (config.context == "causal")
    logits = model(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        position_ids=torch.tensor(positions).T[None],
        kv_start=torch.zeros(1, len(ids), dtype=torch.long),
        kv_end=torch.where(is_causal, slot + 1, len(context))[None],
    ).logits[0]
    return (NUM_CONTROL + logits[:, NUM_CONTROL:].argmax(-1)).tolist()


def _greedy_by_forward(model, context: list[int], blank: int, steps: int) -> list[int]:
    answer = []
    for _ in range(steps):
        answer.append(_choices(model, context, {blank: answer})[-1])
    return answer


GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
ROWS = [[CLS, 20, 21, MASK, 22, EOS], [CLS, 50, SMASK, 51, 52, 53, 54, 55, EOS], [CLS, 90, GMASK]]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_is_greedy_search_with_two_positions(name, use_cache):
    model = random_model(MODELS[name])
    for row in ROWS:
        blank = next(i for i, token in enumerate(row) if token in (MASK, SMASK, GMASK))
        expected = _greedy_by_forward(model, row, blank, 8)
        output = model.generate(torch.tensor([row]), use_cache=use_cache, **GREEDY)
        assert output[0].tolist() == [*row, SOP, *expected]
        assert len(set(expected)) > 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_answers_of_single_rows(name, side):
    model = random_model(MODELS[name])
    single = [model.generate(torch.tensor([row]), **GREEDY)[0, len(row) :] for row in ROWS]
    longest = max(map(len, ROWS))
    missing = [[0] * (longest - len(row)) for row in ROWS]
    rows = [
        pad + row if side == "left" else row + pad for pad, row in zip(missing, ROWS, strict=True)
    ]
    tokens = torch.tensor(rows)
    for mask in (None, (tokens != 0).long()):
        batch = model.generate(tokens, attention_mask=mask, **GREEDY)
        for row, expected in zip(batch, single, strict=True):
            assert row[longest:].tolist() == expected.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_an_open_answer_goes_on(name):
    model = random_model(MODELS[name])
    for row in ROWS:
        whole = model.generate(torch.tensor([row]), **GREEDY)
        begun = whole[:, : len(row) + 4]
        assert model.generate(begun, **GREEDY | {"max_new_tokens": 5}).tolist() == whole.tolist()


def test_the_end_of_the_document_is_not_read_after_a_final_gmask():
    model = random_model(UNTIED)

    def first_logits(row):
        options = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
        return model.generate(torch.tensor([row]), **options).logits[0]

    text = [CLS, 20, 21]
    read, unread = first_logits([*text, GMASK]), first_logits([*text, GMASK, EOS])
    torch.testing.assert_close(read, unread, rtol=0, atol=1e-12)
    read, unread = first_logits([*text, MASK]), first_logits([*text, MASK, EOS])
    assert (read - unread).abs().max() > 1e-3


def test_generation_stops_and_pads():
    model = random_model(UNTIED)
    answers = [
        model.generate(torch.tensor([row]), **GREEDY)[0, len(row) + 1 :].tolist()
        for row in ROWS[:2]
    ]
    stop = answers[0][2]
    tokens = torch.tensor([[0] * 3 + ROWS[0], ROWS[1]])
    batch = model.generate(tokens, **GREEDY | {"eos_token_id": stop})[:, tokens.shape[1] + 1 :]
    length = answers[0].index(stop) + 1
    assert batch[0].tolist()[:length] == answers[0][:length]
    assert set(batch[0].tolist()[length:]) <= {0}


@pytest.mark.parametrize(
    "strategy",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["sampling", "beams"],
)
@pytest.mark.parametrize("use_cache", [True, False])
def test_other_strategies_run(strategy, use_cache):
    model = random_model(UNTIED)
    rows = torch.tensor([[0] * 3 + ROWS[0], ROWS[1]])
    torch.manual_seed(0)
    output = model.generate(
        rows, use_cache=use_cache, **{"do_sample": False, "max_new_tokens": 4} | strategy
    )
    assert len(output) == 2 * strategy["num_return_sequences"]


def test_beams_are_the_same_with_and_without_a_cache():
    model = random_model(UNTIED)
    rows = torch.tensor([[0] * 3 + ROWS[0], ROWS[1]])
    beams = [model.generate(rows, num_beams=3, use_cache=c, **GREEDY) for c in (True, False)]
    assert beams[0].tolist() == beams[1].tolist()


def test_a_row_that_cannot_be_filled_is_an_error(hub_tokenizer):
    model = random_model(UNTIED)
    with pytest.raises(ValueError, match="more <sop> than blanks"):
        model.generate(torch.tensor([[CLS, 20, EOS]]))
    with pytest.raises(ValueError, match="longer than the 64 positions"):
        model.generate(torch.tensor([[CLS, MASK, *[20] * 64]]))
    with pytest.raises(ValueError, match="longer than the 64 positions"):
        model.generate(torch.tensor([[CLS, MASK, EOS]]), max_new_tokens=65)
    with pytest.raises(ValueError, match="no blank"):
        model.fill_blanks(hub_tokenizer, ["nothing to fill"])


TEXTS = [
    "The cat [MASK] on the mat and [sMASK]",
    "北京是[MASK]的首都，[MASK]是最大的城市。[gMASK]",
    "the <sop> [gMASK]",
]


def test_a_family_without_cls_and_with_one_mask_token(hub_tokenizer):
    ids = {"cls_token_id": None, "mask_token_ids": [GMASK] * 3}
    config = random_model(TINY["chatglm2"], **ids).config
    row = Row.read("The cat [sMASK] on", hub_tokenizer, config)
    words = hub_tokenizer(["The cat", " on"], add_special_tokens=False).input_ids
    assert row.ids == [*words[0], GMASK, *words[1], EOS]
    assert row.blanks == [len(words[0])]
    assert Row.read("The cat [MASK]", hub_tokenizer, config).ids == [*words[0], GMASK]


def test_a_config_comes_back(tmp_path):
    ids = {"cls_token_id": None, "pad_token_id": EOS, "eos_token_id": EOS}
    config = random_model(TINY["chatglm2"], **ids).config
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config.cls_token_id is None


def test_rms_norm_is_rounded_once():
    torch.manual_seed(0)
    norm = GLMJaxRMSNorm(64, eps=1e-5).bfloat16()
    norm.weight.data = torch.rand(64).bfloat16()
    x = torch.randn(32, 64).bfloat16()
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = norm(x)
    assert normed.dtype == torch.bfloat16
    assert (normed == (exact * norm.weight.double()).bfloat16()).float().mean() > 0.99
    assert (normed == exact.bfloat16() * norm.weight).float().mean() < 0.9


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_several_blanks_are_filled_from_left_to_right(tokenizer, hub_tokenizer, name):
    model = random_model(dataclasses.replace(MODELS[name], vocab_size=512))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    for text, filled in zip(TEXTS, model.fill_blanks(hub_tokenizer, TEXTS, **options), strict=True):
        assert model.fill_blanks(hub_tokenizer, [text], **options) == [filled]
        row = hub_tokenizer(text).input_ids
        if "<sop>" in text:  # which is text here, as the tokenizer alone would not have it
            row = [CLS, *tokenizer.encode("the <sop>").tolist(), GMASK]
        row = row[:-1] if row[-2:] == [GMASK, EOS] else row
        blanks = [i for i, token in enumerate(row) if token in (MASK, SMASK, GMASK)]
        _check_answers(model, row, blanks, filled)
        assert filled.answers == [hub_tokenizer.decode(ids) for ids in filled.token_ids]


def _check_answers(model, row, blanks, filled):
    """Each answer is the greedy choice given the context and the answers before it.

    The last token of an answer is not read: here all answers are cut at the same length.
    """
    answers = dict(zip(blanks, filled.token_ids, strict=True))
    read = {blank: answer[:-1] for blank, answer in answers.items()}
    generated = [token for answer in answers.values() for token in answer]
    assert _choices(model, row, read)[len(row) :] == generated


def test_an_answer_replaces_its_blank_and_ends_at_eop(hub_tokenizer, monkeypatch):
    model = random_model(dataclasses.replace(UNTIED, vocab_size=512))
    answer = hub_tokenizer(" sat", add_special_tokens=False).input_ids

    def generate(input_ids, **kwargs):
        tail = torch.tensor([[*answer, EOP, 0, 0]])
        return torch.cat([input_ids, tail.expand(len(input_ids), -1)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    filled = model.fill_blanks(hub_tokenizer, ["The cat [MASK] on the [MASK]."])[0]
    assert filled.answers == [" sat", " sat"]
    assert filled.token_ids == [answer, answer]
    assert filled.text == "The cat sat on the sat."


@torch.no_grad()
def test_half_precision_keeps_logits_in_float32():
    row = torch.tensor([ROWS[0]])
    for config in (LEARNED, ROTARY):
        exact = random_model(config)
        logits = random_model(config).bfloat16()(row).logits
        assert logits.dtype == torch.float32
        difference = (logits - exact(row).logits).abs().max()
        assert difference < 0.05 * exact(row).logits.abs().max()


def test_fresh_weights_have_the_published_scale():
    model = torch_model(dataclasses.replace(LEARNED, hidden_dim=96, mlp_dim=384))
    layer = model.model.layers[0]
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    expected = 0.02 / np.sqrt(2 * LEARNED.num_layers)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert layer.self_attn.o_proj.bias.abs().max() == 0
    assert model.lm_head.weight is model.model.embed_tokens.weight
