"""Which spans are blanked: the published statistics, and what may never be covered."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from glm_jax.config import ObjectiveConfig
from glm_jax.objective import spans
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
VOCAB_SIZE = 100
IS_SENTENCE_END = np.arange(VOCAB_SIZE) % 10 == 9


def document(rng, length: int) -> np.ndarray:
    text = rng.integers(20, VOCAB_SIZE, length)
    return np.concatenate(([SPECIAL.cls], text, [SPECIAL.eos])).astype(np.int32)


@st.composite
def windows(draw):
    """A window over documents, some empty or tiny, cut anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    lengths = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6))
    stream = np.concatenate([document(rng, length) for length in lengths])
    first = draw(st.integers(0, len(stream) - 1))
    return stream[first : draw(st.integers(first + 1, len(stream)))]


def check_no_blank_is_out_of_place(tokens, blanks, *, gap):
    covered = np.zeros(len(tokens), int)
    for start, end in zip(blanks.start, blanks.end, strict=True):
        assert 0 <= start < end <= len(tokens)
        assert SPECIAL.eos not in tokens[start : end - 1], "a span stays in its piece"
        covered[start : min(end + gap, len(tokens))] += 1
    assert covered.max(initial=0) <= 1
    assert not (covered.astype(bool) & (tokens == SPECIAL.cls)).any()


def test_lengths_follow_the_published_sampler():
    """3000 documents of 512 tokens in the published code: 15.14 % masked in 24.54 spans."""
    config = ObjectiveConfig(span_sampling="budget")
    rng = np.random.default_rng(0)
    pieces = spans.split_pieces(np.full(512, 30, np.int32), SPECIAL)
    drawn = [spans.draw_to_budget([rng], pieces, np.array([99]), config)[0] for _ in range(9000)]
    assert np.mean([len(lengths) for lengths in drawn]) == pytest.approx(24.54, abs=0.15)
    assert np.mean([lengths.sum() for lengths in drawn]) / 512 == pytest.approx(0.1514, abs=5e-4)
    lengths = np.concatenate(drawn)
    published = [0.1581, 0.2361, 0.2331, 0.1766, 0.1070, 0.0530, 0.0234, 0.0088]
    for length, frequency in enumerate(published, start=1):
        assert (lengths == length).mean() == pytest.approx(frequency, abs=0.005)


def test_length_distribution_is_a_truncated_poisson():
    probabilities = spans.length_probabilities(3.0, 39)
    assert probabilities[1] / probabilities[0] == pytest.approx(3 / 2)
    assert probabilities.sum() == pytest.approx(1)
    assert spans.length_moments(3.0, 39)[0] == pytest.approx(3.157, abs=1e-3)
    config = ObjectiveConfig(max_span_length=2)
    lengths = spans.draw_lengths([np.random.default_rng(0)], np.array([1000]), config)
    assert set(lengths) == {1, 2}


def test_places_are_uniform():
    """Two spans of length 1 in four tokens: (0, 2), (0, 3) and (1, 3) are equally likely."""
    tokens = document(np.random.default_rng(0), 4)
    pieces = spans.split_pieces(tokens, SPECIAL)
    config = ObjectiveConfig(max_span_length=1)
    rng = np.random.default_rng(0)
    counts = {}
    for _ in range(3000):
        start = spans.token_spans([rng], pieces, np.array([2]), config).start
        key = tuple(sorted(start - 1))
        counts[key] = counts.get(key, 0) + 1
    # The gap method draws places with replacement: a tie is half as likely as an ordered pair.
    assert set(counts) == {(0, 2), (0, 3), (1, 3)}
    assert counts[0, 3] / 3000 == pytest.approx(1 / 2, abs=0.04)


@hypothesis.given(windows(), st.integers(1, 30), st.integers(0, 99), st.sampled_from([1, 9]))
@hypothesis.settings(max_examples=200, deadline=None)
def test_token_spans(tokens, max_blanks, seed, longest):
    pieces = spans.split_pieces(tokens, SPECIAL)
    room = pieces.text_end - pieces.text_start
    config = ObjectiveConfig(max_span_length=longest)
    rngs = [np.random.default_rng(seed)]
    blanks = spans.token_spans(rngs, pieces, np.array([max_blanks]), config)
    check_no_blank_is_out_of_place(tokens, blanks, gap=1)
    assert not (tokens[blanks.end - 1] == SPECIAL.eos).any()
    assert (blanks.end - blanks.start).max(initial=0) <= longest
    assert blanks.eop.all()
    assert len(blanks.start) <= max_blanks
    if len(blanks.start) < max_blanks:  # a blank is left out only where none fits any more
        piece = np.searchsorted(pieces.end, blanks.start, side="right")
        used = np.bincount(piece, blanks.end - blanks.start + 1, len(room))
        assert (room - used < 2).all()
    if longest == 1 and max_blanks >= (room >= 2).sum():  # longer ones move to where they fit
        piece = np.searchsorted(pieces.end, blanks.start, side="right")
        assert set(np.flatnonzero(room >= 2)) <= set(piece)


@hypothesis.given(windows(), st.integers(1, 30), st.integers(0, 99))
@hypothesis.settings(max_examples=150, deadline=None)
def test_sentence_spans(tokens, max_blanks, seed):
    pieces = spans.split_pieces(tokens, SPECIAL)
    config = ObjectiveConfig()
    rngs = [np.random.default_rng(seed)]
    blanks = spans.sentence_spans(
        rngs, tokens, pieces, IS_SENTENCE_END, np.array([max_blanks]), config
    )
    check_no_blank_is_out_of_place(tokens, blanks, gap=0)
    is_text = (tokens != SPECIAL.cls) & (tokens != SPECIAL.eos)
    for start, end in zip(blanks.start, blanks.end, strict=True):
        assert is_text[start:end].all()
        assert not IS_SENTENCE_END[tokens[start : end - 1]].any()
        assert start == 0 or not is_text[start - 1] or IS_SENTENCE_END[tokens[start - 1]]
        assert end == len(tokens) or not is_text[end] or IS_SENTENCE_END[tokens[end - 1]]
    lengths = np.sort(blanks.end - blanks.start)
    budget = int(config.mask_ratio * len(tokens))
    if len(lengths) < max_blanks and is_text.sum() >= budget:
        assert lengths.sum() >= budget
    assert lengths[:-1].sum() < max(budget, 1), "the last sentence reached the budget"


@hypothesis.given(
    windows(), st.integers(1, 6), st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0])
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_document_spans(tokens, max_blanks, seed, min_ratio):
    pieces = spans.split_pieces(tokens, SPECIAL)
    size = pieces.end - pieces.start
    config = ObjectiveConfig(document_min_ratio=min_ratio)
    rngs = [np.random.default_rng(seed)]
    blanks = spans.document_spans(rngs, pieces, np.array([max_blanks]), config)
    check_no_blank_is_out_of_place(tokens, blanks, gap=0)
    piece = np.searchsorted(pieces.end, blanks.start, side="right")
    assert len(set(piece)) == len(piece) <= max_blanks
    eligible = (size >= 3) & (pieces.text_end - pieces.text_start >= 2)
    assert len(piece) == min(max_blanks, eligible.sum())
    assert size[piece].min(initial=99) >= np.sort(size[eligible])[::-1][: len(piece)].min(
        initial=99
    )
    for start, end, eop, p in zip(blanks.start, blanks.end, blanks.eop, piece, strict=True):
        if eop:
            assert pieces.text_start[p] <= start
            assert end <= pieces.text_end[p]
            assert end - start < pieces.text_end[p] - pieces.text_start[p]
        else:
            assert end == pieces.end[p]
            assert start >= pieces.start[p] + 2
        longest = size[p] - 2 if not eop else pieces.text_end[p] - pieces.text_start[p] - 1
        assert end - start >= min(max(1, int(min_ratio * size[p])), longest)


def test_infill_probability_decides_between_blank_and_split():
    pieces = spans.split_pieces(document(np.random.default_rng(0), 50), SPECIAL)
    for probability in (0.0, 1.0):
        config = ObjectiveConfig(document_infill_prob=probability)
        blanks = spans.document_spans([np.random.default_rng(0)], pieces, np.array([1]), config)
        assert blanks.eop.tolist() == [bool(probability)]


@pytest.mark.parametrize("sampling", ["fixed", "budget"])
def test_order_of_part_b(sampling):
    tokens = document(np.random.default_rng(0), 300)
    pieces = spans.split_pieces(tokens, SPECIAL)

    def starts(shuffle):
        config = ObjectiveConfig(shuffle_spans=shuffle, span_sampling=sampling)
        return spans.token_spans([np.random.default_rng(0)], pieces, np.array([14]), config).start

    assert (np.diff(starts(shuffle=False)) > 0).all()
    assert (np.diff(starts(shuffle=True)) < 0).any()
    assert sorted(starts(shuffle=True)) == starts(shuffle=False).tolist()


def test_sentence_ends_of_a_vocabulary():
    pieces = ["▁the", ".", "。", "<0x0A>", "<0x41>", "!”", "…", "\n", "<0x2E>", ",", "，"]
    expected = [False, True, True, True, False, True, True, True, True, False, False]
    assert spans.sentence_ends(pieces).tolist() == expected


def test_the_same_generator_gives_the_same_spans():
    tokens = document(np.random.default_rng(0), 300)
    pieces = spans.split_pieces(tokens, SPECIAL)
    one, two = (
        spans.token_spans([np.random.default_rng(5)], pieces, np.array([14]), ObjectiveConfig())
        for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


def test_sentence_blanks_spread_over_the_pieces():
    """Four pieces of three sentences each, room for four blanks: one in each piece."""
    sentence_end = 20
    text = [np.array([SPECIAL.cls, *([16, 17, sentence_end] * 3), SPECIAL.eos])] * 4
    tokens = np.concatenate(text).astype(np.int32)
    pieces = spans.split_pieces(tokens, SPECIAL)
    config = ObjectiveConfig(mask_ratio=0.9)
    for seed in range(20):
        blanks = spans.sentence_spans(
            [np.random.default_rng(seed)],
            tokens,
            pieces,
            np.arange(32) == sentence_end,
            np.array([4]),
            config,
        )
        assert sorted(blanks.start // len(text[0])) == [0, 1, 2, 3]


def test_a_family_without_cls_blanks_from_the_first_token_on():
    special = SpecialTokens(cls=None, eos=2, pad=2)
    pieces = spans.split_pieces(np.array([30, 31, 2, 32, 33], np.int32), special)
    assert pieces.start.tolist() == pieces.text_start.tolist() == [0, 3]
    assert pieces.text_end.tolist() == [2, 5]


@hypothesis.given(windows(), st.lists(st.integers(1, 200), unique=True).map(sorted))
@hypothesis.settings(max_examples=60, deadline=None)
def test_further_cuts(tokens, cuts):
    cuts = np.array([cut for cut in cuts if cut < len(tokens)], np.int64)
    pieces = spans.split_pieces(tokens, SPECIAL, cuts)
    whole = spans.split_pieces(tokens, SPECIAL)
    assert set(pieces.end) == set(whole.end) | set(cuts)
    assert pieces.start.tolist() == [0, *pieces.end[:-1]]
    for start, end, text_start, text_end, _ in zip(*pieces, strict=True):
        text = [i for i in range(start, end) if tokens[i] not in (SPECIAL.cls, SPECIAL.eos)]
        assert list(range(text_start, text_end)) == text
