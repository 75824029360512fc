"""Beam search for one blank.

The rule is that of GLM 2021 (`generation_utils.py`, `BeamSearchScorer`) with the length penalty of
GLM-130B (`generation/strategies.py`, `BeamSearchStrategy`); the best beams live on, none is drawn:

1. Every live beam is continued by every token. The 3 * num_beams continuations with the largest sum
   of log probabilities are candidates: each beam has two ends, eop and eos, so that at least
   num_beams candidates go on.
2. A candidate that ends and is among the first num_beams is finished; the other ends are dropped.
   The num_beams best finished ones are kept, compared by `penalised`.
3. The num_beams best candidates that go on are the live beams of the next step.
4. A text is done when num_beams are finished and no live beam, at its present length, scores better
   than the worst of them. At max_new_tokens the live beams count as finished.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from glm_jax.model.attention import KVCache
from glm_jax.model.coordinates import Blank
from glm_jax.model.sampling import Answer, Read, Rules, extended


class _Hypotheses(NamedTuple):
    """K answers of each of B texts, the best first; the score of none is -inf."""

    score: jax.Array  # float [B, K]
    tokens: jax.Array  # int32 [B, K, M], without the end
    length: jax.Array  # int32 [B, K]


class _State(NamedTuple):
    step: jax.Array  # int32 [], tokens of every live beam
    cache: KVCache  # B * K rows
    token: jax.Array  # int32 [B, K], the last of each live beam
    live: _Hypotheses  # scores are sums of log probabilities
    finished: _Hypotheses  # scores are penalised
    active: jax.Array  # bool [B]
    finite: jax.Array  # bool [B]


def penalised(score: jax.Array, length: jax.Array | int, length_penalty: float) -> jax.Array:
    """The score by which finished answers are compared: score / ((5 + length) / 6)^length_penalty.

    GLM-130B, `generation/strategies.py`; Wu et al. 2016, equation 14. The length is that of the
    generated tokens, with the end, as in the sum. The published code adds the context's, which
    makes the penalty fade as contexts get longer.

    Args:
      score: sum of log probabilities.
      length: broadcasts against it.
    """
    return score / ((5 + length) / 6) ** length_penalty


def search(read: Read, rules: Rules, cache: KVCache, blank: Blank) -> tuple[KVCache, Answer]:
    """The best answers of B texts to a blank.

    Args:
      cache: B rows with room for max_new_tokens slots.
      blank: of each text.

    Returns:
      The cache with the answers, and the answers.
    """
    max_new_tokens = rules.options.max_new_tokens
    state = jax.lax.while_loop(
        lambda state: state.active.any() & (state.step < max_new_tokens),
        lambda state: _advance(read, rules, blank, state),
        _start(rules, cache, blank),
    )
    score = penalised(state.live.score, max_new_tokens, rules.options.length_penalty)
    unfinished = state.live._replace(score=jnp.where(state.active[:, None], score, -jnp.inf))
    best = _best(1, state.finished, unfinished)
    answer = Answer(best.tokens[:, 0], best.length[:, 0], state.finite)
    return _read_whole(read, rules, cache, blank, answer), answer


def _read_whole(read, rules, cache, blank, answer) -> KVCache:
    """Reads an answer at once: cheaper than to keep the cache of every finished one."""
    sop = jnp.full_like(answer.tokens[:, :1], rules.special.sop)
    tokens = jnp.concatenate([sop, answer.tokens[:, :-1]], axis=1)
    _, cache = read(cache, tokens, blank, jnp.zeros((), jnp.int32))
    return extended(cache, blank, answer)


def _start(rules: Rules, cache: KVCache, blank: Blank) -> _State:
    """One live beam for each text; the others are none, or all would be the same."""
    beams, slots = rules.options.num_beams, rules.options.max_new_tokens
    shape = (blank.position.shape[0], beams)
    none = _Hypotheses(
        jnp.full(shape, -jnp.inf),
        jnp.zeros((*shape, slots), jnp.int32),
        jnp.zeros(shape, jnp.int32),
    )
    return _State(
        step=jnp.zeros((), jnp.int32),
        cache=KVCache(*(jnp.repeat(x, beams, x.ndim > 1) for x in cache)),
        token=jnp.full(shape, rules.special.sop, jnp.int32),
        live=none._replace(score=none.score.at[:, 0].set(0.0)),
        finished=none,
        active=blank.position >= 0,
        finite=jnp.ones(shape[0], bool),
    )


def _advance(read: Read, rules: Rules, blank: Blank, state: _State) -> _State:
    """One more token for every live beam."""
    beams, penalty = rules.options.num_beams, rules.options.length_penalty
    beam_blanks = Blank(*(jnp.repeat(x, beams) for x in blank))
    logits, cache = read(state.cache, state.token.reshape(-1, 1), beam_blanks, state.step)
    logits = logits.reshape(*state.token.shape, -1)
    candidates, parent = _candidates(rules, state, logits)
    token = candidates.tokens[:, :, state.step]
    ends = rules.is_end(token)

    ended = ends & (jnp.arange(ends.shape[1]) < beams) & state.active[:, None]
    score = penalised(candidates.score, state.step + 1, penalty)
    finished = candidates._replace(score=jnp.where(ended, score, -jnp.inf))
    finished = _best(beams, state.finished, finished)

    score, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, candidates.score), beams)
    live = _take(candidates, chosen)._replace(score=score)
    live = live._replace(length=live.length + 1)

    finite = _finite(state, logits)
    best_live = penalised(score[:, 0], state.step + 1, penalty)
    done = finished.score[:, -1] >= best_live  # also without any live beam: -inf >= -inf
    return _State(
        step=state.step + 1,
        cache=_reorder(cache, jnp.take_along_axis(parent, chosen, axis=1)),
        token=jnp.take_along_axis(token, chosen, axis=1),
        live=live,
        finished=finished,
        active=state.active & finite & ~done,
        finite=state.finite & finite,
    )


def _candidates(rules: Rules, state: _State, logits: jax.Array) -> tuple[_Hypotheses, jax.Array]:
    """The 3 K best continuations of the live beams, and the beam that each continues [B, 3 K]."""
    batch, beams, vocab_size = logits.shape
    allowed = rules.allowed(state.live.tokens.reshape(batch * beams, -1), state.step)
    log_probs = jax.nn.log_softmax(jnp.where(allowed.reshape(logits.shape), logits, -jnp.inf))
    scores = (state.live.score[..., None] + log_probs).reshape(batch, -1)
    score, index = jax.lax.top_k(scores, 3 * beams)
    parent, token = index // vocab_size, index % vocab_size
    continued = _take(state.live, parent)
    tokens = continued.tokens.at[:, :, state.step].set(token.astype(jnp.int32))
    return _Hypotheses(score, tokens, continued.length), parent


def _finite(state: _State, logits: jax.Array) -> jax.Array:
    """bool [B]: whether all logits of the live beams of active texts are finite."""
    read = state.active[:, None] & (state.live.score > -jnp.inf)
    return (jnp.isfinite(logits).all(-1) | ~read).all(-1)


def _best(num: int, *hypotheses: _Hypotheses) -> _Hypotheses:
    """The `num` best of them all, the best first."""
    together = _Hypotheses(*(jnp.concatenate(x, axis=1) for x in zip(*hypotheses, strict=True)))
    return _take(together, jax.lax.top_k(together.score, num)[1])


def _take(hypotheses: _Hypotheses, index: jax.Array) -> _Hypotheses:
    return jax.tree.map(jax.vmap(lambda x, i: x[i]), hypotheses, _Hypotheses(index, index, index))


def _reorder(cache: KVCache, parent: jax.Array) -> KVCache:
    """The cache whose row b * K + k is that of beam parent[b, k]; a text stays on its device."""
    batch, beams = parent.shape

    def gather(x: jax.Array) -> jax.Array:
        grouped = x.reshape(x.shape[0], batch, beams, *x.shape[2:])
        take = jax.vmap(lambda rows, index: rows[:, index], in_axes=(1, 0), out_axes=1)
        return take(grouped, parent).reshape(x.shape)

    return cache._replace(key=gather(cache.key), value=gather(cache.value))
