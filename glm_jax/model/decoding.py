"""Filling blanks: Part A is read once, then the answers one after another, under one jit."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.model import beam_search, coordinates, glm, sampling
from glm_jax.model.attention import KVCache
from glm_jax.model.coordinates import Blank
from glm_jax.model.sampling import DecodingOptions
from glm_jax.parallel.sharding import Sharding, constrain
from glm_jax.tokenizer import BLANK, SpecialTokens, Tokenizer

_LENGTH_MULTIPLE = 32  # contexts are padded to it, so that few shapes are compiled


class Filled(NamedTuple):
    """A text whose blanks are filled: `parts` alternates its own text and the answers."""

    parts: list[str]
    answers: list[str]
    token_ids: list[list[int]]

    @property
    def text(self) -> str:
        return "".join(self.parts)


class Context(NamedTuple):
    """A damaged text as Part A: tokens int32 [n] and where its blanks are."""

    tokens: np.ndarray
    blanks: list[int]


class _Rows(NamedTuple):
    """A batch of contexts, padded on the right."""

    tokens: np.ndarray  # int32 [B, A]
    length: np.ndarray  # int32 [B]
    blanks: Blank  # [B, N], position -1 in rows of fewer blanks
    draws: np.ndarray  # uint32 [B, 2]


class Draw(NamedTuple):
    """Names the random numbers of an answer: the text's index in the whole input, and which sample.

    Both at least 0 and below 2^32.
    """

    text: int
    sample: int = 0


class Filler:
    """Fills blanks with a key-value cache; several blanks of a text from left to right.

    An answer depends on its text, the options and its `Draw`, not on the texts beside it (up to
    rounding: contexts are padded to the longest beside them).
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        tokenizer: Tokenizer,
        sharding: Sharding | None = None,
        batch_size: int = 16,
    ):
        """Moves the parameters to the device, or over the mesh.

        Args:
          params: nested dict of arrays with the names of `glm.abstract_params`.
          sharding: parameters by its rules, texts over data x fsdp, heads over model; None: one
            device.
          batch_size: texts decoded together; rounded up to what the mesh divides.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._sharding = sharding
        self._forbidden = sampling.forbidden_ids(config.vocab_size, tokenizer)
        if sharding is None:
            self._params, self.batch_size = jax.tree.map(jnp.asarray, params), batch_size
        else:
            self._params = jax.device_put(params, sharding.tree(*glm.abstract_params(config)))
            self.batch_size = -(-batch_size // sharding.batch_size) * sharding.batch_size

    def fill(
        self, texts: Sequence[str], options: DecodingOptions, draws: Sequence[Draw] | None = None
    ) -> list[Filled]:
        """Fills every blank of every text; later blanks see the answers to earlier ones.

        Args:
          draws: one for each text; by default its index in `texts`.

        Raises:
          UserError: a text without a blank, or longer than the position table; logits that are not
            finite.
        """
        contexts = [self._read_text(text, options) for text in texts]
        results = self._fill(texts, contexts, options, draws)
        for result in results:
            if isinstance(result, UserError):
                raise result
        return results

    def try_fill(
        self, texts: Sequence[str], options: DecodingOptions, draws: Sequence[Draw] | None = None
    ) -> list[Filled | UserError]:
        """As `fill`, with the error of a text in its place; the others are filled."""
        contexts = [self._try_read(text, options) for text in texts]
        return self._fill(texts, contexts, options, draws)

    def _fill(
        self,
        texts: Sequence[str],
        contexts: Sequence[Context | UserError],
        options: DecodingOptions,
        draws: Sequence[Draw] | None,
    ) -> list[Filled | UserError]:
        """As `try_fill`, of texts that have been read."""
        draws = [Draw(i) for i in range(len(texts))] if draws is None else draws
        results: list = list(contexts)
        good = [i for i, result in enumerate(results) if isinstance(result, Context)]
        for start in range(0, len(good), self.batch_size):
            rows = good[start : start + self.batch_size]
            answers = self._decode([results[i] for i in rows], [draws[i] for i in rows], options)
            for i, ids in zip(rows, answers, strict=True):
                results[i] = self._filled(texts[i], ids)
        return results

    def _try_read(self, text: str, options: DecodingOptions) -> Context | UserError:
        try:
            return self._read_text(text, options)
        except UserError as error:
            return error

    def _read_text(self, text: str, options: DecodingOptions) -> Context:
        context = encode_context(text, self._tokenizer)
        longest = self._longest(context, options)
        if self._config.position == "learned_2d" and longest > self._config.max_positions:
            raise UserError(
                f"{longest} tokens are more than the position table holds "
                f"(model.max_positions {self._config.max_positions})"
            )
        return context

    def _longest(self, context: Context, options: DecodingOptions) -> int:
        """The largest coordinate that an answer may need."""
        length, answers = len(context.tokens), len(context.blanks) * options.max_new_tokens
        if self._in_slots(context).any():
            return length + answers
        return max(length, options.max_new_tokens)

    def _in_slots(self, context: Context) -> np.ndarray:
        """bool [number of blanks]"""
        is_document = context.tokens[context.blanks] == self._tokenizer.special.gmask
        return np.array([self._config.answers_in_slots(bool(x)) for x in is_document])

    def _filled(self, text: str, ids: list[list[int]] | None) -> Filled | UserError:
        if ids is None:
            return UserError(f"the model's logits are not finite for the text {text[:60]!r}")
        answers = [self._tokenizer.decode(span) for span in ids]
        parts = BLANK.split(text)
        parts[1::2] = answers
        return Filled(parts, answers, ids)

    def _decode(
        self, contexts: list[Context], draws: list[Draw], options: DecodingOptions
    ) -> list[list[list[int]] | None]:
        """Token ids of the answers; None for a text whose logits were not finite."""
        rows = self._rows(contexts, draws)
        key = jax.random.key(np.uint32(options.seed))
        options = dataclasses.replace(options, seed=0)  # another seed compiles nothing
        arguments = (self._config, self._tokenizer.special, options, self._params, self._forbidden)
        if self._sharding is None:
            answers = _decode(*arguments, key, rows)
        else:
            with self._sharding.activate():
                answers = _decode(*arguments, key, self._sharding.place_rows(rows))
                answers = self._sharding.fetch(answers)
        tokens, length, finite = jax.device_get(answers)
        return [
            [tokens[n, row, : length[n, row]].tolist() for n in range(len(context.blanks))]
            if finite[:, row].all()
            else None
            for row, context in enumerate(contexts)
        ]

    def _rows(self, contexts: list[Context], draws: list[Draw]) -> _Rows:
        length = max(len(context.tokens) for context in contexts)
        num_blanks = max(len(context.blanks) for context in contexts)
        shape = (self.batch_size, -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
        blanks_shape = (self.batch_size, num_blanks)
        rows = _Rows(
            tokens=np.full(shape, self._tokenizer.special.pad, np.int32),
            length=np.zeros(self.batch_size, np.int32),
            blanks=Blank(np.full(blanks_shape, -1, np.int32), np.zeros(blanks_shape, bool)),
            draws=np.zeros((self.batch_size, 2), np.uint32),
        )
        for row, context in enumerate(contexts):
            rows.tokens[row, : len(context.tokens)] = context.tokens
            rows.length[row] = len(context.tokens)
            rows.blanks.position[row, : len(context.blanks)] = context.blanks
            rows.blanks.in_slots[row, : len(context.blanks)] = self._in_slots(context)
            rows.draws[row] = draws[row]
        return rows


def encode_context(text: str, tokenizer: Tokenizer) -> Context:
    """Part A of a damaged text: [CLS], the text with its mask tokens, and eos.

    A mask token takes the white space on its left with it, as GLM's tokenizers do: an answer brings
    its own. A text that ends in [gMASK] gets no eos: it is to be continued (GLM_2021).

    Raises:
      UserError: the text has no blank.
    """
    special = tokenizer.special
    mask_ids = {"[MASK]": special.mask, "[sMASK]": special.smask, "[gMASK]": special.gmask}
    parts = BLANK.split(text)
    if len(parts) == 1:
        raise UserError(f"no [MASK], [sMASK] or [gMASK] in the text {text[:60]!r}")
    tokens, blanks = [*special.start], []
    for i, part in enumerate(parts):
        if i % 2:
            blanks.append(len(tokens))
            tokens.append(mask_ids[part])
        else:
            tokens.extend(tokenizer.encode(part).tolist())
    if tokens[-1] != special.gmask:
        tokens.append(special.eos)
    return Context(np.array(tokens, np.int32), blanks)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    config: ModelConfig,
    special: SpecialTokens,
    options: DecodingOptions,
    params: dict,
    forbidden: jax.Array,
    key: jax.Array,
    rows: _Rows,
) -> sampling.Answer:
    """The answers to every blank, [N, B] in front.

    Args:
      forbidden: bool [V], ids that are never generated.
      key: of the seed.
    """
    rules = sampling.Rules(options, special, forbidden)
    read = functools.partial(_read_answer, config, params)
    keys = jax.vmap(lambda draw: jax.random.fold_in(jax.random.fold_in(key, draw[0]), draw[1]))(
        rows.draws
    )

    def fill_blank(cache: KVCache, numbered: tuple[jax.Array, Blank]):
        index, blank = numbered
        if options.num_beams > 1:
            return beam_search.search(read, rules, cache, blank)
        blank_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return sampling.sample(read, rules, cache, blank, blank_keys)

    num_blanks = rows.blanks.position.shape[1]
    by_number = Blank(*(x.T for x in rows.blanks))
    cache = _read_context(config, params, rows, num_blanks * options.max_new_tokens)
    return jax.lax.scan(fill_blank, cache, (jnp.arange(num_blanks), by_number))[1]


def _read_context(config: ModelConfig, params: dict, rows: _Rows, num_slots: int) -> KVCache:
    """The cache of Part A, with `num_slots` more slots."""
    batch, slots = rows.tokens.shape
    cache = glm.empty_cache(config, batch, slots + num_slots)
    axes = ("layers", "batch", "sequence", "kv_heads", "head_dim")
    cache = cache._replace(key=constrain(cache.key, *axes), value=constrain(cache.value, *axes))
    slot = jnp.broadcast_to(jnp.arange(slots), rows.tokens.shape)
    where = coordinates.of_context(config, slot, rows.length)
    _, cache = glm.apply_cached(config, params, cache, rows.tokens, *where)
    return cache._replace(length=rows.length)


def _read_answer(
    config: ModelConfig,
    params: dict,
    cache: KVCache,
    tokens: jax.Array,
    blank: Blank,
    first: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """See `sampling.Read`."""
    start = cache.length
    slot = start[:, None] + first + jnp.arange(tokens.shape[1])
    where = coordinates.of_answer(config, slot, start, blank)
    cache = cache._replace(length=start + first)
    logits, cache = glm.apply_cached(config, params, cache, tokens, *where)
    return logits, cache._replace(length=start)
