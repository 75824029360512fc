"""Log-probabilities of answers to a blank, given its context.

A context is Part A, an answer is Part B (GLM 2021): the answer's inputs are `sop s1 .. s(k-1)`, its
targets s1 .. sk, the inputs have the positions of `ModelConfig.span_position` and block positions
1 .. k. A context is read once, however many answers it has:

- one answer: context and answer are one row, as in training;
- several answers of one token each: one sop after the context, read at all of their ids;
- several longer answers: the context's keys and values are cached, and each answer is read after
  it. Two integers a token cannot say that answers share a context within a row.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.model import coordinates, glm
from glm_jax.model.attention import KVCache
from glm_jax.model.coordinates import Blank, Coordinates
from glm_jax.ops.cross_entropy import target_cross_entropy
from glm_jax.parallel.sharding import Sharding, active_mesh, constrain
from glm_jax.tokenizer import SpecialTokens


class Request(NamedTuple):
    """A context and the answers to score in its blank.

    Attributes:
      context: int32 [a], Part A with its mask token and whatever control symbols belong in it.
      mask: index in `context` of the mask token that the answers stand for.
      answers: int32 [k] each, what Part B predicts. An `eop` at the end is scored like any other
        token, where the caller puts one.
      given: number of leading tokens of each answer that are read but not scored.
    """

    context: np.ndarray
    mask: int
    answers: Sequence[np.ndarray]
    given: int = 0


class Scores(NamedTuple):
    """Of the scored tokens of one answer, k - given of them.

    Attributes:
      log_probs: float32 [k - given], in nats. The normaliser runs over all embedding rows.
      is_argmax: bool [k - given], the token is the (first) most probable one.
    """

    log_probs: np.ndarray
    is_argmax: np.ndarray


Track = Callable[[Sequence], Iterable]
"""Iterates over the batches of a call, and may show how far it is."""


class Scorer:
    """Scores requests in batches of one of few padded shapes, over a mesh.

    Rows are split over the mesh axes data x fsdp, parameters lie as the mesh rules say.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        special: SpecialTokens,
        sharding: Sharding,
        *,
        batch_size: int = 16,
        track: Track = iter,
    ):
        """Places the parameters.

        Args:
          params: nested dict of arrays with our names, on the host or on the mesh.
          batch_size: contexts computed together, rounded up to whole rows a device.
          track: see `Track`.
        """
        self.config = config
        self.special = special
        self._params = jax.device_put(params, sharding.tree(*glm.abstract_params(config)))
        self._sharding = sharding
        self._rows = -(-batch_size // sharding.batch_size) * sharding.batch_size
        self._track = track

        everywhere = sharding.replicated
        self._score_rows = jax.jit(functools.partial(_score_rows, config), out_shardings=everywhere)
        self._score_choices = jax.jit(
            functools.partial(_score_choices, config), out_shardings=everywhere
        )
        self._read_contexts = jax.jit(
            functools.partial(_read_contexts, config), static_argnames="slots"
        )
        self._score_cached = jax.jit(
            functools.partial(_score_cached, config), out_shardings=everywhere
        )

    def score(self, requests: Sequence[Request]) -> list[list[Scores]]:
        """The scores of every answer of every request, in their order.

        Raises:
          UserError: a request that is longer than the position table.
        """
        for request in requests:
            check_fits(self.config, request)
        results = [[] for _ in requests]
        running = collections.deque()  # a batch is read when the next one has been dispatched

        def read_one() -> None:
            kind, indices, outputs = running.popleft()
            outputs = jax.device_get(outputs)
            for row, index in enumerate(indices):
                results[index] = _read(kind, requests[index], row, outputs)

        with self._sharding.activate():
            for shape, indices in self._track(self._batches(requests)):
                outputs = self._dispatch(shape, [requests[i] for i in indices])
                running.append((shape.kind, indices, outputs))
                if len(running) > 1:
                    read_one()
            while running:
                read_one()
        return results

    def _batches(self, requests: Sequence[Request]) -> list[tuple["_Shape", list[int]]]:
        """Indices of requests that are computed together; the longest first, to fail early."""
        alike = collections.defaultdict(list)
        for index, request in enumerate(requests):
            alike[_shape(request)].append(index)
        return [
            (shape, alike[shape][start : start + self._rows])
            for shape in sorted(alike, reverse=True)
            for start in range(0, len(alike[shape]), self._rows)
        ]

    def _dispatch(self, shape: "_Shape", requests: list[Request]) -> list:
        """Starts the computation of a batch: a pair (log-probabilities, argmax) an answer row."""
        if shape.kind == "row":
            return [self._dispatch_rows(shape, requests)]
        if shape.kind == "choices":
            return [self._dispatch_choices(shape, requests)]
        return self._dispatch_cached(shape, requests)

    def _dispatch_rows(self, shape, requests):
        inputs = [np.append(r.context, self._inputs(r.answers[0])) for r in requests]
        targets = [np.append(np.zeros_like(r.context), r.answers[0]) for r in requests]
        given = [r.given for r in requests]
        return self._score_rows(
            self._params,
            self._pad(inputs, shape.length),
            self._pad(targets, shape.length),
            self._lengths(requests),
            self._blanks(requests),
            self._column(map(len, inputs)),
            self._column(given),
        )

    def _dispatch_choices(self, shape, requests):
        inputs = [np.append(r.context, self.special.sop) for r in requests]
        ids = [np.concatenate(r.answers) for r in requests]
        return self._score_choices(
            self._params,
            self._pad(inputs, shape.length),
            self._lengths(requests),
            self._blanks(requests),
            self._pad(ids, shape.answers),
        )

    def _dispatch_cached(self, shape, requests):
        contexts = self._pad([r.context for r in requests], shape.length)
        slots = shape.length + shape.answers
        cache = self._read_contexts(self._params, contexts, self._lengths(requests), slots=slots)
        blanks = self._blanks(requests)
        outputs = []
        for n in range(max(len(r.answers) for r in requests)):
            answers = [r.answers[n] if n < len(r.answers) else _NOTHING for r in requests]
            outputs.append(
                self._score_cached(
                    self._params,
                    cache,
                    self._pad([self._inputs(answer) for answer in answers], shape.answers),
                    self._pad(answers, shape.answers),
                    blanks,
                    self._column(map(len, answers)),
                )
            )
        return outputs

    def _inputs(self, answer: np.ndarray) -> np.ndarray:
        return np.append(np.int32(self.special.sop), answer[:-1])[: len(answer)]

    def _lengths(self, requests: list[Request]) -> jax.Array:
        return self._column(len(r.context) for r in requests)

    def _blanks(self, requests: list[Request]) -> Blank:
        is_document = [bool(r.context[r.mask] == self.special.gmask) for r in requests]
        return Blank(
            self._column(r.mask for r in requests),
            self._column(map(self.config.answers_in_slots, is_document), bool),
        )

    def _pad(self, sequences: Sequence[np.ndarray], length: int) -> jax.Array:
        """int32 [rows, length] on the mesh, 0 beyond a sequence and in rows without one."""
        padded = np.zeros((self._rows, length), np.int32)
        for row, sequence in enumerate(sequences):
            padded[row, : len(sequence)] = sequence
        return self._place(padded)

    def _column(self, values: Iterable[int], dtype: type = np.int32) -> jax.Array:
        """[rows] on the mesh, 0 in rows without a value."""
        values = np.fromiter(values, dtype)
        return self._place(np.pad(values, (0, self._rows - len(values))))

    def _place(self, array: np.ndarray) -> jax.Array:
        """Lays an array that every process holds as a whole out by rows."""
        return jax.make_array_from_callback(array.shape, self._sharding.rows, array.__getitem__)


def check_fits(config: ModelConfig, request: Request) -> None:
    """Refuses what the position table cannot number.

    Raises:
      UserError: the context or an answer has more tokens than a learned table has positions.
    """
    lengths = {"context": len(request.context), "answer": max(map(len, request.answers))}
    if config.answers_in_slots(True):
        lengths = {"context with its answer": sum(lengths.values())}
    part = max(lengths, key=lengths.get)
    if config.position == "learned_2d" and lengths[part] > config.max_positions:
        raise UserError(
            f"the {part} has {lengths[part]} tokens, more than the position table holds "
            f"(model.max_positions {config.max_positions})"
        )


class _Shape(NamedTuple):
    """How a request is computed and its padded sizes; each is one compiled program."""

    length: int
    answers: int  # choices: number of ids; cached: slots of an answer
    kind: str  # row | choices | cached


_NOTHING = np.zeros(0, np.int32)


def _shape(request: Request) -> _Shape:
    context, longest = len(request.context), max(map(len, request.answers))
    if len(request.answers) == 1:
        return _Shape(_bucket(context + longest, 32), 0, "row")
    if all(len(answer) == 1 for answer in request.answers):
        return _Shape(_bucket(context + 1, 32), _bucket(len(request.answers), 4), "choices")
    return _Shape(_bucket(context, 32), _bucket(longest, 8), "cached")


def _bucket(length: int, smallest: int) -> int:
    """The first of s, 3/2 s, 2 s, 3 s, 4 s, .. that holds `length`: at most a third is padding."""
    size = smallest
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _read(kind: str, request: Request, row: int, outputs: list) -> list[Scores]:
    """Cuts the answers of a request out of its batch's arrays."""
    if kind == "row":
        start = len(request.context)
        places = [(0, start + request.given, start + len(request.answers[0]))]
    elif kind == "choices":
        places = [(0, n, n + 1) for n in range(len(request.answers))]
    else:
        places = [(n, request.given, len(answer)) for n, answer in enumerate(request.answers)]
    return [Scores(*(x[row, start:end].copy() for x in outputs[n])) for n, start, end in places]


def _score_rows(config, params, tokens, targets, context_length, blank, length, given):
    """Log-probabilities float32 and argmax flags bool [B, T], at the scored slots of rows.

    Args:
      tokens: int32 [B, T], contexts with their answers' inputs.
      targets: int32 [B, T], the answers where they are predicted.
      context_length, length, given: int32 [B]; length is that of context and answer.
    """
    slot = jnp.arange(tokens.shape[1])[None]
    where = _coordinates(config, slot, context_length, blank, length)
    hidden = glm.apply_hidden(config, params, tokens, *where)
    scored = ((context_length + given)[:, None] <= slot) & (slot < length[:, None])
    kernel = glm.output_kernel(config, params)
    _, stats = target_cross_entropy(
        hidden, kernel, targets, scored.astype(jnp.float32), mesh=active_mesh()
    )
    return -stats.nll, stats.correct


def _score_choices(config, params, tokens, context_length, blank, ids):
    """Log-probabilities and argmax flags [B, C] of ids int32 [B, C] at the sop of each row."""
    slot = jnp.arange(tokens.shape[1])[None]
    where = _coordinates(config, slot, context_length, blank, context_length + 1)
    hidden = glm.apply_hidden(config, params, tokens, *where)
    at_sop = jnp.take_along_axis(hidden, context_length[:, None, None], axis=1)
    kernel = glm.output_kernel(config, params).astype(hidden.dtype)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.dot(at_sop[:, 0], kernel, preferred_element_type=wide)
    return _at(logits, ids)


def _read_contexts(config, params, tokens, context_length, *, slots) -> KVCache:
    """Keys and values of contexts int32 [B, A], with room for `slots` tokens."""
    cache = glm.empty_cache(config, tokens.shape[0], slots)
    slot = jnp.arange(tokens.shape[1])[None]
    where = coordinates.of_context(config, slot, context_length)
    _, cache = glm.apply_cached(config, params, cache, tokens, *where)
    key, value = (
        constrain(x, "layers", "batch", "sequence", "kv_heads", "head_dim")
        for x in (cache.key, cache.value)
    )
    return KVCache(key, value, context_length)


def _score_cached(config, params, cache, tokens, targets, blank, length):
    """Log-probabilities and argmax flags [B, K] of answers that follow cached contexts."""
    slot = cache.length[:, None] + jnp.arange(tokens.shape[1])
    where = _coordinates(config, slot, cache.length, blank, cache.length + length)
    logits, _ = glm.apply_cached(config, params, cache, tokens, *where)
    log_probs, is_argmax = _at(logits, targets[..., None])
    return log_probs[..., 0], is_argmax[..., 0]


def _coordinates(config, slot, context_length, blank, length) -> Coordinates:
    """Of slots [1 or B, T] of contexts that an answer follows; zeros from `length` on."""
    context = coordinates.of_context(config, slot, context_length)
    answer = coordinates.of_answer(config, slot, context_length, blank)
    in_answer = (context_length[:, None] <= slot) & (slot < length[:, None])
    return Coordinates(*map(functools.partial(jnp.where, in_answer), answer, context))


def _at(logits, ids):
    """Log-probabilities and argmax flags of ids [.., C] under logits [.., V]."""
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1)
    return log_probs, ids == jnp.argmax(logits, axis=-1)[..., None]
