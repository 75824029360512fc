"""Decoding written out: lists, one answer after another, no cache."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from glm_jax.model import glm
from glm_jax.model.decoding import encode_context
from glm_jax.model.sampling import DecodingOptions, forbidden_ids

SLOTS = 96


def allowed(answer: list[int], options: DecodingOptions, ends: set, forbidden: np.ndarray) -> list:
    n, tokens = options.no_repeat_ngram, set(np.flatnonzero(~forbidden))
    if len(answer) < options.min_new_tokens:
        tokens -= ends
    if n:
        seen = {tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)}
        tokens -= {t for t in tokens if (*answer[len(answer) - n + 1 :], t) in seen}
    return sorted(tokens or ends)


def log_probabilities(scores: np.ndarray, tokens: list[int]) -> dict[int, float]:
    """Of the tokens, renormalised over them."""
    kept = scores[tokens].astype(np.float64)
    kept -= kept.max() + math.log(np.exp(kept - kept.max()).sum())
    return dict(zip(tokens, kept, strict=True))


def greedy(
    score: Callable[[list[int]], np.ndarray], options: DecodingOptions, ends: set, forbidden
) -> list[int]:
    """Args: score: logits [V] after an answer so far."""
    answer = []
    while len(answer) < options.max_new_tokens:
        scores = score(answer)
        token = max(allowed(answer, options, ends, forbidden), key=lambda t: (scores[t], -t))
        if token in ends:
            break
        answer.append(token)
    return answer


def beams(
    score: Callable[[list[int]], np.ndarray], options: DecodingOptions, ends: set, forbidden
) -> list[int]:
    """The rule of `beam_search`, literally."""
    width, longest = options.num_beams, options.max_new_tokens

    def penalised(total, length):
        return total / ((5 + length) / 6) ** options.length_penalty

    live, finished = [(0.0, [])], []
    for step in range(longest):
        candidates = []
        for total, answer in live:
            tokens = allowed(answer, options, ends, forbidden)
            for token, value in log_probabilities(score(answer), tokens).items():
                candidates.append((total + value, answer, token))
        candidates = sorted(candidates, key=lambda c: -c[0])[: 3 * width]
        live = []
        for rank, (total, answer, token) in enumerate(candidates):
            if token not in ends:
                live.append((total, [*answer, token]))
            elif rank < width:
                finished.append((penalised(total, step + 1), answer))
        live = live[:width]
        finished = sorted(finished, key=lambda f: -f[0])[:width]
        full = len(finished) == width
        if not live or (full and finished[-1][0] >= penalised(live[0][0], step + 1)):
            break
    else:
        finished += [(penalised(total, longest), answer) for total, answer in live]
    return max(finished, key=lambda f: f[0])[1]


class Reader:
    """The rows of a text: token, position, block position, end of the keys that it sees."""

    def __init__(self, config, params, tokenizer, text: str):
        self.model, self.special = (config, params), tokenizer.special
        context = encode_context(text, tokenizer)
        self.blanks, length = context.blanks, len(context.tokens)
        causal = config.context == "causal"
        self.rows = [
            [token, i, 0, i + 1 if causal else length]
            for i, token in enumerate(context.tokens.tolist())
        ]

    def with_answer(self, blank: int, answer: list[int]) -> list[list[int]]:
        slots = range(len(self.rows), len(self.rows) + len(answer) + 1)
        is_document = self.rows[blank][0] == self.special.gmask
        kind = self.model[0].span_position
        if kind == "slot" or (kind == "mixed" and is_document):
            position = slots
        else:
            position = [blank] * len(slots)
        columns = zip([self.special.sop, *answer], position, slots, strict=True)
        step = 1 if self.model[0].block_positions else 0
        read = [[token, at, 1 + i * step, slot + 1] for i, (token, at, slot) in enumerate(columns)]
        return [*self.rows, *read]

    def logits(self, blank: int, answer: list[int]) -> np.ndarray:
        """[V], of what follows an answer so far."""
        rows = self.with_answer(blank, answer)
        padding = [[self.special.pad, 0, 0, 0]] * (SLOTS - len(rows))
        columns = np.array(rows + padding, np.int32).T[:, None]
        logits = _forward(*self.model, *columns[:3], np.zeros_like(columns[0]), columns[3])
        return np.array(logits[0, len(rows) - 1])


def fill(config, params, tokenizer, text: str, options: DecodingOptions) -> list[list[int]]:
    """Token ids of the answers to the blanks of a text."""
    reader = Reader(config, params, tokenizer, text)
    ends = {tokenizer.special.eop, tokenizer.special.eos}
    forbidden = np.asarray(forbidden_ids(config.vocab_size, tokenizer))
    choose = greedy if options.num_beams == 1 else beams
    answers = []
    for blank in reader.blanks:
        answer = choose(functools.partial(reader.logits, blank), options, ends, forbidden)
        answers.append(answer)
        reader.rows = reader.with_answer(blank, answer[: options.max_new_tokens - 1])
    return answers


_forward = jax.jit(glm.apply_logits, static_argnums=0)
