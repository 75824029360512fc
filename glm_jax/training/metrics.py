"""Sums over a batch, kept apart by source and objective, and the figures made from them."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.ops.cross_entropy import TokenStats

SOURCE = "source/"
"""Figures of one source have this before its name."""


class Sums(NamedTuple):
    """Sums by source and objective: float32 [num_sources, len(OBJECTIVES)] each.

    Counts are exact up to 2^24, which `pairs` exceeds: its relative error is below 1e-6.
    """

    loss: jax.Array  # of weighted negative log-likelihoods, in nats
    weight: jax.Array
    targets: jax.Array
    correct: jax.Array  # targets whose argmax is right
    spans: jax.Array
    exact_spans: jax.Array  # spans with every target right
    tokens: jax.Array  # slots that are not padding
    slots: jax.Array
    pairs: jax.Array  # of a query slot and a key that it sees


def batch_sums(batch: Batch, stats: TokenStats, num_sources: int) -> Sums:
    """The sums of one batch [B, T]."""
    is_target = batch.weights > 0
    per_row = Sums(
        loss=jnp.sum(batch.weights * stats.nll, axis=1),
        weight=jnp.sum(batch.weights, axis=1),
        targets=jnp.sum(is_target, axis=1),
        correct=jnp.sum(stats.correct, axis=1),
        spans=jnp.sum(_span_starts(batch), axis=1),
        exact_spans=jax.vmap(_count_exact_spans)(_span_starts(batch), is_target, stats.correct),
        tokens=jnp.sum(batch.segment > 0, axis=1),
        slots=jnp.full(batch.tokens.shape[:1], batch.tokens.shape[1]),
        pairs=visible_pairs(batch.kv_start, batch.kv_end),
    )
    source = jax.nn.one_hot(batch.source[:, 0], num_sources)
    objective = jax.nn.one_hot(batch.objective[:, 0], len(OBJECTIVES))
    groups = source[:, :, None] * objective[:, None, :]
    # By default TPUs and GPUs would round what is summed, to 8 and 11 bits.
    add = functools.partial(jnp.einsum, "b,bso->so", precision="highest")
    return Sums(*(add(x.astype(jnp.float32), groups) for x in per_row))


def visible_pairs(kv_start: jax.Array, kv_end: jax.Array) -> jax.Array:
    """Pairs of a query and a key that it sees in each row: [B, T] to float32 [B]."""
    keys = jnp.maximum(kv_end - kv_start, 0)
    return jnp.sum(keys.astype(jnp.float32), axis=1)  # int32 holds those of 46,340 slots


def _span_starts(batch: Batch) -> jax.Array:
    """Block position 1 begins a span, but where it only repeats (`ModelConfig.block_positions`)."""
    may_start = (batch.weights > 0) & (batch.block_position == 1)

    def before(x: jax.Array) -> jax.Array:
        return jnp.roll(x, 1, axis=1)

    is_same_text = batch.segment == before(batch.segment)
    repeats = before(may_start) & is_same_text & (batch.position == before(batch.position))
    return may_start & ~repeats.at[:, 0].set(False)


def _count_exact_spans(starts: jax.Array, is_target: jax.Array, correct: jax.Array) -> jax.Array:
    """Spans of one row [T] without a wrong target; targets of a span are contiguous."""
    span = jnp.cumsum(starts)
    wrong = (is_target & ~correct).astype(jnp.int32)
    errors = jax.ops.segment_sum(wrong, span, num_segments=starts.shape[0] + 1)
    return jnp.sum(starts & (errors[span] == 0))


def total(parts: Sequence[Sums]) -> Sums:
    """The sum of sums that are on the host."""
    return Sums(*(np.sum(x, axis=0) for x in zip(*parts, strict=True)))


def summarise(sums: Sums, languages: Mapping[str, str]) -> dict[str, float]:
    """Loss, accuracy, exact match and padding: overall, by objective, by language and by source.

    Args:
      sums: of one or several steps, on the host.
      languages: the language of each source, by its name.

    Returns:
      Figures by name, such as `loss`, `loss/zh`, `exact_match/token` and `loss/source/wiki`; a
      group that had no target is left out, and so is the exact match of one without spans. Sources
      are left out where each has a language of its own.
    """
    sums = Sums(*(np.asarray(x, np.float64) for x in sums))
    figures = _figures(sums, "")
    figures["padding"] = 1.0 - sums.tokens.sum() / max(sums.slots.sum(), 1.0)
    for i, objective in enumerate(OBJECTIVES):
        figures |= _figures(Sums(*(x[:, i] for x in sums)), f"/{objective}")
    of_source = list(languages.values())
    for language in sorted(set(of_source)):
        rows = [i for i, name in enumerate(of_source) if name == language]
        figures |= _figures(Sums(*(x[rows] for x in sums)), f"/{language}")
    if len(set(of_source)) < len(of_source):
        for i, source in enumerate(languages):
            figures |= _figures(Sums(*(x[i : i + 1] for x in sums)), f"/{SOURCE}{source}")
    return figures


def _figures(sums: Sums, suffix: str) -> dict[str, float]:
    if sums.weight.sum() == 0:
        return {}
    figures = {
        f"loss{suffix}": sums.loss.sum() / sums.weight.sum(),
        f"accuracy{suffix}": sums.correct.sum() / sums.targets.sum(),
    }
    if sums.spans.sum() > 0:
        figures[f"exact_match{suffix}"] = sums.exact_spans.sum() / sums.spans.sum()
    return figures
