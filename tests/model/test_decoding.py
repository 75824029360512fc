"""Cached decoding against a slow version that recomputes every logit from the whole row."""

import dataclasses

import jax
import numpy as np
import pytest
import slow_decoding

from glm_jax.batch import Batch
from glm_jax.config import MeshConfig, ModelConfig, from_dict, with_vocab_size
from glm_jax.errors import UserError
from glm_jax.model import decoding, glm
from glm_jax.model.decoding import DecodingOptions, Draw, Filler, encode_context
from glm_jax.model.sampling import forbidden_ids
from glm_jax.objective import infill
from glm_jax.objective.spans import Blanks
from glm_jax.parallel.sharding import make_sharding
from glm_jax.tokenizer import Tokenizer

MAX_NEW = 6
OPTIONS = DecodingOptions(max_new_tokens=MAX_NEW)
SAMPLED = DecodingOptions(max_new_tokens=MAX_NEW, temperature=1.0, top_p=0.9)
TEXTS = [
    "The capital of [MASK] is Rome, and that of France is [MASK].",
    "水的颜色是[MASK]。",
    "One two three [gMASK]",
    "[sMASK] It is known that gold is yellow. [MASK] ends here.",
]


@pytest.fixture(scope="module")
def tokenizer(data_dir):
    return Tokenizer.load(data_dir / "tokenizer")


# The later members in miniature; `slot` has the residual of GLM-4-0414, `mixed` looks both ways.
MODERN = {
    "position": "rope_1d",
    "rope_fraction": 0.5,
    "rope_layout": "interleaved",
    "num_heads": 4,
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "linear_bias": False,
}
MODELS = {
    "learned_2d": {},
    "rope_2d": {"position": "rope_2d"},
    "one_block": {"block_positions": False},
    "slot": MODERN | {"span_position": "slot", "context": "causal", "residual": "sandwich"},
    "mixed": MODERN | {"span_position": "mixed"},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tokenizer):
    values = {
        "num_layers": 2,
        "hidden_dim": 32,
        "num_heads": 2,
        "mlp_dim": 64,
        "max_positions": 96,
        "init_std": 0.2,  # so that different contexts give different answers
        "dtype": "float32",
        "vocab_multiple": 64,
    } | MODELS[request.param]
    blanks = {"shuffle_spans": False}
    config = from_dict({"model": values, "objective": blanks, "data": {"seq_length": 96}})
    config = with_vocab_size(config, tokenizer.vocab_size).model
    return config, glm.init_params(config, jax.random.key(1))


@pytest.fixture(scope="module")
def filler(model, tokenizer):
    return Filler(*model, tokenizer, batch_size=4)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"min_new_tokens": 3, "no_repeat_ngram": 1},
        {"num_beams": 3, "no_repeat_ngram": 2, "length_penalty": 0.7},
    ],
)
def test_cached_batched_decoding_is_the_slow_one(model, tokenizer, filler, values):
    options = DecodingOptions(max_new_tokens=MAX_NEW, **values)
    filled = filler.fill(TEXTS, options)
    for text, result in zip(TEXTS, filled, strict=True):
        assert result.token_ids == slow_decoding.fill(*model, tokenizer, text, options)
        assert result.answers == [tokenizer.decode(ids) for ids in result.token_ids]
    assert len({tuple(map(tuple, result.token_ids)) for result in filled}) == len(TEXTS)


@pytest.mark.parametrize(
    "text", [TEXTS[0], "[gMASK] is yellow.", "[sMASK] Gold [sMASK] is [sMASK] yellow."]
)
def test_answers_are_read_as_rows_of_training_are(model, tokenizer, filler, text):
    """Every answer is the greedy one in the row that `infill` builds of the filled text."""
    config, params = model
    options = DecodingOptions(max_new_tokens=MAX_NEW, min_new_tokens=1)
    (answers,) = (result.token_ids for result in filler.fill([text], options))
    row = row_of(config, tokenizer.special, encode_context(text, tokenizer), answers)
    columns = (row.tokens, row.position, row.block_position, row.kv_start, row.kv_end)
    logits = glm.apply_logits(config, params, *(column[None] for column in columns))[0]
    allowed = ~np.asarray(forbidden_ids(config.vocab_size, tokenizer))
    ends = [tokenizer.special.eop, tokenizer.special.eos]
    starts = np.flatnonzero(row.tokens == tokenizer.special.sop)
    for start, answer in zip(starts, answers, strict=True):
        for i, (token, scores) in enumerate(zip(answer, logits[start:], strict=False)):
            scores = np.where(allowed, scores, -np.inf)
            scores[ends] = -np.inf if i == 0 else scores[ends]
            assert scores.argmax() == token
        if len(answer) < MAX_NEW:
            assert np.where(allowed, logits[start + len(answer)], -np.inf).argmax() in ends


def row_of(config, special, context, answers) -> Batch:
    """What `infill` makes of a text whose blanks, all of one kind, are filled."""
    text, starts, at = [], [], 0
    for blank, answer in zip(context.blanks, answers, strict=True):
        text += context.tokens[at:blank].tolist()
        starts.append(len(text))
        text += answer
        at = blank + 1
    text = np.array([*text, *context.tokens[at:]], np.int32)
    starts, lengths = np.array(starts), np.array([len(answer) for answer in answers])
    blanks = Blanks(starts, starts + lengths, lengths < MAX_NEW)
    mask_id = context.tokens[context.blanks[0]]
    row = infill.build_pieces(
        text, np.array([len(text)]), blanks, mask_id=mask_id, special=special, model=config
    )
    assert row.tokens[: len(context.tokens)].tolist() == context.tokens.tolist()
    return row


def test_draws_depend_on_seed_and_name_and_not_on_the_batch(filler):
    many = [*TEXTS, TEXTS[0]]
    draws = [Draw(i) for i in range(5)]
    together = filler.fill(many, SAMPLED)
    assert filler.fill(many, SAMPLED, draws) == together
    for i in (0, 3, 4):
        assert filler.fill([many[i]], SAMPLED, [draws[i]]) == [together[i]]
    assert filler.fill(many[::-1], SAMPLED, draws[::-1]) == together[::-1]

    def answers(options=SAMPLED, **draw):
        return filler.fill([TEXTS[0]], options, [Draw(**({"text": 0} | draw))])[0].token_ids

    first = answers()
    assert first == together[0].token_ids
    others = [answers(text=1), answers(sample=1), answers(dataclasses.replace(SAMPLED, seed=1))]
    assert len({str(x) for x in [first, *others]}) == 4
    assert first[0] != first[1]


def test_another_seed_compiles_nothing(filler):
    filler.fill(TEXTS[:1], SAMPLED)
    compiled = decoding._decode._cache_size()
    filler.fill(TEXTS[:1], dataclasses.replace(SAMPLED, seed=7))
    assert decoding._decode._cache_size() == compiled


def test_draws_follow_the_slow_logits(model, tokenizer, filler):
    options = DecodingOptions(max_new_tokens=1, min_new_tokens=1, temperature=0.5, top_k=4)
    num = 400
    draws = [Draw(0, sample) for sample in range(num)]
    filled = filler.fill([TEXTS[1]] * num, options, draws)
    tokens = [result.token_ids[0][0] for result in filled]

    reader = slow_decoding.Reader(*model, tokenizer, TEXTS[1])
    logits = reader.logits(reader.blanks[0], [])
    kept = sorted(range(len(tokenizer.control_ids), tokenizer.vocab_size), key=lambda t: -logits[t])
    weights = np.exp(logits[kept[:4]] / 0.5)
    expected = num * weights / weights.sum()
    counts = np.array([tokens.count(token) for token in kept[:4]])
    assert counts.sum() == num
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()


@pytest.mark.multidevice
@pytest.mark.parametrize(
    ("rules", "sizes"),
    [("dp", {"data": 2, "context": 2}), ("fsdp_model", {"data": 1, "fsdp": 2, "model": 2})],
)
def test_every_mesh_fills_as_one_device(model, tokenizer, filler, rules, sizes):
    sharding = make_sharding(MeshConfig(rules=rules, **sizes))
    sharded = Filler(*model, tokenizer, sharding, batch_size=3)
    assert sharded.batch_size == 4
    for options in (SAMPLED, DecodingOptions(max_new_tokens=MAX_NEW, num_beams=3)):
        assert sharded.fill(TEXTS, options) == filler.fill(TEXTS, options)
    assert sharded.fill(TEXTS[::-1] * 2, SAMPLED) == filler.fill(TEXTS[::-1] * 2, SAMPLED)


def test_parameters_that_are_not_numbers_are_told(model, tokenizer):
    config, params = model
    broken = jax.tree.map(lambda x: x * np.nan, params)
    filler = Filler(config, broken, tokenizer, batch_size=4)
    with pytest.raises(UserError, match=r"logits are not finite for the text 'The capital"):
        filler.fill(TEXTS, OPTIONS)


def test_more_texts_than_a_batch(filler):
    many = [f"The number {i} is [MASK]." for i in range(10)]
    together = filler.fill(many, OPTIONS)
    assert together[7:] == filler.fill(many[7:], OPTIONS)
    assert filler.fill([], OPTIONS) == []


def test_a_text_is_encoded_once(filler, monkeypatch):
    encoded = []

    def encode(text, *rest):
        encoded.append(text)
        return encode_context(text, *rest)

    monkeypatch.setattr(decoding, "encode_context", encode)
    filler.fill(TEXTS, OPTIONS)
    assert encoded == TEXTS


def test_a_faulty_text_does_not_stop_the_others(filler):
    texts = [TEXTS[0], "Gold", TEXTS[1]]
    first, error, last = filler.try_fill(texts, SAMPLED)
    assert "in the text 'Gold'" in str(error)
    draws = [Draw(0), Draw(2)]
    assert filler.fill([TEXTS[0], TEXTS[1]], SAMPLED, draws) == [first, last]


def test_answers_stand_where_the_blanks_stood(filler):
    (result,) = filler.fill([TEXTS[0]], OPTIONS)
    assert result.parts[::2] == ["The capital of", " is Rome, and that of France is", "."]
    assert result.text == "".join(result.parts)


def test_context_is_that_of_training(tokenizer):
    special = tokenizer.special
    context = encode_context("Gold is [MASK].", tokenizer)
    assert context.tokens[0] == special.cls
    assert context.tokens[-1] == special.eos
    assert context.tokens[context.blanks[0]] == special.mask
    assert tokenizer.decode(context.tokens) == "Gold is."
    assert encode_context("Gold [gMASK]", tokenizer).tokens[-1] == special.gmask


def test_answers_in_slots_need_positions_after_the_text(tokenizer):
    text = "Gold is [MASK] and [MASK]"
    length = len(encode_context(text, tokenizer).tokens)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        num_layers=1,
        hidden_dim=32,
        num_heads=2,
        mlp_dim=64,
        max_positions=length + 2 * 3,
        span_position="slot",
        dtype="float32",
    )
    filler = Filler(config, glm.init_params(config, jax.random.key(0)), tokenizer, batch_size=1)
    assert len(filler.fill([text], DecodingOptions(max_new_tokens=3))[0].answers) == 2
    with pytest.raises(UserError, match=f"{length + 8} tokens are more than the position table"):
        filler.fill([text], DecodingOptions(max_new_tokens=4))


def test_mistakes(model, filler):
    with pytest.raises(UserError, match=r"no .MASK., .sMASK. or .gMASK. in the text 'Gold'"):
        filler.fill(["Gold"], OPTIONS)
    long = "gold " * 50 + "[MASK]"
    if model[0].position == "learned_2d":
        message = r"position table holds \(model.max_positions 96\)"
        for text, longest in ((long, MAX_NEW), (TEXTS[1], 97)):
            with pytest.raises(UserError, match=message):
                filler.fill([text], DecodingOptions(max_new_tokens=longest))
    else:
        assert len(filler.fill([long], OPTIONS)[0].answers) == 1
