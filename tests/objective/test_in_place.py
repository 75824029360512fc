"""Causal, prefix and masked language modelling against slow obvious loops."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from glm_jax.objective import in_place
from glm_jax.objective.spans import split_pieces
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()


@st.composite
def windows(draw):
    """A window that starts inside a document, ends inside one, and may hold empty ones."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    stream = [[SPECIAL.cls, *rng.integers(20, 200, n), SPECIAL.eos] for n in lengths]
    stream = np.concatenate(stream).astype(np.int32)
    start = draw(st.integers(0, len(stream) - 1))
    return stream[start : draw(st.integers(start + 1, len(stream)))]


def documents(tokens) -> list[range]:
    """Slots of each piece."""
    ranges, start = [], 0
    for slot, token in enumerate(tokens):
        if token == SPECIAL.eos or slot == len(tokens) - 1:
            ranges.append(range(start, slot + 1))
            start = slot + 1
    return ranges


def check_plain(row, tokens):
    assert {field.dtype.name for field in row} == {"int32", "float32"}
    assert not row.block_position.any()
    for number, piece in enumerate(documents(tokens), 1):
        assert row.position[piece].tolist() == list(range(len(piece)))
        assert set(row.segment[piece]) == {number}
        assert set(row.kv_start[piece]) == {piece.start}


def test_causal_golden():
    tokens = np.array([3, 21, 22, 2, 3, 2, 23], np.int32)
    row = in_place.causal(
        tokens, split_pieces(tokens, SPECIAL), length=len(tokens), special=SPECIAL
    )
    assert row.tokens.tolist() == tokens.tolist()
    assert row.targets.tolist() == [21, 22, 2, 2, 2, 2, 23]
    assert row.weights.tolist() == [1, 1, 1, 0, 1, 0, 0]
    assert row.position.tolist() == [0, 1, 2, 3, 0, 1, 0]
    assert row.kv_start.tolist() == [0, 0, 0, 0, 4, 4, 6]
    assert row.kv_end.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert row.segment.tolist() == [1, 1, 1, 1, 2, 2, 3]


@hypothesis.given(windows())
@hypothesis.settings(max_examples=80, deadline=None)
def test_causal(tokens):
    row = in_place.causal(
        tokens, split_pieces(tokens, SPECIAL), length=len(tokens), special=SPECIAL
    )
    check_plain(row, tokens)
    for piece in documents(tokens):
        for slot in piece:
            is_last = slot == piece[-1]
            assert row.kv_end[slot] == slot + 1
            assert row.weights[slot] == (not is_last)
            assert row.targets[slot] == tokens[slot if is_last else slot + 1]


@hypothesis.given(windows(), st.integers(0, 1000))
@hypothesis.settings(max_examples=80, deadline=None)
def test_prefix(tokens, seed):
    rngs, pieces = [np.random.default_rng(seed)], split_pieces(tokens, SPECIAL)
    row = in_place.prefix(rngs, tokens, pieces, length=len(tokens), special=SPECIAL)
    check_plain(row, tokens)
    assert row.tokens.tolist() == tokens.tolist()
    for piece in documents(tokens):
        cut = row.kv_end[piece.start]  # one past the prefix
        assert piece.start < cut <= max(piece.stop - 1, piece.start + 1)
        for slot in piece:
            assert row.kv_end[slot] == max(cut, slot + 1)
            predicts = cut - 1 <= slot < piece[-1]
            assert row.weights[slot] == predicts
            assert row.targets[slot] == tokens[slot + 1 if predicts else slot]


def test_prefix_cuts_are_uniform():
    tokens = np.arange(20, 26, dtype=np.int32)
    pieces, rng = split_pieces(tokens, SPECIAL), np.random.default_rng(0)
    rows = [
        in_place.prefix([rng], tokens, pieces, length=len(tokens), special=SPECIAL)
        for _ in range(5000)
    ]
    cuts = [row.kv_end[0] for row in rows]
    assert np.allclose(np.bincount(cuts)[1:] / 5000, 1 / 5, atol=0.02)


@hypothesis.given(windows(), st.integers(0, 1000), st.sampled_from([0.15, 0.5, 0.99]))
@hypothesis.settings(max_examples=80, deadline=None)
def test_masked(tokens, seed, ratio):
    row = in_place.masked(
        [np.random.default_rng(seed)],
        tokens,
        split_pieces(tokens, SPECIAL),
        mask_ratio=ratio,
        length=len(tokens),
        special=SPECIAL,
    )
    check_plain(row, tokens)
    assert row.targets.tolist() == tokens.tolist()
    for piece in documents(tokens):
        assert set(row.kv_end[piece]) == {piece.stop}
    text = [slot for slot, token in enumerate(tokens) if token >= 20]
    count = min(max(round(ratio * len(text)), 1), len(text))
    masked = np.flatnonzero(row.weights).tolist()
    assert len(masked) == count
    assert set(masked) <= set(text), "neither [CLS] nor an eos is masked"
    expected = [SPECIAL.mask if slot in masked else token for slot, token in enumerate(tokens)]
    assert row.tokens.tolist() == expected


@hypothesis.given(st.lists(windows(), min_size=1, max_size=4), st.integers(0, 1000))
@hypothesis.settings(max_examples=60, deadline=None)
def test_rows_that_are_built_together(texts, seed):
    """Each is what it is alone, with padding behind it."""
    length = max(map(len, texts)) + seed % 2

    def build(texts, seeds, length):
        tokens, row_end = np.concatenate(texts), np.cumsum([len(text) for text in texts])
        pieces = split_pieces(tokens, SPECIAL, (), row_end)
        rngs = [np.random.default_rng(seed) for seed in seeds]
        options = {"length": length, "special": SPECIAL}
        return (
            in_place.causal(tokens, pieces, **options),
            in_place.prefix(rngs, tokens, pieces, **options),
            in_place.masked(rngs, tokens, pieces, mask_ratio=0.3, **options),
        )

    seeds = range(seed, seed + len(texts))
    for number, together in enumerate(build(texts, seeds, length)):
        for place, (text, own) in enumerate(zip(texts, seeds, strict=True)):
            alone = build([text], [own], len(text))[number]
            row = [field[place * length : (place + 1) * length] for field in together]
            for name, field, expected in zip(alone._fields, row, alone, strict=True):
                padding = SPECIAL.pad if name in ("tokens", "targets") else 0
                assert field.tolist() == expected.tolist() + [padding] * (length - len(text)), name
