"""Key ranges and inputs for the tests of range attention."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from glm_jax.ops.range_attention import range_attention


@st.composite
def packings(draw, batch: int, length: int):
    """kv_start, kv_end [batch, length]: rows of packed prefix-LM segments and padding.

    A segment may be one slot, the whole row, all context (bidirectional) or no context (causal).
    """
    start, end = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        first = 0
        while first < length:
            size = draw(st.integers(1, length - first))
            kind = draw(st.sampled_from(["prefix", "prefix", "padding", "own slot"]))
            slots = np.arange(first, first + size)
            if kind == "prefix":
                context = draw(st.integers(0, size))
                start[row, slots], end[row, slots] = first, np.maximum(first + context, slots + 1)
            elif kind == "own slot":
                start[row, slots], end[row, slots] = slots, slots + 1
            first += size
    return start, end


@st.composite
def any_ranges(draw, batch: int, length: int, num_keys: int):
    """Ranges of no structure, empty ones with start > end among them."""
    points = st.lists(
        st.integers(0, num_keys), min_size=2 * batch * length, max_size=2 * batch * length
    )
    start, end = np.asarray(draw(points), np.int32).reshape(2, batch, length)
    return start, end


def prefix_rows(batch: int, length: int, segment: int, seed: int = 0):
    """Rows of segments of about `segment` slots with context and some padding at the end."""
    rng = np.random.default_rng(seed)
    start, end = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        first, stop = 0, length - int(rng.integers(0, segment // 2 + 1))
        while first < stop:
            last = min(stop, first + int(rng.integers(max(1, segment // 2), segment * 3 // 2 + 1)))
            slots = np.arange(first, last)
            context = int(rng.integers(0, last - first + 1))
            start[row, slots], end[row, slots] = first, np.maximum(first + context, slots + 1)
            first = last
    return start, end


def inputs(batch, num_queries, heads, kv_heads, dim, *, num_keys=None, dtype=np.float64, seed=0):
    """q, k, v and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    queries = (batch, num_queries, heads, dim)
    keys = (batch, num_keys or num_queries, kv_heads, dim)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in (queries, keys, keys, queries))


def with_gradients(attend):
    """attend(q, k, v, start, end) -> jitted (q, k, v, d_out, start, end) -> out, (dq, dk, dv)."""

    @jax.jit
    def run(q, k, v, d_out, start, end):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, start, end), q, k, v)
        return out, pull(d_out)

    return run


reference = with_gradients(
    lambda q, k, v, start, end: range_attention(q, k, v, start, end, backend="reference")
)


def assert_same(actual, expected, tolerance):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance
        )
