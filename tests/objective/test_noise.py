"""[dBLOCK] noise and shifted positions: what changes, how often, and what must not."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from glm_jax.config import ObjectiveConfig
from glm_jax.objective import infill, noise
from glm_jax.objective.spans import single_spans, split_pieces, token_spans
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()


def make_samples(seed: int, blanks: int = 6):
    """Samples of three documents, the last unfinished, and the generator that made them."""
    rng = np.random.default_rng(seed)
    documents = [[SPECIAL.cls, *rng.integers(20, 200, n), SPECIAL.eos] for n in (40, 3, 60)]
    tokens = np.concatenate(documents).astype(np.int32)[:-1]
    pieces = split_pieces(tokens, SPECIAL)
    spans = token_spans([rng], pieces, np.array([blanks]), ObjectiveConfig())
    return rng, infill.build_pieces(
        tokens, pieces.end, spans, mask_id=SPECIAL.mask, special=SPECIAL
    )


def assert_same_but(changed: str, before, after):
    for name in before._fields:
        if name != changed:
            assert getattr(before, name).tolist() == getattr(after, name).tolist()


def test_noise_in_answers_is_as_frequent_as_asked():
    hit = answers = 0
    for seed in range(200):
        rng, before = make_samples(seed)
        after = noise.noise_in_answers(rng, before, 0.3, SPECIAL)
        assert_same_but("tokens", before, after)
        is_answer = (before.weights > 0) & (before.tokens != SPECIAL.sop)
        changed = before.tokens != after.tokens
        assert set(after.tokens[changed]) <= {SPECIAL.dblock}
        assert not changed[~is_answer].any()
        hit, answers = hit + changed.sum(), answers + is_answer.sum()
    assert abs(hit / answers - 0.3) < 0.02


@hypothesis.given(st.integers(0, 10_000), st.integers(0, 60), st.integers(1, 8))
@hypothesis.settings(max_examples=80, deadline=None)
def test_noise_near_blanks(seed, count, blanks):
    rng, before = make_samples(seed, blanks)
    after = noise.noise_near_blanks(rng, before, count, SPECIAL)
    assert_same_but("tokens", before, after)
    candidates = set()
    for slot in np.flatnonzero(before.weights == 0):
        if before.tokens[slot] >= 20:
            around = [s for s in range(slot - 3, slot + 4) if 0 <= s < len(before.tokens)]
            if any(
                before.tokens[s] == SPECIAL.mask and before.segment[s] == before.segment[slot]
                for s in around
            ):
                candidates.add(int(slot))
    changed = np.flatnonzero(before.tokens != after.tokens)
    assert set(after.tokens[changed]) <= {SPECIAL.dblock}
    assert set(changed.tolist()) <= candidates
    assert len(changed) == min(count, len(candidates))


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([61, 64, 512]))
@hypothesis.settings(max_examples=60, deadline=None)
def test_shifted_positions_stay_in_the_table(seed, max_positions):
    rng, before = make_samples(seed)
    after = noise.shift_positions(rng, before, max_positions)
    assert_same_but("position", before, after)
    assert after.position.dtype == np.int32
    for segment in range(1, before.segment.max() + 1):
        here = before.segment == segment
        assert len(set(after.position[here] - before.position[here])) == 1
        assert 0 <= after.position[here].min() <= after.position[here].max() < max_positions


def test_shifts_are_uniform():
    rng, samples = make_samples(0)
    shifts = [noise.shift_positions(rng, samples, 512).position[0] for _ in range(3000)]
    longest = samples.position[samples.segment == 1].max()
    assert min(shifts) < 5
    assert max(shifts) > 512 - longest - 5
    assert abs(np.mean(shifts) - (511 - longest) / 2) < 10


@hypothesis.given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 1000)
)
@hypothesis.settings(max_examples=80, deadline=None)
def test_single_spans(lengths, max_blanks, seed):
    """One span inside the text of each piece, of the longest if there are not enough blanks."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate(
        [[SPECIAL.cls, *rng.integers(20, 200, n), SPECIAL.eos] for n in lengths]
    ).astype(np.int32)
    pieces = split_pieces(tokens, SPECIAL)
    blanks = single_spans([rng], pieces, np.array([max_blanks]), ObjectiveConfig())
    piece = np.searchsorted(pieces.end, blanks.start, side="right")
    assert len(set(piece)) == len(piece) == min(sum(n >= 2 for n in lengths), max_blanks)
    assert blanks.eop.all()
    assert (blanks.start < blanks.end).all()
    assert (pieces.text_start[piece] <= blanks.start).all()
    assert (blanks.end <= pieces.text_end[piece]).all()
    left_out = [n for i, n in enumerate(lengths) if i not in piece]
    assert max(left_out, default=0) <= max(min((lengths[i] for i in piece), default=0), 1)
