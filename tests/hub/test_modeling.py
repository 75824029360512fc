"""Our PyTorch class against the published code's numbers, without JAX, and its own equivalences."""

import dataclasses

import numpy as np
import pytest

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.layouts import parameters
from glm_jax.layouts.io import TensorFiles
from glm_jax.tokenizer import SPECIAL_PIECES

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("transformers", reason="needs transformers")

from glm_jax.hub.configuration_glm_jax import GLMJaxConfig  # noqa: E402
from glm_jax.hub.modeling_glm_jax import GLMJaxForBlankInfilling  # noqa: E402

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
PUBLISHED = {
    "glm_2021": ("glm_2021", LEARNED),
    "glm_2021_scaled": ("glm_2021", LEARNED),
    "chatglm_v1": ("chatglm", ROTARY),
}
MASK, SMASK, GMASK, SOP, EOP, EOS, CLS = 4, 5, 6, 7, 8, 2, 3


def _model(config: ModelConfig, params: dict | None = None, **overrides):
    """The torch class in float64; random weights unless `params` (ours) are given."""
    torch.manual_seed(0)
    hub = GLMJaxConfig(
        vocab_size=config.vocab_size,
        tokenizer_vocab_size=config.vocab_size,
        hidden_size=config.hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        max_position_embeddings=config.max_positions,
        position_type=config.position,
        residual_type=config.residual,
        deepnorm_alpha=config.residual_scale,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[config.activation],
        tie_word_embeddings=config.tie_embeddings,
        **overrides,
    )
    model = GLMJaxForBlankInfilling(hub).double().eval()
    if params is not None:
        tensors = layouts.export_tensors("glm_jax", params, config)
        state = {name: torch.from_numpy(array) for name, array in tensors}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert (missing, unexpected) == (["lm_head.weight"] * config.tie_embeddings, [])
    return model


NUM_CONTROL = len(SPECIAL_PIECES)


def _random_model(config: ModelConfig, **overrides):
    """Weights large enough that greedy answers depend on all of the input.

    Like an export, it never answers with a control symbol.
    """
    rng = np.random.default_rng(1)
    scale = {"embedding": 0.5, "kernel": 0.15, "bias": 0.05, "scale": 0.1}
    flat = {
        name: rng.normal(scale=scale[name.split("/")[-1]], size=shape) + name.endswith("scale")
        for name, shape in parameters.shapes(config).items()
    }
    model = _model(config, parameters.unflatten(flat), **overrides)
    model.generation_config.suppress_tokens = list(range(NUM_CONTROL))
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_logits_loss_and_gradients(fixtures, name):
    layout, config = PUBLISHED[name]
    reference = TensorFiles(fixtures / f"{name}.safetensors")

    def ours(prefix: str) -> dict:
        part = {k.removeprefix(prefix): reference[k] for k in reference if k.startswith(prefix)}
        return layouts.load_params(layout, part, config)

    model = _model(config, ours("param."))

    slot = np.arange(40)
    kv_end = np.maximum(slot + 1, reference["sep"][:, None])
    inputs = {
        "input_ids": reference["input_ids"],
        "position_ids": reference["position_ids"],
        "labels": reference["labels"],
        "kv_start": np.zeros_like(kv_end),
        "kv_end": kv_end,
        "attention_mask": np.ones_like(kv_end),
    }
    inputs = {k: torch.from_numpy(v).long() for k, v in inputs.items()}
    output = model(**inputs)
    logits, loss = output.logits.detach().numpy(), output.loss.item()
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(loss, reference["loss"][0], rtol=0, atol=2e-6)

    output.loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    published = dict(layouts.export_tensors("glm_jax", ours("grad."), config))
    assert gradients.keys() == published.keys()
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, published[key], rtol=0, atol=1e-6, err_msg=key)


def test_default_positions_and_ranges_are_those_of_blank_infilling():
    """Context in both directions, then the answers in the order of the blanks."""
    context = [CLS, 20, MASK, 21, SMASK, 22, EOS]
    row = [*context, SOP, 30, 31, SOP, 40]
    position = [*range(7), 2, 2, 2, 4, 4]
    block = [0] * 7 + [1, 2, 3, 1, 2]
    kv_end = [7] * 7 + [8, 9, 10, 11, 12]
    model = _random_model(UNTIED)
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
    model = _random_model(UNTIED)
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
        _random_model(UNTIED)(torch.tensor([[CLS, 20, MASK, EOS, SOP, 30, SOP]]))


def _greedy_by_forward(model, row: list[int], position: int, steps: int) -> list[int]:
    """Answer to one blank by full forward passes over positions written out by hand."""
    context = row.index(SOP) if SOP in row else len(row)
    ids, blocks = [*row, SOP], [1]
    for _ in range(steps):
        positions = [[*range(context), *[position] * len(blocks)], [0] * context + blocks]
        kv_end = [context] * context + [*range(context + 1, len(ids) + 1)]
        logits = model(
            torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            kv_start=torch.zeros(1, len(ids), dtype=torch.long),
            kv_end=torch.tensor([kv_end]),
        ).logits
        ids.append(NUM_CONTROL + int(logits[0, -1, NUM_CONTROL:].argmax()))
        blocks.append(len(blocks) + 1)
    return ids[len(row) + 1 :]


GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
ROWS = [[CLS, 20, 21, MASK, 22, EOS], [CLS, 50, SMASK, 51, 52, 53, 54, 55, EOS], [CLS, 90, GMASK]]


@torch.no_grad()
@pytest.mark.parametrize("config", [UNTIED, ROTARY], ids=["learned_2d", "rope_2d"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_is_greedy_search_with_two_positions(config, use_cache):
    model = _random_model(config)
    for row in ROWS:
        blank = next(i for i, token in enumerate(row) if token in (MASK, SMASK, GMASK))
        expected = _greedy_by_forward(model, row, blank, 8)
        output = model.generate(torch.tensor([row]), use_cache=use_cache, **GREEDY)
        assert output[0].tolist() == [*row, SOP, *expected]
        assert len(set(expected)) > 2


@pytest.mark.parametrize("config", [UNTIED, ROTARY], ids=["learned_2d", "rope_2d"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_answers_of_single_rows(config, side):
    model = _random_model(config)
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


def test_the_end_of_the_document_is_not_read_after_a_final_gmask():
    model = _random_model(UNTIED)

    def first_logits(row):
        options = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
        return model.generate(torch.tensor([row]), **options).logits[0]

    text = [CLS, 20, 21]
    read, unread = first_logits([*text, GMASK]), first_logits([*text, GMASK, EOS])
    torch.testing.assert_close(read, unread, rtol=0, atol=1e-12)
    read, unread = first_logits([*text, MASK]), first_logits([*text, MASK, EOS])
    assert (read - unread).abs().max() > 1e-3


def test_generation_stops_and_pads():
    model = _random_model(UNTIED)
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
    model = _random_model(UNTIED)
    rows = torch.tensor([[0] * 3 + ROWS[0], ROWS[1]])
    torch.manual_seed(0)
    output = model.generate(
        rows, use_cache=use_cache, **{"do_sample": False, "max_new_tokens": 4} | strategy
    )
    assert len(output) == 2 * strategy["num_return_sequences"]


def test_beams_are_the_same_with_and_without_a_cache():
    model = _random_model(UNTIED)
    rows = torch.tensor([[0] * 3 + ROWS[0], ROWS[1]])
    beams = [model.generate(rows, num_beams=3, use_cache=c, **GREEDY) for c in (True, False)]
    assert beams[0].tolist() == beams[1].tolist()


def test_a_row_that_cannot_be_filled_is_an_error(hub_tokenizer):
    model = _random_model(UNTIED)
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


@torch.no_grad()
def test_several_blanks_are_filled_from_left_to_right(tokenizer, hub_tokenizer):
    model = _random_model(dataclasses.replace(UNTIED, vocab_size=512))
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
    ids, positions = list(row), [(i, 0) for i in range(len(row))]
    for blank, answer in zip(blanks, filled.token_ids, strict=True):
        ids += [SOP, *answer[:-1]]
        positions += [(blank, 1 + i) for i in range(len(answer))]
    slot = torch.arange(len(ids))
    logits = model(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        position_ids=torch.tensor(positions).T[None],
        kv_start=torch.zeros(1, len(ids), dtype=torch.long),
        kv_end=torch.where(slot < len(row), len(row), slot + 1)[None],
    ).logits[0]
    at = len(row)
    for answer in filled.token_ids:
        choices = NUM_CONTROL + logits[at : at + len(answer), NUM_CONTROL:].argmax(-1)
        assert choices.tolist() == answer
        at += len(answer)


def test_an_answer_replaces_its_blank_and_ends_at_eop(hub_tokenizer, monkeypatch):
    model = _random_model(dataclasses.replace(UNTIED, vocab_size=512))
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
        exact = _random_model(config)
        logits = _random_model(config).bfloat16()(row).logits
        assert logits.dtype == torch.float32
        difference = (logits - exact(row).logits).abs().max()
        assert difference < 0.05 * exact(row).logits.abs().max()


def test_fresh_weights_have_the_published_scale():
    model = _model(dataclasses.replace(LEARNED, hidden_dim=96, mlp_dim=384))
    layer = model.model.layers[0]
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    expected = 0.02 / np.sqrt(2 * LEARNED.num_layers)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert layer.self_attn.o_proj.bias.abs().max() == 0
    assert model.lm_head.weight is model.model.embed_tokens.weight
