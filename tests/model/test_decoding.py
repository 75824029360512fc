"""Cached decoding against a slow version that recomputes every logit from the whole row."""

import dataclasses

import jax
import numpy as np
import pytest

from glm_jax.config import from_dict, with_vocab_size
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.model.decoding import Filler, encode_context
from glm_jax.tokenizer import SPECIAL_PIECES, Tokenizer

MAX_NEW = 6
TEXTS = [
    "The capital of [MASK] is Rome, and that of France is [MASK].",
    "水的颜色是[MASK]。",
    "One two three [gMASK]",
    "[sMASK] It is known that gold is yellow. [MASK] ends here.",
]


@pytest.fixture(scope="module")
def tokenizer(data_dir):
    return Tokenizer.load(data_dir / "tokenizer")


@pytest.fixture(scope="module", params=["learned_2d", "rope_2d"])
def model(request, tokenizer):
    values = {
        "num_layers": 2,
        "hidden_dim": 32,
        "num_heads": 2,
        "mlp_dim": 64,
        "max_positions": 96,
        "position": request.param,
        "init_std": 0.2,  # so that different contexts give different answers
        "dtype": "float32",
        "vocab_multiple": 64,
    }
    config = from_dict({"model": values, "data": {"seq_length": 96}})
    config = with_vocab_size(config, tokenizer.vocab_size).model
    return config, glm.init_params(config, jax.random.key(1))


def slow_fill(config, params, tokenizer, text) -> list[list[int]]:
    special = tokenizer.special
    context = encode_context(text, tokenizer)
    tokens = context.tokens.tolist()
    rows = [[token, i, 0, len(tokens)] for i, token in enumerate(tokens)]  # ..., kv_end
    forward = jax.jit(glm.apply_logits, static_argnums=0)
    answers = []
    for blank in context.blanks:
        answer, token = [], special.sop
        for block_position in range(1, MAX_NEW + 1):
            rows.append([token, blank, block_position, len(rows) + 1])
            padding = [[special.pad, 0, 0, 0]] * (96 - len(rows))
            columns = np.array(rows + padding, np.int32).T[:, None]
            logits = forward(config, params, *columns[:3], np.zeros_like(columns[0]), columns[3])
            scores = np.array(logits[0, len(rows) - 1])
            allowed = [special.eop, special.eos, *range(len(SPECIAL_PIECES), tokenizer.vocab_size)]
            token = max(allowed, key=lambda i: (scores[i], -i))
            if token in (special.eop, special.eos):
                break
            answer.append(token)
        answers.append(answer)
    return answers


def test_cached_batched_decoding_is_the_slow_one(model, tokenizer):
    config, params = model
    filled = Filler(config, params, tokenizer).fill(TEXTS, MAX_NEW)
    for text, result in zip(TEXTS, filled, strict=True):
        assert result.token_ids == slow_fill(config, params, tokenizer, text)
        assert result.answers == [tokenizer.decode(ids) for ids in result.token_ids]
    assert len({tuple(map(tuple, result.token_ids)) for result in filled}) == len(TEXTS)


def test_more_texts_than_a_batch(model, tokenizer):
    config, params = model
    filler = Filler(config, params, tokenizer)
    many = [f"The number {i} is [MASK]." for i in range(20)]
    together = filler.fill(many, MAX_NEW)
    assert together[17:] == filler.fill(many[17:], MAX_NEW)


def test_answers_stand_where_the_blanks_stood(model, tokenizer):
    config, params = model
    (result,) = Filler(config, params, tokenizer).fill([TEXTS[0]], MAX_NEW)
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


def test_mistakes(model, tokenizer):
    config, params = model
    filler = Filler(config, params, tokenizer)
    with pytest.raises(UserError, match=r"no .MASK., .sMASK. or .gMASK. in the text 'Gold'"):
        filler.fill(["Gold"], MAX_NEW)
    long = "gold " * 200 + "[MASK]"
    if config.position == "learned_2d":
        with pytest.raises(UserError, match=r"position table holds \(model.max_positions 96\)"):
            filler.fill([long], MAX_NEW)
    rope = dataclasses.replace(config, position="rope_2d")
    Filler(rope, params, tokenizer)._check_length(encode_context(long, tokenizer), MAX_NEW)
