"""The arrays of blank infilling against the published code, and its laws on arbitrary text."""

import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from glm_jax.config import ModelConfig
from glm_jax.objective import infill
from glm_jax.objective.spans import Blanks
from glm_jax.tokenizer import SpecialTokens

FIXTURES = pathlib.Path(__file__).parents[3] / "shared/fixtures/blank_infilling.json"
SPECIAL = SpecialTokens()
# The vocabulary of the published BERT models.
BERT = SpecialTokens(
    pad=0, unk=100, eos=0, cls=101, mask=103, smask=30525, gmask=30524, sop=30522, eop=30523
)
FIRST_TEXT_TOKEN = 16


def published_cases():
    return json.loads(FIXTURES.read_text())["cases"] if FIXTURES.exists() else []


@pytest.mark.skipif(not FIXTURES.exists(), reason=f"{FIXTURES} is absent")
@pytest.mark.parametrize("case", published_cases())
def test_published_case(case):
    ids = json.loads(FIXTURES.read_text())["special"]
    special = SpecialTokens(
        cls=ids.pop("ENC"), **{k.lower(): v for k, v in ids.items() if k != "unk"}
    )
    tokens = np.array(case["tokens"], np.int32)
    if case["task"] == "gpt_no_eop":
        sample = infill.build_prefix_split(
            tokens, case["sep"] - 1, mask_id=special.gmask, special=special
        )
    else:
        mask = {"bert": special.mask, "gap_sentence": special.smask, "generation": special.gmask}
        sample = infill.build(
            tokens, case["target_order"], mask_id=mask[case["task"]], special=special
        )
    assert sample.tokens.tolist() == case["out_tokens"]
    assert sample.targets.tolist() == case["out_targets"]
    assert sample.weights.tolist() == case["out_loss_mask"]
    assert sample.position.tolist() == case["out_position_ids"]
    assert sample.block_position.tolist() == case["out_block_position_ids"]
    n, sep = len(sample.tokens), case["sep"]
    assert sample.kv_start.tolist() == [0] * n
    assert sample.kv_end.tolist() == [sep] * sep + list(range(sep + 1, n + 1))


def test_token_blanks_golden():
    """GLM_2021 on `[CLS] 1001 .. 1019`, two spans in the order 11-13, 6-7."""
    tokens = np.array([101, *range(1001, 1020)], np.int32)
    sample = infill.build(tokens, [(11, 14), (6, 8)], mask_id=BERT.mask, special=BERT)
    context = [101, *range(1001, 1006), 103, 1008, 1009, 1010, 103, *range(1014, 1020)]
    assert sample.tokens.tolist() == [*context, 30522, 1011, 1012, 1013, 30522, 1006, 1007]
    assert sample.targets.tolist() == [*context, 1011, 1012, 1013, 30523, 1006, 1007, 30523]
    assert sample.position.tolist() == [*range(17), 10, 10, 10, 10, 6, 6, 6]
    assert sample.block_position.tolist() == [0] * 17 + [1, 2, 3, 4, 1, 2, 3]
    assert sample.weights.tolist() == [0] * 17 + [1] * 7


def test_document_blank_golden():
    """One [gMASK] span with text after it ends in eop."""
    tokens = np.array([101, *range(1001, 1020)], np.int32)
    sample = infill.build(tokens, [(8, 17)], mask_id=BERT.gmask, special=BERT)
    assert sample.tokens[:12].tolist() == [101, *range(1001, 1008), 30524, 1017, 1018, 1019]
    assert sample.tokens[12:].tolist() == [30522, *range(1008, 1017)]
    assert sample.targets[12:].tolist() == [*range(1008, 1017), 30523]
    assert sample.position.tolist() == [*range(12)] + [8] * 10
    assert sample.block_position[12:].tolist() == [*range(1, 11)]


def test_prefix_split_golden():
    """A prefix split has no eop; its last target is the last token of the text."""
    tokens = np.array([101, *range(1001, 1008), 0, 101, *range(2001, 2011)], np.int32)
    sample = infill.build_prefix_split(tokens, 11, mask_id=BERT.gmask, special=BERT)
    context = [101, *range(1001, 1008), 0, 101, 2001, 30524]
    assert sample.tokens.tolist() == [*context, 30522, *range(2002, 2010)]
    assert sample.targets.tolist() == [*context, *range(2002, 2011)]
    assert sample.position.tolist() == [*range(12)] + [11] * 9
    assert sample.block_position.tolist() == [0] * 12 + [*range(1, 10)]
    assert sample.weights.sum() == 9


def test_glm_130b_golden():
    """A [gMASK] answer counts on from Part A, a [MASK] answer has its mask's position."""
    tokens, model = np.arange(1000, 1008, dtype=np.int32), ModelConfig(span_position="mixed")
    document, token = (
        infill.build(tokens, [(2, 5)], mask_id=mask_id, special=BERT, model=model)
        for mask_id in (BERT.gmask, BERT.mask)
    )
    assert document.position.tolist() == [*range(10)]
    assert document.block_position.tolist() == [0] * 6 + [1, 2, 3, 4]
    assert document.kv_end.tolist() == [6] * 6 + [7, 8, 9, 10]
    assert token.position.tolist() == [*range(6), 2, 2, 2, 2]


def test_chatglm2_golden():
    """`[gMASK] sop text`: one causal sequence."""
    tokens = np.arange(1000, 1005, dtype=np.int32)
    model = ModelConfig(span_position="slot", context="causal")
    sample = infill.build_prefix_split(tokens, 0, mask_id=BERT.gmask, special=BERT, model=model)
    assert sample.tokens.tolist() == [BERT.gmask, BERT.sop, 1000, 1001, 1002, 1003]
    assert sample.targets[1:].tolist() == tokens.tolist()
    assert sample.position.tolist() == [*range(6)]
    assert sample.kv_end.tolist() == [*range(1, 7)]


def test_adjacent_sentence_blanks_golden():
    tokens = np.array([101, 1, 2, 3, 4], np.int32)
    sample = infill.build(tokens, [(3, 5), (1, 3)], mask_id=BERT.smask, special=BERT)
    assert sample.tokens.tolist() == [101, 30525, 30525, 30522, 3, 4, 30522, 1, 2]
    assert sample.targets[3:].tolist() == [3, 4, 30523, 1, 2, 30523]
    assert sample.position[3:].tolist() == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("spans", [[(2, 2)], [(0, 3), (2, 4)], [(4, 6)], [(-1, 2)]])
def test_rejects_spans_that_are_no_spans(spans):
    with pytest.raises(ValueError, match="spans are empty, overlap or leave"):
        infill.build(np.arange(5, dtype=np.int32), spans, mask_id=4, special=SPECIAL)


def test_rejects_a_row_that_is_too_short():
    sample = infill.build(np.arange(5, dtype=np.int32), [(1, 2)], mask_id=4, special=SPECIAL)
    with pytest.raises(ValueError, match="7 slots do not fit a row of 6"):
        infill.pack([sample], 6, objective="token", source=0, special=SPECIAL)


@st.composite
def windows(draw):
    """Pieces of text with disjoint spans in arbitrary order, some without eop at a piece's end."""
    pieces, blanks, offset = [], [], 0
    for _ in range(draw(st.integers(1, 4))):
        cuts = draw(st.lists(st.integers(0, 30), min_size=2, unique=True).map(sorted))
        length = max(cuts[-1], 1)
        spans = list(zip(cuts[::2], cuts[1::2], strict=False))
        for i, (start, end) in enumerate(spans):
            may_drop_eop = end == length and i == len(spans) - 1
            eop = not (may_drop_eop and draw(st.booleans()))
            blanks.append((offset + start, offset + end, eop))
        pieces.append(length)
        offset += length
    blanks = draw(st.permutations(blanks))
    seed = draw(st.integers(0, 1000))
    tokens = np.random.default_rng(seed).integers(FIRST_TEXT_TOKEN, 200, offset).astype(np.int32)
    return tokens, np.cumsum(pieces), blanks


@hypothesis.given(windows())
@hypothesis.settings(max_examples=150, deadline=None)
def test_laws_of_a_row(window):
    tokens, piece_end, blanks = window
    starts, ends, eops = (np.array(x) for x in zip(*blanks, strict=True))
    sample = infill.build_pieces(
        tokens, piece_end, Blanks(starts, ends, eops), mask_id=SPECIAL.mask, special=SPECIAL
    )
    row = infill.pack([sample], 256, objective="sentence", source=1, special=SPECIAL)
    used = len(sample.tokens)
    assert used == len(tokens) + len(blanks) + sum(eops)
    assert {field.dtype.name for field in row} == {"int32", "float32"}
    assert set(row.objective) == {1}
    assert set(row.source) == {1}
    for name in ("weights", "position", "block_position", "kv_start", "kv_end", "segment"):
        assert not getattr(row, name)[used:].any()

    piece_start = 0
    for number, end in enumerate(piece_end, start=1):
        slots = np.flatnonzero(row.segment == number)
        assert slots.tolist() == list(range(slots[0], slots[-1] + 1)), "a piece is contiguous"
        context = slots[row.weights[slots] == 0]
        targets = slots[row.weights[slots] == 1]
        assert (context < targets.min(initial=256)).all(), "Part A comes before Part B"
        assert row.position[context].tolist() == list(range(len(context)))
        for slot in slots:  # what it sees is all of Part A, and Part B up to itself
            seen = range(row.kv_start[slot], row.kv_end[slot])
            last = slot if slot in targets else context[-1]
            assert list(seen) == list(range(slots[0], last + 1))
        assert text_of(row, context, targets) == tokens[piece_start:end].tolist()
        piece_start = end


@hypothesis.given(
    windows(),
    st.sampled_from(["blank", "slot", "mixed"]),
    st.sampled_from(["bidirectional", "causal"]),
    st.sampled_from([SPECIAL.mask, SPECIAL.gmask]),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_options_change_answers_positions_and_what_a_context_sees(
    window, span_position, context, mask_id
):
    tokens, piece_end, blanks = window
    blanks = Blanks(*(np.array(x) for x in zip(*blanks, strict=True)))
    model = ModelConfig(span_position=span_position, context=context)
    plain, sample = (
        infill.build_pieces(tokens, piece_end, blanks, mask_id=mask_id, special=SPECIAL, model=m)
        for m in (ModelConfig(), model)
    )
    counts = span_position == "slot" or (span_position == "mixed" and mask_id == SPECIAL.gmask)
    for slot, segment in enumerate(plain.segment):
        first = plain.segment.tolist().index(segment)
        assert sample.position[slot] == (slot - first if counts else plain.position[slot])
        assert sample.kv_end[slot] == (slot + 1 if context == "causal" else plain.kv_end[slot])
    same = {"position": plain.position, "kv_end": plain.kv_end}
    for ours, theirs in zip(sample._replace(**same), plain, strict=True):
        assert ours.tolist() == theirs.tolist()


def text_of(row, context, targets) -> list[int]:
    """The text of a piece put together from its context and its targets."""
    spans = {}
    for slot in targets:
        if row.block_position[slot] == 1:
            assert row.tokens[slot] == SPECIAL.sop
        else:
            assert row.tokens[slot] == row.targets[slot - 1]
            assert row.block_position[slot] == row.block_position[slot - 1] + 1
        spans.setdefault(int(row.position[slot]), []).append(int(row.targets[slot]))
    text = []
    for place, slot in enumerate(context):
        assert (row.tokens[slot] == SPECIAL.mask) == (place in spans)
        span = spans.get(place, [int(row.tokens[slot])])
        assert SPECIAL.eop not in span[:-1]
        text += [token for token in span if token != SPECIAL.eop]
    return text


def test_pack_offsets_samples():
    tokens = np.arange(20, 30, dtype=np.int32)
    one = infill.build(tokens, [(2, 4)], mask_id=SPECIAL.mask, special=SPECIAL)
    row = infill.pack([one, one], 30, objective="token", source=0, special=SPECIAL)
    assert row.tokens[12:24].tolist() == one.tokens.tolist()
    assert row.kv_end[12:24].tolist() == (one.kv_end + 12).tolist()
    assert row.kv_start[12:24].tolist() == [12] * 12
    assert row.segment.tolist() == [1] * 12 + [2] * 12 + [0] * 6
    assert row.tokens[24:].tolist() == [SPECIAL.pad] * 6


@hypothesis.given(windows())
@hypothesis.settings(max_examples=40, deadline=None)
def test_no_block_positions(window):
    """GLM 2021's --no-block-position: ones in Part B, and nothing else is different."""
    tokens, piece_end, blanks = window
    blanks = Blanks(*(np.array(x) for x in zip(*blanks, strict=True)))
    plain, sample = (
        infill.build_pieces(tokens, piece_end, blanks, mask_id=4, special=SPECIAL, model=model)
        for model in (ModelConfig(), ModelConfig(block_positions=False))
    )
    assert sample.block_position.dtype == np.int32
    expected = plain._replace(block_position=(plain.weights > 0).astype(np.int32))
    for ours, theirs in zip(sample, expected, strict=True):
        assert ours.tolist() == theirs.tolist()
