"""The scorer against an obvious version: one answer at a time, every logit of the whole row."""

import dataclasses

import jax
import numpy as np
import pytest

from glm_jax.config import MeshConfig, ModelConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.model.scoring import Request, Scorer, _bucket, check_fits
from glm_jax.parallel.sharding import make_sharding
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
VOCAB, LENGTH = 64, 96
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    num_layers=2,
    hidden_dim=32,
    num_heads=4,
    mlp_dim=64,
    max_positions=LENGTH,
    init_std=0.3,  # so that different contexts give different answers
    dtype="float32",
)


def devices(data: int, fsdp: int = 1, context: int = 1, model: int = 1):
    config = MeshConfig(data=data, fsdp=fsdp, context=context, model=model)
    return make_sharding(config, jax.devices()[: data * fsdp * context * model])


ONE_DEVICE = devices(1)


MODELS = {
    "learned_2d": CONFIG,
    "rope_2d": dataclasses.replace(CONFIG, position="rope_2d"),
    "one_block": dataclasses.replace(CONFIG, block_positions=False),
    "slot": dataclasses.replace(
        CONFIG,
        position="rope_1d",
        num_kv_heads=2,
        span_position="slot",
        context="causal",
        norm="rmsnorm",
        activation="swiglu",
    ),
    "mixed": dataclasses.replace(CONFIG, position="rope_1d", span_position="mixed"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    config = MODELS[request.param]
    return config, glm.init_params(config, jax.random.key(0))


def tokens(rng, length: int) -> np.ndarray:
    return rng.integers(16, VOCAB, length).astype(np.int32)


def make_request(
    rng, context: int, answers: list[int], given: int = 0, mask_id: int = SPECIAL.mask
) -> Request:
    part_a = tokens(rng, context)
    part_a[0], mask = SPECIAL.cls, int(rng.integers(1, context))
    part_a[mask] = mask_id
    return Request(part_a, mask, [tokens(rng, length) for length in answers], given)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        make_request(rng, 10, [5]),
        make_request(rng, 40, [3, 7, 1]),
        make_request(rng, 12, [1, 1, 1, 1, 1]),
        make_request(rng, 2, [60], given=57),
        make_request(rng, 35, [8, 2]),
        make_request(rng, 33, [20]),
        make_request(rng, 17, [1, 1, 1, 1, 1, 1]),
        make_request(rng, 45, [5, 4], given=2),
        make_request(rng, 50, [6], given=3),
        *(make_request(rng, 41, [3, n], mask_id=SPECIAL.gmask) for n in (7, 5)),
        make_request(rng, 11, [6], mask_id=SPECIAL.gmask),
    ]


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(*model, SPECIAL, ONE_DEVICE, batch_size=4)


forward = jax.jit(glm.apply_logits, static_argnums=0)


def slow_scores(config, params, request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
    results, context = [], len(request.context)
    for answer in request.answers:
        causal, positions = config.context == "causal", config.span_position
        is_document = request.context[request.mask] == SPECIAL.gmask
        in_slots = positions == "slot" or (positions == "mixed" and is_document)
        rows = [
            [token, i, 0, i + 1 if causal else context] for i, token in enumerate(request.context)
        ]
        for i, token in enumerate([SPECIAL.sop, *answer[:-1]]):
            position = context + i if in_slots else request.mask
            block_position = i + 1 if config.block_positions else 1
            rows.append([token, position, block_position, context + i + 1])
        padding = [[0, 0, 0, 0]] * (LENGTH - len(rows))
        columns = np.array(rows + padding, np.int32).T[:, None]
        logits = forward(config, params, *columns[:3], np.zeros_like(columns[0]), columns[3])
        logits = np.asarray(logits, np.float64)[0, context : len(rows)]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        hits = logits.argmax(-1) == answer
        picked = log_probs[np.arange(len(answer)), answer]
        results.append((picked[request.given :], hits[request.given :]))
    return results


def check(scored, expected):
    for answers, slow in zip(scored, expected, strict=True):
        for answer, (log_probs, is_argmax) in zip(answers, slow, strict=True):
            np.testing.assert_allclose(answer.log_probs, log_probs, atol=1e-5, rtol=1e-5)
            np.testing.assert_array_equal(answer.is_argmax, is_argmax)


@pytest.fixture(scope="module")
def expected(model, requests):
    return [slow_scores(*model, request) for request in requests]


def test_scores_are_the_slow_ones(scorer, requests, expected):
    check(scorer.score(requests), expected)
    assert sum(hits.any() for answers in expected for _, hits in answers) > 0


def test_cached_answers_are_those_of_rows_of_their_own(scorer, requests):
    for request, answers in zip(requests, scorer.score(requests), strict=True):
        alone = scorer.score([request._replace(answers=[a]) for a in request.answers])
        check([answers], [[tuple(score) for (score,) in alone]])


def test_order_neighbours_and_batch_size_change_nothing(model, scorer, requests, expected):
    check(scorer.score(requests[::-1]), expected[::-1])
    check(scorer.score(requests[:1]), expected[:1])
    check(Scorer(*model, SPECIAL, ONE_DEVICE, batch_size=1).score(requests), expected)


def test_longer_neighbours_change_nothing(scorer, requests, expected):
    rng = np.random.default_rng(1)
    longer = make_request(rng, 40, [3, 30])  # the answers of its whole batch are padded to it
    scores = scorer.score(
        [longer, requests[1]._replace(answers=[*requests[1].answers, longer[2][1]])]
    )
    check([scores[1][:3]], expected[1:2])


@pytest.mark.multidevice
@pytest.mark.parametrize("mesh", [(2, 1, 2, 1), (1, 2, 1, 2)])
def test_a_mesh_gives_the_scores_of_one_device(model, requests, expected, mesh):
    config, params = model
    scorer = Scorer(config, jax.device_get(params), SPECIAL, devices(*mesh), batch_size=3)
    check(scorer.score(requests), expected)


def test_an_answer_is_the_argmax_where_every_logit_says_so(scorer):
    rng = np.random.default_rng(2)
    request = make_request(rng, 12, [1])
    answer = np.zeros(0, np.int32)
    for _ in range(3):  # first as choices, then as cached answers
        longer = [np.append(answer, np.int32(token)) for token in range(VOCAB)]
        (scores,) = scorer.score([request._replace(answers=longer)])
        last = [score.log_probs[-1] for score in scores]
        (best,) = [n for n, score in enumerate(scores) if score.is_argmax.all()]
        assert best == np.argmax(last)
        assert np.exp(last).sum() == pytest.approx(1, rel=1e-5)
        answer = longer[best]


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_a_token(requests):
    params = jax.tree.map(np.zeros_like, glm.init_params(CONFIG, jax.random.key(0)))
    for answers in Scorer(CONFIG, params, SPECIAL, ONE_DEVICE).score(requests):
        for score in answers:
            np.testing.assert_allclose(score.log_probs / np.log(2), -6.0, rtol=1e-6)


def test_shapes_are_compiled_once(scorer, requests):
    scorer.score(requests)
    before = scorer._score_rows._cache_size()
    rng = np.random.default_rng(4)
    scorer.score([make_request(rng, context, [9]) for context in range(2, 50)])
    assert scorer._score_rows._cache_size() <= before + 1  # rows of 48, beside 32 and 64


def test_what_the_position_table_cannot_number_is_refused():
    rng = np.random.default_rng(3)
    params = glm.init_params(CONFIG, jax.random.key(0))
    scorer = Scorer(CONFIG, params, SPECIAL, ONE_DEVICE)
    with pytest.raises(UserError, match=r"answer has 97 tokens.*model.max_positions 96"):
        scorer.score([make_request(rng, 5, [97])])
    with pytest.raises(UserError, match=r"context has 97 tokens"):
        scorer.score([make_request(rng, 97, [2, 3])])
    check_fits(CONFIG, make_request(rng, 96, [96]))
    check_fits(dataclasses.replace(CONFIG, position="rope_2d"), make_request(rng, 97, [97]))
    in_slots = dataclasses.replace(CONFIG, span_position="slot")
    check_fits(in_slots, make_request(rng, 90, [6]))
    with pytest.raises(UserError, match=r"context with its answer has 97 tokens"):
        check_fits(in_slots, make_request(rng, 90, [2, 7]))


def test_no_requests():
    params = glm.init_params(CONFIG, jax.random.key(0))
    assert Scorer(CONFIG, params, SPECIAL, ONE_DEVICE).score([]) == []


def test_few_shapes_and_little_padding():
    sizes = {_bucket(length, 32) for length in range(1, 2049)}
    assert sorted(sizes) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert all(_bucket(length, 8) < 1.5 * length for length in range(8, 2049))
