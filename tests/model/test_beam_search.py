"""Beam search against lists in Python, on a model whose logits depend on the whole answer."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_decoding

from glm_jax.model import beam_search, sampling
from glm_jax.model.attention import KVCache
from glm_jax.model.coordinates import Blank
from glm_jax.model.sampling import DecodingOptions, Rules
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(pad=0, eos=1, eop=2, sop=3)
ENDS = {SPECIAL.eos, SPECIAL.eop}
VOCAB = 8  # four tokens and two ends
FORBIDDEN = np.isin(np.arange(VOCAB), [SPECIAL.pad, SPECIAL.sop])
ORDINARY = [t for t in range(VOCAB) if not FORBIDDEN[t] and t not in ENDS]
CONTEXT = 3  # slots that the cache holds before the answer
STATES = 997


class Toy(NamedTuple):
    """Logits [V] are a random table's row, chosen by all tokens of the answer and their places.

    It reads them from the key cache, so that a cache that was not reordered gives other answers.
    """

    places: np.ndarray  # [M]
    table: np.ndarray  # [STATES, V]

    @classmethod
    def random(cls, seed: int, longest: int) -> "Toy":
        rng = np.random.default_rng(seed)
        table = 0.7 * rng.standard_normal((STATES, VOCAB))
        return cls(rng.integers(1, STATES, longest), table.astype(np.float32))

    def scorer(self, row: int):
        """The logits of answers of a row, which only its first token tells apart."""

        def score(answer: list[int]) -> np.ndarray:
            tokens = [SPECIAL.sop + row, *answer]
            return self.table[np.dot(tokens, self.places[: len(tokens)]) % STATES]

        return score

    def read(self, cache, tokens, blank, first):
        rows, num = tokens.shape
        slots = cache.length[:, None] + first + jnp.arange(num)
        tokens += jnp.where(tokens == SPECIAL.sop, blank.position[:, None], 0)
        key = cache.key.at[0, jnp.arange(rows)[:, None], slots, 0, 0].set(tokens)
        place = jnp.arange(key.shape[2]) - cache.length[:, None]
        counts = (place >= 0) & (place < first + num)
        places = self.places[jnp.clip(place, 0, len(self.places) - 1)]
        state = jnp.where(counts, key[0, :, :, 0, 0] * places, 0).sum(-1) % STATES
        logits = self.table[state][:, None]
        return jnp.broadcast_to(logits, (rows, num, VOCAB)), cache._replace(key=key)


def empty_cache(rows: int, slots: int) -> KVCache:
    zeros = jnp.zeros((1, rows, CONTEXT + slots, 1, 1), jnp.int32)
    return KVCache(zeros, zeros, jnp.full(rows, CONTEXT))


def blank_at(mask_position: jax.Array) -> Blank:
    return Blank(mask_position, jnp.zeros(len(mask_position), bool))


@functools.partial(jax.jit, static_argnums=0)
def search(options: DecodingOptions, toy: Toy, mask_position: jax.Array):
    """The cache and the answers; the toy's row number is the mask position."""
    rules = Rules(options, SPECIAL, jnp.asarray(FORBIDDEN))
    cache = empty_cache(len(mask_position), options.max_new_tokens)
    return beam_search.search(toy.read, rules, cache, blank_at(mask_position))


@functools.partial(jax.jit, static_argnums=0)
def choose_greedily(options: DecodingOptions, toy: Toy, mask_position: jax.Array):
    rules = Rules(options, SPECIAL, jnp.asarray(FORBIDDEN))
    cache = empty_cache(len(mask_position), options.max_new_tokens)
    keys = jax.random.split(jax.random.key(0), len(mask_position))
    return sampling.sample(toy.read, rules, cache, blank_at(mask_position), keys)


def tokens_of(answer) -> list[list[int]]:
    rows = zip(np.asarray(answer.tokens), np.asarray(answer.length), strict=True)
    return [tokens[:length].tolist() for tokens, length in rows]


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 2},
        {"num_beams": 3, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": 3.0},
        {"num_beams": 5, "length_penalty": -1.0, "min_new_tokens": 2},
        {"num_beams": 3, "no_repeat_ngram": 1, "min_new_tokens": 7},
        {"num_beams": 4, "no_repeat_ngram": 2, "length_penalty": 0.7},
    ],
)
def test_the_rule_written_out(values):
    options = DecodingOptions(max_new_tokens=7, **values)
    lengths = set()
    for seed in range(8):
        toy = Toy.random(seed, 7)
        cache, answer = jax.device_get(search(options, toy, np.arange(4)))
        for row, tokens in enumerate(tokens_of(answer)):
            assert tokens == slow_decoding.beams(toy.scorer(row), options, ENDS, FORBIDDEN)
            read = [SPECIAL.sop + row, *tokens][:7]
            assert cache.length[row] == CONTEXT + len(read)
            assert cache.key[0, row, CONTEXT:, 0, 0][: len(read)].tolist() == read
            lengths.add(len(tokens))
        assert answer.finite.all()
    assert len(lengths) > 1 or "no_repeat_ngram" in values


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5])
def test_as_many_beams_as_answers_find_the_best(length_penalty):
    longest = 3
    options = DecodingOptions(
        max_new_tokens=longest, num_beams=6**longest, length_penalty=length_penalty
    )
    ended = [
        (*tokens, end)
        for length in range(longest)
        for tokens in itertools.product(ORDINARY, repeat=length)
        for end in ENDS
    ]
    answers = [*ended, *itertools.product(ORDINARY, repeat=longest)]
    for seed in range(3):
        toy = Toy.random(seed, longest)
        _, answer = search(options, toy, np.arange(2))
        for row, tokens in enumerate(tokens_of(answer)):
            values = {x: log_probability(toy.scorer(row), x) for x in answers}
            best = max(values, key=lambda x: values[x] / ((5 + len(x)) / 6) ** length_penalty)
            assert tokens == [token for token in best if token not in ENDS]


def log_probability(score, answer: tuple[int, ...]) -> float:
    choices = [
        slow_decoding.log_probabilities(score(list(answer[:i])), [*ORDINARY, *ENDS])
        for i in range(len(answer))
    ]
    return sum(choice[token] for choice, token in zip(choices, answer, strict=True))


def test_one_beam_is_greedy():
    options = DecodingOptions(max_new_tokens=7)
    for seed in range(8):
        toy = Toy.random(seed, 7)
        ours = search(options, toy, np.arange(4))
        theirs = choose_greedily(options, toy, np.arange(4))
        assert tokens_of(ours[1]) == tokens_of(theirs[1])
        np.testing.assert_array_equal(ours[0].length, theirs[0].length)


def test_rows_without_the_blank_keep_their_cache():
    options = DecodingOptions(max_new_tokens=4, num_beams=3)
    cache, answer = search(options, Toy.random(0, 4), np.array([0, -1, 0]))
    assert cache.length[1] == CONTEXT
    assert tokens_of(answer)[0] == tokens_of(answer)[2]
    assert answer.finite.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_end_and_are_told(bad):
    toy = Toy.random(0, 4)
    toy.table[:] = bad
    _, answer = search(DecodingOptions(max_new_tokens=4, num_beams=3), toy, np.arange(3))
    assert not answer.finite.any()
