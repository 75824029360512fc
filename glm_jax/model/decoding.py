"""Filling blanks: greedy decoding of Part B with a key-value cache, under one jit."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.tokenizer import SpecialTokens, Tokenizer

_BLANK = re.compile(r"\s*(\[MASK\]|\[sMASK\]|\[gMASK\])")
BATCH = 16  # texts decoded together
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


class Filler:
    """Greedy decoding with a key-value cache; several blanks are filled from left to right."""

    def __init__(self, config: ModelConfig, params: dict, tokenizer: Tokenizer):
        self._config = config
        self._params = jax.tree.map(jnp.asarray, params)
        self._tokenizer = tokenizer
        self._forbidden = _forbidden_ids(config.vocab_size, tokenizer)

    def fill(self, texts: Sequence[str], max_new_tokens: int) -> list[Filled]:
        """Fills every blank of every text; later blanks see the answers to earlier ones.

        Raises:
          UserError: a text without a blank, or longer than the position table.
        """
        contexts = [encode_context(text, self._tokenizer) for text in texts]
        for context in contexts:
            self._check_length(context, max_new_tokens)
        filled = []
        for start in range(0, len(texts), BATCH):
            answers = self._generate(contexts[start : start + BATCH], max_new_tokens)
            for text, ids in zip(texts[start : start + BATCH], answers, strict=True):
                strings = [self._tokenizer.decode(span) for span in ids]
                parts = _BLANK.split(text)
                parts[1::2] = strings
                filled.append(Filled(parts, strings, ids))
        return filled

    def _check_length(self, context: Context, max_new_tokens: int) -> None:
        longest = max(len(context.tokens), max_new_tokens)
        if self._config.position == "learned_2d" and longest > self._config.max_positions:
            raise UserError(
                f"{longest} tokens are more than the position table holds "
                f"(model.max_positions {self._config.max_positions})"
            )

    def _generate(self, contexts: list[Context], max_new_tokens: int) -> list[list[list[int]]]:
        length = max(len(context.tokens) for context in contexts)
        num_blanks = max(len(context.blanks) for context in contexts)
        shape = (BATCH, -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
        tokens = np.full(shape, self._tokenizer.special.pad, np.int32)
        context_length = np.zeros(BATCH, np.int32)
        blanks = np.full((num_blanks, BATCH), -1, np.int32)
        for row, context in enumerate(contexts):
            tokens[row, : len(context.tokens)] = context.tokens
            context_length[row] = len(context.tokens)
            blanks[: len(context.blanks), row] = context.blanks
        spans, lengths = jax.device_get(
            _decode(
                self._config,
                self._tokenizer.special,
                max_new_tokens,
                self._params,
                self._forbidden,
                tokens,
                context_length,
                blanks,
            )
        )
        return [
            [spans[n, row, : lengths[n, row]].tolist() for n in range(len(context.blanks))]
            for row, context in enumerate(contexts)
        ]


def encode_context(text: str, tokenizer: Tokenizer) -> Context:
    """Part A of a damaged text: [CLS], the text with its mask tokens, and eos.

    A mask token takes the white space on its left with it, as GLM's tokenizers do: an answer brings
    its own. A text that ends in [gMASK] gets no eos: it is to be continued (GLM_2021).

    Raises:
      UserError: the text has no blank.
    """
    special = tokenizer.special
    mask_ids = {"[MASK]": special.mask, "[sMASK]": special.smask, "[gMASK]": special.gmask}
    parts = _BLANK.split(text)
    if len(parts) == 1:
        raise UserError(f"no [MASK], [sMASK] or [gMASK] in the text {text[:60]!r}")
    tokens, blanks = [special.cls], []
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
    max_new_tokens: int,
    params: dict,
    forbidden: jax.Array,
    tokens: jax.Array,
    context_length: jax.Array,
    blanks: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Spans int32 [N, B, max_new_tokens] and their lengths [N, B].

    Args:
      forbidden: bool [V], ids that are never generated.
      tokens: int32 [B, A], contexts padded on the right; context_length int32 [B].
      blanks: int32 [N, B], index of each row's n-th mask token, -1 where it has fewer.
    """
    batch, slots = tokens.shape
    cache = glm.empty_cache(config, batch, slots + blanks.shape[0] * (max_new_tokens + 1))
    cache = _read_context(config, params, cache, tokens, context_length)

    def fill_blank(cache, mask_position):
        def one_token(carry):
            cache, token, count, active, span = carry
            logits, cache = glm.apply_cached(
                config,
                params,
                cache,
                token[:, None],
                mask_position[:, None],
                count[:, None] + 1,
                jnp.zeros((batch, 1), jnp.int32),
                cache.length[:, None] + 1,
            )
            cache = cache._replace(length=cache.length + active)
            token = jnp.argmax(jnp.where(forbidden, -jnp.inf, logits[:, 0]), -1).astype(jnp.int32)
            active &= (token != special.eop) & (token != special.eos)
            at = (jnp.arange(batch), jnp.where(active, count, max_new_tokens))
            span = span.at[at].set(token, mode="drop")
            count += active
            return cache, token, count, active & (count < max_new_tokens), span

        start = (
            cache,
            jnp.full(batch, special.sop, jnp.int32),
            jnp.zeros(batch, jnp.int32),
            mask_position >= 0,
            jnp.zeros((batch, max_new_tokens), jnp.int32),
        )
        cache, _, count, _, span = jax.lax.while_loop(lambda c: c[3].any(), one_token, start)
        return cache, (span, count)

    return jax.lax.scan(fill_blank, cache, blanks)[1]


def _read_context(config, params, cache, tokens, context_length):
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    inside = position < context_length[:, None]
    _, cache = glm.apply_cached(
        config,
        params,
        cache,
        tokens,
        jnp.where(inside, position, 0),
        jnp.zeros_like(tokens),
        jnp.zeros_like(tokens),
        jnp.where(inside, context_length[:, None], 0),
    )
    return cache._replace(length=context_length)


def _forbidden_ids(vocab_size: int, tokenizer: Tokenizer) -> jax.Array:
    """Rows that only pad the embedding table, and control symbols that end nothing."""
    special = tokenizer.special
    forbidden = np.arange(vocab_size) >= tokenizer.vocab_size
    forbidden[tokenizer.control_ids] = True
    forbidden[[special.eop, special.eos]] = False
    return jnp.asarray(forbidden)
