"""Choosing a token against plain definitions of the distributions and of the rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_decoding
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.errors import UserError
from glm_jax.model.attention import KVCache
from glm_jax.model.coordinates import Blank
from glm_jax.model.sampling import (
    DecodingOptions,
    Rules,
    choose,
    keep_top_k,
    keep_top_p,
    repeated,
    sample,
)
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
ENDS = {SPECIAL.eop, SPECIAL.eos}
VOCAB = 14
FORBIDDEN = np.isin(np.arange(VOCAB), [0, 1, 3, 4, 5, 6, 7])  # five tokens and two ends are left


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens must be at least 1, got 0"),
        ({"min_new_tokens": -1}, "--min_new_tokens must be at least 0, got -1"),
        ({"min_new_tokens": 65}, "--min_new_tokens 65 is more than --max_new_tokens 64"),
        ({"temperature": -0.1}, "--temperature must be finite and not below 0, got -0.1"),
        ({"temperature": float("nan")}, "--temperature must be finite and not below 0, got nan"),
        ({"top_k": -1}, "--top_k must be at least 0, got -1"),
        ({"top_p": 0.0}, "--top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.01}, "--top_p must be above 0 and at most 1, got 1.01"),
        ({"no_repeat_ngram": -1}, "--no_repeat_ngram must be at least 0, got -1"),
        ({"num_beams": 0}, "--num_beams must be at least 1, got 0"),
        ({"length_penalty": float("inf")}, "--length_penalty must be finite, got inf"),
        ({"seed": 2**32}, f"--seed must be at least 0 and below 2^32, got {2**32}"),
        (
            {"num_beams": 2, "temperature": 0.5},
            "--num_beams 2 draws nothing: --temperature must be 0, got 0.5",
        ),
    ],
)
def test_mistakes_name_the_flag_and_the_value(values, message):
    with pytest.raises(UserError) as error:
        DecodingOptions(**values)
    assert str(error.value) == message


def probabilities(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The distribution by its definition, token by token."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = sorted(range(len(logits)), key=lambda t: -weights[t])
    kept = order[: top_k or len(order)]
    total, nucleus = 0.0, []
    for token in kept:
        if total < top_p:
            nucleus.append(token)
        total += weights[token] / weights[kept].sum()
    weights[[t for t in order if t not in nucleus]] = 0
    return weights / weights.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(0, 20),
    p=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0]),
)
def test_top_k_and_top_p_are_their_definitions(seed, k, p):
    logits = 2 * np.random.default_rng(seed).standard_normal(16).astype(np.float32)
    kept = keep_top_p(keep_top_k(jnp.asarray(logits), k), p)
    expected = probabilities(logits, 1.0, k, p)
    np.testing.assert_allclose(jax.nn.softmax(kept), expected, rtol=1e-4, atol=1e-7)


def test_ties_stay_together():
    logits = jnp.array([1.0, 3.0, 3.0, 0.0])
    np.testing.assert_array_equal(keep_top_k(logits, 1), [-jnp.inf, 3, 3, -jnp.inf])
    np.testing.assert_array_equal(keep_top_p(logits, 0.1), [-jnp.inf, 3, 3, -jnp.inf])
    flat = jnp.zeros(7)
    np.testing.assert_array_equal(keep_top_p(keep_top_k(flat, 3), 0.5), flat)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7), (0.8, 4, 0.8)],
)
def test_draws_follow_the_masked_softmax(temperature, top_k, top_p):
    options = DecodingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    draws = 20000
    logits = np.array([0.3, 1.1, -0.4, 2.0, 0.0, 5.0, 1.4, -3.0], np.float32)
    allowed = np.arange(8) != 5
    expected = np.zeros(8)
    expected[allowed] = probabilities(logits[allowed], temperature, top_k, top_p)
    tokens = choose(
        options,
        jnp.broadcast_to(logits, (draws, 8)),
        jnp.broadcast_to(allowed, (draws, 8)),
        jax.random.split(jax.random.key(3), draws),
    )
    counts = np.bincount(tokens, minlength=8)
    assert not counts[expected == 0].any()
    inside = expected > 0
    chi_square = (((counts - draws * expected) ** 2)[inside] / (draws * expected)[inside]).sum()
    freedom = inside.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_temperature_0_is_greedy_and_its_limit(temperature):
    logits = jax.random.normal(jax.random.key(0), (50, VOCAB)) * 10
    allowed = jax.random.bernoulli(jax.random.key(1), 0.5, (50, VOCAB)).at[:, 8].set(True)
    options = DecodingOptions(temperature=temperature, top_k=5, top_p=0.9)
    tokens = choose(options, logits, allowed, jax.random.split(jax.random.key(2), 50))
    expected = np.where(allowed, logits, -np.inf).argmax(-1)
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [3, 10])
def test_repeated_ngrams_are_those_of_a_set(n, slots):
    find = jax.jit(lambda answer, length: repeated(answer, length, n, VOCAB))
    rng = np.random.default_rng(0)
    for length in list(range(slots)) * 10:
        rows = rng.integers(8, 12, (5, slots))  # few tokens: many repetitions
        for row, found in zip(rows.tolist(), find(rows, length), strict=True):
            answer = row[:length]
            seen = {tuple(answer[i : i + n]) for i in range(length - n + 1)}
            expected = [(*answer[length - n + 1 :], t) in seen for t in range(VOCAB)]
            np.testing.assert_array_equal(found, expected)


def draw(options: DecodingOptions, logits, num: int = 64):
    """Answers from a model that always has the same logits [V]; its cache is empty."""

    def read(cache, tokens, blank, first):
        return jnp.broadcast_to(logits, (*tokens.shape, len(logits))), cache

    cache = KVCache(jnp.zeros(()), jnp.zeros(()), jnp.zeros(num, jnp.int32))
    keys = jax.random.split(jax.random.key(options.seed), num)
    rules = Rules(options, SPECIAL, jnp.asarray(FORBIDDEN))
    blank = Blank(jnp.ones(num, jnp.int32), jnp.zeros(num, bool))
    cache, answer = sample(read, rules, cache, blank, keys)
    return answer, cache.length


def tokens_of(answer) -> list[list[int]]:
    rows = zip(*map(np.asarray, answer[:2]), strict=True)
    return [tokens[:length].tolist() for tokens, length in rows]


@pytest.mark.parametrize(
    ("n", "least", "temperature"), [(1, 0, 3.0), (1, 8, 3.0), (2, 5, 0.0), (2, 8, 0.7), (3, 3, 0.5)]
)
def test_answers_keep_the_rules(n, least, temperature):
    options = DecodingOptions(
        max_new_tokens=8, min_new_tokens=least, temperature=temperature, no_repeat_ngram=n
    )
    decode = jax.jit(lambda logits: draw(options, logits))
    for seed in range(10):
        answer, slots = decode(2 * np.random.default_rng(seed).standard_normal(VOCAB))
        assert answer.finite.all()
        np.testing.assert_array_equal(slots, np.minimum(answer.length + 1, 8))
        for tokens in tokens_of(answer):
            ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            assert len(set(ngrams)) == len(ngrams)
            assert not np.isin(tokens, [*np.flatnonzero(FORBIDDEN), *ENDS]).any()
            left = set(slow_decoding.allowed(tokens, options, ENDS, FORBIDDEN)) - ENDS
            assert len(tokens) >= least or not left


def test_no_token_left_ends_the_answer():
    options = DecodingOptions(max_new_tokens=8, min_new_tokens=8, no_repeat_ngram=1)
    answer, _ = draw(options, jnp.arange(VOCAB, dtype=jnp.float32))
    assert tokens_of(answer) == [[13, 12, 11, 10, 9]] * 64  # eop is 8, eos 2


def test_logits_that_are_not_finite_end_and_are_told():
    for bad in (jnp.nan, jnp.inf):
        for temperature in (0.0, 1.0):
            options = DecodingOptions(max_new_tokens=8, temperature=temperature)
            answer, _ = draw(options, jnp.zeros(VOCAB).at[9].set(bad))
            assert not answer.length.any()
            assert not answer.finite.any()


def test_options_are_frozen_and_compare_by_value():
    assert hash(DecodingOptions(top_k=3)) == hash(DecodingOptions(top_k=3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodingOptions().top_k = 3
