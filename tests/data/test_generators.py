"""Generators that are seeded together draw what NumPy's own draw."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from glm_jax.data.generators import generators

NUMBERS = st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1), st.integers(0, 2**70))


@hypothesis.given(
    st.lists(NUMBERS, min_size=1, max_size=6), st.lists(NUMBERS, min_size=1, max_size=5)
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_generators_are_those_of_numpy(prefix, rows):
    for rng, row in zip(generators(prefix, rows), rows, strict=True):
        assert np.array_equal(rng.random(5), np.random.default_rng([*prefix, row]).random(5))
