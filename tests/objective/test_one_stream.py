"""Span corruption of T5: every text's answers in one stream, against a slow obvious version."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from glm_jax.config import ObjectiveConfig
from glm_jax.objective import infill
from glm_jax.objective.one_stream import one_stream
from glm_jax.objective.spans import split_pieces, token_spans
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
MASK, SOP, EOP = SPECIAL.mask, SPECIAL.sop, SPECIAL.eop


def test_the_example_of_the_paper():
    """`Thank you <X> me to your party <Y> week .` -> `<X> for inviting <Y> last <Z>` (figure 2)."""
    thank, you, for_, inviting, me, to, your, party, last, week, stop = range(100, 111)
    text = [thank, you, for_, inviting, me, to, your, party, last, week, stop]
    sample = infill.build(np.array(text, np.int32), [(2, 4), (8, 9)], mask_id=MASK, special=SPECIAL)
    row = one_stream(sample, SPECIAL)
    context = [thank, you, MASK, me, to, your, party, MASK, week, stop]
    assert row.tokens.tolist() == [*context, SOP, for_, inviting, MASK, last]
    assert row.targets.tolist() == [*context, for_, inviting, MASK, last, EOP]
    assert row.weights.tolist() == [0] * 10 + [1] * 5
    assert row.position.tolist() == list(range(15))
    assert row.block_position.tolist() == [0] * 10 + [1, 2, 3, 4, 5]
    assert row.kv_end.tolist() == [10] * 10 + [11, 12, 13, 14, 15]


@hypothesis.given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 1000)
)
@hypothesis.settings(max_examples=80, deadline=None)
def test_every_text_has_one_stream(lengths, max_blanks, seed):
    rng = np.random.default_rng(seed)
    documents = [[SPECIAL.cls, *rng.integers(20, 200, n), SPECIAL.eos] for n in lengths]
    tokens = np.concatenate(documents).astype(np.int32)
    pieces = split_pieces(tokens, SPECIAL)
    config = ObjectiveConfig(shuffle_spans=False)
    blanks = token_spans([rng], pieces, np.array([max_blanks]), config)
    samples = infill.build_pieces(tokens, pieces.end, blanks, mask_id=MASK, special=SPECIAL)
    row = one_stream(samples, SPECIAL)
    for field in row._fields:
        assert getattr(row, field).dtype == getattr(samples, field).dtype
    slot = 0
    for piece, (start, end) in enumerate(zip(pieces.start, pieces.end, strict=True), 1):
        spans = [(a, b) for a, b in zip(blanks.start, blanks.end, strict=True) if start <= a < end]
        context, stream, at = [], [], start
        for a, b in sorted(spans):
            context += [*tokens[at:a], MASK]
            stream += [*tokens[a:b], MASK]
            at = b
        context += [*tokens[at:end]]
        inputs = [*context, *([SOP, *stream[:-1]] if stream else [])]
        targets = [*context, *([*stream[:-1], EOP] if stream else [])]
        here = slice(slot, slot + len(inputs))
        assert row.tokens[here].tolist() == inputs
        assert row.targets[here].tolist() == targets
        assert row.position[here].tolist() == list(range(len(inputs)))
        counted = list(range(1, len(stream) + 1))
        assert row.block_position[here].tolist() == [0] * len(context) + counted
        assert set(row.segment[here]) == {piece}
        slot = here.stop
    assert slot == len(row.tokens)
