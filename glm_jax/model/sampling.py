"""One token after another: which may follow, temperature, top-k, top-p, the draw."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.errors import UserError
from glm_jax.model.attention import KVCache
from glm_jax.model.coordinates import Blank
from glm_jax.tokenizer import SpecialTokens, Tokenizer

Read = Callable[[KVCache, jax.Array, Blank, jax.Array], tuple[jax.Array, KVCache]]
"""Reads T slots of an answer: (cache, tokens int32 [R, T], the blanks of R rows, index int32 [] of
the first of the slots in the answer) to (logits [R, T, V], the cache with the slots). The answer
begins at `cache.length`, which stays."""


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """How an answer is chosen; a mistake is a `UserError` that names the flag of `fill`.

    Greedy by default. `temperature` > 0 draws tokens; `num_beams` > 1 searches (`beam_search`).
    """

    max_new_tokens: int = 64  # of an answer, the end of the answer not counted
    min_new_tokens: int = 0  # the answer cannot end before
    temperature: float = 0.0  # logits are divided by it; 0 is the limit: the most probable token
    top_k: int = 0  # draw from the k most probable tokens; 0: from all
    top_p: float = 1.0  # draw from the fewest tokens whose probabilities sum to top_p
    no_repeat_ngram: int = 0  # no n tokens in a row occur twice in an answer; 0: they may
    num_beams: int = 1
    length_penalty: float = 1.0  # of `beam_search.penalised`; larger favours longer answers
    seed: int = 0

    def __post_init__(self):
        for name, least in (
            ("max_new_tokens", 1),
            ("min_new_tokens", 0),
            ("top_k", 0),
            ("no_repeat_ngram", 0),
            ("num_beams", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"--min_new_tokens {self.min_new_tokens} is more than "
                f"--max_new_tokens {self.max_new_tokens}"
            )
        if not (0 <= self.temperature < math.inf):
            raise UserError(f"--temperature must be finite and not below 0, got {self.temperature}")
        if not (0 < self.top_p <= 1):
            raise UserError(f"--top_p must be above 0 and at most 1, got {self.top_p}")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"--length_penalty must be finite, got {self.length_penalty}")
        if not (0 <= self.seed < 2**32):
            raise UserError(f"--seed must be at least 0 and below 2^32, got {self.seed}")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError(
                f"--num_beams {self.num_beams} draws nothing: --temperature must be 0, "
                f"got {self.temperature}"
            )


class Rules(NamedTuple):
    """Which tokens may follow an answer and which end it."""

    options: DecodingOptions
    special: SpecialTokens
    forbidden: jax.Array  # bool [V], ids that are never generated

    def allowed(self, answer: jax.Array, length: jax.Array) -> jax.Array:
        """Which tokens may follow: bool [R, V], at least one in each row.

        Not the forbidden ones, no end before `min_new_tokens`, and nothing that completes an n-gram
        of the same answer once more. Where that leaves nothing, the answer ends.

        Args:
          answer: int32 [R, M], the answers so far.
          length: int32 [], how many tokens each of them has.
        """
        vocab_size = self.forbidden.shape[0]
        ends = self.is_end(jnp.arange(vocab_size))
        allowed = ~self.forbidden & ~(ends & (length < self.options.min_new_tokens))
        allowed = jnp.broadcast_to(allowed, (answer.shape[0], vocab_size))
        if self.options.no_repeat_ngram:
            allowed &= ~repeated(answer, length, self.options.no_repeat_ngram, vocab_size)
        return allowed | (ends & ~allowed.any(-1, keepdims=True))

    def is_end(self, token: jax.Array) -> jax.Array:
        """Whether a token ends an answer: eop or eos (GLM's `generate_samples.py`)."""
        return (token == self.special.eop) | (token == self.special.eos)


def forbidden_ids(vocab_size: int, tokenizer: Tokenizer) -> jax.Array:
    """Rows that only pad the embedding table, and control symbols that end nothing: bool [V]."""
    special = tokenizer.special
    forbidden = np.arange(vocab_size) >= tokenizer.vocab_size
    forbidden[tokenizer.control_ids] = True
    forbidden[[special.eop, special.eos]] = False
    return jnp.asarray(forbidden)


class Answer(NamedTuple):
    """Answers of B texts to a blank, without what ended them."""

    tokens: jax.Array  # int32 [B, M]
    length: jax.Array  # int32 [B], how many of the tokens count
    finite: jax.Array  # bool [B], False where a logit was not a finite number: the model is broken


class _State(NamedTuple):
    step: jax.Array  # int32 [], tokens of every answer that is not done
    cache: KVCache
    token: jax.Array  # int32 [B], the last of each answer
    answer: Answer
    active: jax.Array  # bool [B]


def sample(
    read: Read, rules: Rules, cache: KVCache, blank: Blank, keys: jax.Array
) -> tuple[KVCache, Answer]:
    """Draws the answers of B texts to a blank, or chooses them greedily at temperature 0.

    Args:
      cache: B rows with room for max_new_tokens slots.
      blank: of each text.
      keys: [B] random keys of the answers.

    Returns:
      The cache with the answers, and the answers.
    """
    batch, slots = blank.position.shape[0], rules.options.max_new_tokens

    def one_token(state: _State) -> _State:
        step, active, answer = state.step, state.active, state.answer
        logits, cache = read(state.cache, state.token[:, None], blank, step)
        allowed = rules.allowed(answer.tokens, step)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        token = choose(rules.options, logits[:, 0], allowed, step_keys)
        finite = jnp.isfinite(logits[:, 0]).all(-1) | ~active
        active &= finite & ~rules.is_end(token)
        tokens, length = answer.tokens.at[:, step].set(token), answer.length + active
        return _State(
            step + 1, cache, token, Answer(tokens, length, answer.finite & finite), active
        )

    start = _State(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        token=jnp.full(batch, rules.special.sop, jnp.int32),
        answer=Answer(
            jnp.zeros((batch, slots), jnp.int32),
            jnp.zeros(batch, jnp.int32),
            jnp.ones(batch, bool),
        ),
        active=blank.position >= 0,
    )
    end = jax.lax.while_loop(
        lambda state: state.active.any() & (state.step < slots), one_token, start
    )
    return extended(end.cache, blank, end.answer), end.answer


def extended(cache: KVCache, blank: Blank, answer: Answer) -> KVCache:
    """The cache, into which the answer has been read, counts its slots.

    They are sop and the tokens but the last of max_new_tokens, which nothing reads (GLM 2021,
    `generate_samples.py`); none where a text has no such blank.
    """
    slots = jnp.minimum(answer.length + 1, answer.tokens.shape[1])
    return cache._replace(length=cache.length + jnp.where(blank.position >= 0, slots, 0))


def choose(
    options: DecodingOptions, logits: jax.Array, allowed: jax.Array, keys: jax.Array
) -> jax.Array:
    """The next token of each row: int32 [R].

    Temperature, then top-k, then top-p (the order of GLM's `generate_samples.py`), then a draw with
    the row's own key; the most probable allowed token at temperature 0.

    Args:
      logits: [R, V], float.
      allowed: bool [R, V], at least one in each row.
      keys: [R] random keys; not read at temperature 0.
    """
    logits = jnp.where(allowed, logits, -jnp.inf)
    if options.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    # The largest is 0, so that nothing overflows however small the temperature is.
    logits = (logits - logits.max(-1, keepdims=True)) / options.temperature
    logits = keep_top_p(keep_top_k(logits, options.top_k), options.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Logits [..., V] with -inf below the k-th largest; ties with it stay, and k = 0 keeps all."""
    if k == 0:
        return logits
    smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Logits [..., V] with -inf outside the nucleus (Holtzman et al. 2020, equation 2).

    The nucleus is the fewest most probable tokens whose probabilities sum to at least p, and what
    ties with the last of them; p = 1 keeps all.
    """
    if p == 1:
        return logits
    descending = jnp.flip(jnp.sort(logits, -1), -1)
    probability = jax.nn.softmax(descending, -1)
    before = jnp.cumsum(probability, -1) - probability
    # The first token always stays; before it there may be a rounding error instead of 0.
    inside = (before < p).at[..., 0].set(True)
    smallest = jnp.min(descending, -1, keepdims=True, where=inside, initial=jnp.inf)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def repeated(answer: jax.Array, length: jax.Array, n: int, vocab_size: int) -> jax.Array:
    """Tokens that would complete an n-gram which the answer already has: bool [R, V].

    Args:
      answer: int32 [R, M], of which `length` (int32 []) tokens count.
      n: at least 1; with 1 no token may come twice.
    """
    rows, slots = answer.shape
    if n > slots:
        return jnp.zeros((rows, vocab_size), bool)
    last = jax.lax.dynamic_slice_in_dim(answer, length - (n - 1), n - 1, axis=1)
    same = jnp.broadcast_to(jnp.arange(n - 1, slots) < length, (rows, slots - n + 1))
    for i in range(n - 1):
        same &= answer[:, i : i + slots - n + 1] == last[:, i, None]
    completing = jnp.where(same, answer[:, n - 1 :], vocab_size)
    found = jnp.zeros((rows, vocab_size), bool)
    return found.at[jnp.arange(rows)[:, None], completing].set(True, mode="drop")
