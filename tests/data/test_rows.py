"""Rows are a pure function of their index, read every token once a pass, and are full."""

import collections
import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from toy_dataset import IS_SENTENCE_END

from glm_jax.batch import OBJECTIVES, TEXT_OBJECTIVES
from glm_jax.config import ObjectiveConfig
from glm_jax.data.reading import describe_rows
from glm_jax.data.rows import Rows, permute
from glm_jax.errors import UserError
from glm_jax.objective.samples import reserved_blanks
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
MIXED = {"token_weight": 0.5, "sentence_weight": 0.3, "document_weight": 0.2}
ONLY = {
    objective: {f"{name}_weight": float(name == objective) for name in TEXT_OBJECTIVES}
    for objective in TEXT_OBJECTIVES
}


def text_of(row) -> list[int]:
    """The stream tokens of a row: its context with every blank filled in."""
    used, objective = row.segment > 0, OBJECTIVES[row.objective[0]]
    if objective in ("causal", "prefix"):
        return row.tokens[used].tolist()
    if objective == "masked":
        return row.targets[used].tolist()
    if objective == "t5":
        return text_of_streams(row)
    text = []
    for segment in range(1, row.segment.max() + 1):
        here = row.segment == segment
        spans = collections.defaultdict(list)
        for slot in np.flatnonzero(here & (row.weights > 0)):
            if row.targets[slot] != SPECIAL.eop:
                spans[row.position[slot]].append(int(row.targets[slot]))
        context = row.tokens[here & (row.weights == 0)]
        for place, token in enumerate(context.tolist()):
            text += spans.get(place, [token])
    return text


def text_of_streams(row) -> list[int]:
    text = []
    for segment in range(1, row.segment.max() + 1):
        here = row.segment == segment
        stream = iter(row.targets[here & (row.weights > 0)].tolist())
        for token in row.tokens[here & (row.weights == 0)].tolist():
            if token != SPECIAL.mask:
                text.append(token)
                continue
            for answer in stream:
                if answer in (SPECIAL.mask, SPECIAL.eop):
                    break
                text.append(answer)
    return text


def without_shuffle(config):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shuffle=False))


def test_a_row_depends_on_its_index_alone(make_config, open_rows):
    one, two = open_rows(make_config(**MIXED)), open_rows(make_config(**MIXED))
    for index in (5, 0, 999_999_999):
        for a, b in zip(one[index], two[index], strict=True):
            assert np.array_equal(a, b)
            assert a.dtype == b.dtype


def test_rows_have_the_positions_and_contexts_of_the_model(make_config, open_rows):
    config = make_config(shuffle_spans=False)
    model = dataclasses.replace(config.model, span_position="slot", context="causal")
    plain = open_rows(config)[0]
    row = open_rows(dataclasses.replace(config, model=model))[0]
    used = row.segment > 0
    slots = np.arange(len(row.tokens))[used]
    assert row.position[used].tolist() == (slots - row.kv_start[used]).tolist()
    assert row.kv_end[used].tolist() == (slots + 1).tolist()
    for name in ("tokens", "targets", "block_position", "kv_start"):
        assert getattr(row, name).tolist() == getattr(plain, name).tolist()


def test_a_row_depends_on_seed_and_pass(make_config, open_rows):
    rows, reseeded = open_rows(make_config()), open_rows(make_config(seed=1))
    assert not np.array_equal(rows[0].tokens, reseeded[0].tokens)
    assert not np.array_equal(rows[0].tokens, rows[len(rows)].tokens)
    with pytest.raises(UserError, match=r"config.seed must not be negative, got -1"):
        open_rows(make_config(seed=-1))


@pytest.mark.parametrize("objective", TEXT_OBJECTIVES)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_pass_reads_every_token_once(dataset, make_config, open_rows, objective, split):
    config = make_config(sources={"zh": {}}, **ONLY[objective])
    rows = open_rows(config, split)
    tokens = dataset.tokens["zh"][split]
    taken = rows.kinds[0].stream_tokens
    texts = [text_of(rows[index]) for index in range(len(rows))]
    assert len(rows) == -(-len(tokens) // taken)
    assert {len(text) for text in texts} == {taken}
    expected = np.resize(tokens, len(rows) * taken)  # the last row starts the next pass
    if split == "validation":
        assert np.concatenate(texts).tolist() == expected.tolist()
    else:
        assert sorted(texts) == sorted(expected.reshape(-1, taken).tolist())
        assert np.concatenate(texts).tolist() != expected.tolist()


def test_sources_of_a_mixture_are_read_in_step(dataset, make_config, open_rows):
    config = make_config(**MIXED)
    rows = open_rows(without_shuffle(config))
    texts = [[], []]
    objectives = collections.Counter()
    for index in range(len(rows)):
        row = rows[index]
        texts[row.source[0]] += text_of(row)
        objectives[OBJECTIVES[row.objective[0]]] += 1
        assert len(set(row.source)) == len(set(row.objective)) == 1
    for text, name in zip(texts, ("en", "zh"), strict=True):
        tokens = dataset.tokens[name]["train"]
        assert len(text) >= len(tokens), "every source is read at least once"
        assert text == np.resize(tokens, len(text)).tolist()
    for name in OBJECTIVES[:3]:
        assert objectives[name] / len(rows) == pytest.approx(MIXED[f"{name}_weight"], abs=0.02)


def test_kinds_are_spread_evenly(make_config, open_rows):
    config = make_config(**MIXED)
    rows = open_rows(without_shuffle(config))
    sources = np.array([rows[index].source[0] for index in range(300)])
    for start in range(0, 300, 30):
        assert sources[start : start + 30].sum() == pytest.approx(20, abs=2)


def test_a_weight_too_small_for_the_cycle(make_config, open_rows):
    sources = {"en": {"weight": 1e-6}, "zh": {"weight": 1.0}}
    with pytest.raises(UserError, match=r"sources.en: its token rows are 1e-06 of all"):
        open_rows(make_config(sources=sources))


def test_describe_names_every_kind(make_config, open_rows):
    table = describe_rows(open_rows(make_config(**MIXED))).splitlines()
    assert len(table) == 1 + 2 * 3
    assert table[1].split() == ["en", "token", "16.67%", "116", "6"]


@pytest.mark.parametrize("length", [256, 512, 2048])
def test_token_rows_mask_the_ratio(make_config, open_rows, length):
    """Full to the slot, with 15 % of the text masked on average."""
    config = make_config(sources={"en": {}}, seq_length=length)
    rows = open_rows(config)
    kind = rows.kinds[0]
    masked = []
    for index in range(200):
        row = rows[index]
        assert (row.segment > 0).all()
        masked.append((row.weights > 0).sum() - kind.max_blanks)
    assert np.mean(masked) / kind.stream_tokens == pytest.approx(0.15, abs=0.006)


@pytest.mark.parametrize(
    ("objective", "sampling", "most"),
    [("token", "budget", 0.05), ("sentence", "fixed", 0.05), ("document", "fixed", 0.05)],
)
def test_padding_of_other_rows_is_small(make_config, open_rows, objective, sampling, most):
    rows = open_rows(make_config(seq_length=256, span_sampling=sampling, **ONLY[objective]))
    padding = np.mean([(rows[index].segment == 0).mean() for index in range(200)])
    assert 0 < padding < most


def test_reserved_blanks_fill_the_row():
    config = ObjectiveConfig()
    assert reserved_blanks("token", config, 512, 100) == 22
    assert reserved_blanks("sentence", config, 512, 100) == 6
    assert reserved_blanks("document", config, 512, 100) == 6
    budget = dataclasses.replace(config, span_sampling="budget")
    assert reserved_blanks("token", budget, 512, 100) == 27


@hypothesis.given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
@hypothesis.settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation(size, seed, number):
    assert sorted(permute(i, size, (seed, number)) for i in range(size)) == list(range(size))


def test_permute_mixes():
    order = np.array([permute(i, 10_000, (0, 0)) for i in range(10_000)])
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert np.mean(order == [permute(i, 10_000, (0, 1)) for i in range(10_000)]) < 0.01


@hypothesis.given(
    st.integers(0, 10**6), st.sampled_from([16, 64, 300]), st.sampled_from(TEXT_OBJECTIVES)
)
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_no_piece_sees_another(make_config, open_rows, index, length, objective):
    row = open_rows(make_config(seq_length=length, **ONLY[objective]))[index]
    for slot in np.flatnonzero(row.segment):
        seen = slice(row.kv_start[slot], row.kv_end[slot])
        assert set(row.segment[seen]) == {row.segment[slot]}
        in_part_b = (row.weights[seen] > 0) & (row.block_position[seen] > 0)
        assert not in_part_b.any() or row.weights[slot] > 0, "Part A never sees Part B"
    text = text_of(row)
    assert text.count(SPECIAL.eos) + (text[-1] != SPECIAL.eos) == row.segment.max()


def test_rows_need_no_more_than_the_streams(dataset, make_config):
    """A document row reserves by the mean document length, which comes from the metadata."""

    class Stream:
        name, length, documents, instructions = "en", 10_000, 10, False

        def read(self, offset, count):
            del offset
            return np.full(count, 30, np.int32)

    rows = Rows(
        make_config(sources={"en": {}}, **ONLY["document"]),
        {"en": Stream()},
        SPECIAL,
        IS_SENTENCE_END,
        "train",
    )
    assert rows.kinds[0].max_blanks == 2
    assert rows[0].weights.sum() > 0


def test_a_share_of_token_rows_has_one_span_per_text(make_config, open_rows):
    rows = open_rows(make_config(single_span_prob=0.3))
    single = 0
    for index in range(300):
        row = rows[index]
        starts = row.segment[(row.weights > 0) & (row.block_position == 1)]
        single += len(starts) == len(set(starts)) and len(starts) < 6
    assert single / 300 == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("objective", ["token", "document", "causal"])
def test_a_share_of_rows_is_cut_into_short_texts(make_config, open_rows, objective):
    """All texts of such a row but those that a document ends have one length of 32 or more."""
    config = make_config(
        sources={"en": {}}, seq_length=256, short_sequence_prob=0.5, **ONLY[objective]
    )
    rows = open_rows(config)
    longest, cut = [], 0
    for index in range(200):
        ends = np.flatnonzero(rows.window(index)[:-1] == SPECIAL.eos)
        texts = int(rows[index].segment.max())
        cut += texts > len(ends) + 1
        if texts > len(ends) + 1:
            longest.append(np.bincount(rows[index].segment)[1:].max())
    assert cut / 200 == pytest.approx(0.5, abs=0.12)
    assert min(longest) >= 32
    assert np.std(longest) > 20, "lengths are drawn for each row"


@pytest.mark.parametrize("name", ["block_mask_prob", "context_mask_ratio"])
def test_noise_needs_its_token(make_config, name):
    special = dataclasses.replace(SPECIAL, dblock=None)
    with pytest.raises(UserError, match=f"config.objective.{name} 0.1 needs a tokenizer with"):
        Rows(make_config(**{name: 0.1}), {}, special, IS_SENTENCE_END, "train")


def test_token_rows_of_several_samples(make_config, open_rows):
    """GLM-130B: four samples in a row, full to the slot; document rows are one."""
    sources = {"en": {}}
    config = make_config(sources=sources, seq_length=256, sample_length=64)
    rows, whole = open_rows(config), open_rows(make_config(sources=sources, seq_length=256))
    taken = rows.kinds[0].stream_tokens
    assert taken == whole.kinds[0].stream_tokens
    for index in range(50):
        window, row = rows.window(index), rows[index]
        ends = set(np.flatnonzero(window == SPECIAL.eos) + 1) | {taken}
        ends |= {part * taken // 4 for part in (1, 2, 3)}
        assert (row.segment > 0).all()
        assert row.segment.max() == len(ends)
    document = make_config(sources=sources, seq_length=256, sample_length=64, **ONLY["document"])
    plain = make_config(sources=sources, seq_length=256, **ONLY["document"])
    for ours, theirs in zip(open_rows(document)[0], open_rows(plain)[0], strict=True):
        assert np.array_equal(ours, theirs)
