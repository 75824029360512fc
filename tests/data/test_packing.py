"""Rows of whole documents: every token once, few cuts, little padding."""

import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from test_rows import MIXED, ONLY, SPECIAL, text_of, without_shuffle
from toy_dataset import IS_SENTENCE_END, TOKENIZER, write

from glm_jax.batch import TEXT_OBJECTIVES
from glm_jax.config import from_dict, to_dict
from glm_jax.data import sources
from glm_jax.data.check_rows import check_rows
from glm_jax.data.packing import pack_documents
from glm_jax.data.rows import Rows


def with_data(config, **data):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@hypothesis.given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.lists(st.integers(50, 120), min_size=1, max_size=12),
    st.booleans(),
)
def test_packing(sizes, rooms, may_cut):
    scale = max(1, -(-sum(sizes) // sum(rooms)))
    rooms = rooms * scale  # room for all
    rows = pack_documents(np.array(sizes), rooms, may_cut=may_cut)
    for row, room in zip(rows, rooms, strict=True):
        assert sum(part.size for part in row) <= room
        assert row == sorted(row)
    held = {document: [] for document in range(len(sizes))}
    for part in itertools.chain(*rows):
        held[part.document].append((part.start, part.start + part.size))
    for document, ranges in held.items():
        if may_cut:
            ends = [0, *itertools.chain(*sorted(ranges)), sizes[document]]
            assert ends[::2] == ends[1::2], "the parts are the document"
        else:
            assert len(ranges) <= 1


def test_a_document_is_cut_only_where_it_must_be():
    rows = pack_documents(np.array([30, 100, 70, 250]), [100, 100, 100, 100, 50])
    whole = {part.document for row in rows for part in row if part.size in (30, 100, 70)}
    assert {0, 1, 2} <= whole


@pytest.fixture(scope="module")
def natural(tmp_path_factory):
    """Documents of lognormal length, median 100, as one stream."""
    rng = np.random.default_rng(0)
    parts = []
    for length in np.exp(rng.normal(np.log(100), 1.1, 6000)).astype(int).clip(1):
        parts += [[SPECIAL.cls], rng.integers(20, 200, length), [SPECIAL.eos]]
    stream = np.concatenate(parts).astype(np.int32)
    folder = tmp_path_factory.mktemp("natural")
    write(folder, "en", {"train": stream, "validation": stream[:5000]})
    return folder, stream


def open_natural(folder, config):
    config = with_data(config, dir=str(folder), packing="documents")
    config = from_dict(to_dict(config) | {"seed": 3})
    streams = sources.open_sources(config.data, TOKENIZER, "train")
    return Rows(config, streams, SPECIAL, IS_SENTENCE_END, "train")


def test_whole_documents(natural, make_config):
    """Less than 3 % padding, and few documents cut that fit a row."""
    folder, stream = natural
    config = without_shuffle(make_config(sources={"en": {}}, seq_length=512, **MIXED))
    rows = open_natural(folder, config)
    count = 256
    built = [rows[index] for index in range(count)]
    texts = [text_of(row) for row in built]
    taken = rows.taken(count)["en"]
    assert sorted(itertools.chain(*texts)) == sorted(stream[:taken].tolist())
    padding = np.mean([row.segment == 0 for row in built])
    assert padding < 0.03
    starts = sum(text[0] == SPECIAL.cls for text in texts)
    windows = open_natural(folder, config)
    windows = Rows(
        with_data(config, dir=str(folder)), windows.streams, SPECIAL, IS_SENTENCE_END, "train"
    )
    cut = sum(text_of(windows[index])[0] == SPECIAL.cls for index in range(count))
    assert starts > 0.8 * count > 10 * cut


def test_rows_are_not_in_the_order_of_their_documents(natural, make_config):
    """Packing goes by length; batches must not."""
    rows = open_natural(natural[0], make_config(sources={"en": {}}, seq_length=512))
    texts = np.array([rows[index].segment.max() for index in range(8 * 128)]).reshape(8, 4, 32)
    quarters = texts.mean(axis=(0, 2))
    assert quarters.max() < 1.4 * quarters.min()


@pytest.mark.parametrize("objective", TEXT_OBJECTIVES)
def test_rows_of_documents_are_sound(natural, make_config, objective):
    rows = open_natural(natural[0], make_config(sources={"en": {}}, **ONLY[objective]))
    check_rows(rows, 20, SPECIAL)


def test_sources_differ_in_packing(dataset, make_config, open_rows):
    sources_ = {"en": {}, "zh": {"packing": "documents"}}
    rows = open_rows(without_shuffle(make_config(sources=sources_)))
    texts = {0: [], 1: []}
    for index in range(40):
        texts[int(rows[index].source[0])].append(text_of(rows[index]))
    windows = list(itertools.chain(*texts[0]))
    assert windows == dataset.tokens["en"]["train"][: len(windows)].tolist()
    whole = [text for text in texts[1] if text[0] == SPECIAL.cls and text[-1] == SPECIAL.eos]
    assert len(whole) > 12


def test_groups_end_with_their_stage(dataset, make_config, open_rows):
    config = with_data(make_config(sources={"en": {}, "zh": {}}), packing="documents")
    values = to_dict(config)
    values["training"]["batch_size"] = 3
    stages = {"first": {}, "second": {"from_step": 7, "source_weights": {"zh": 1.0}}}
    rows = open_rows(from_dict(values | {"stages": stages}))
    read = [token for i in range(21) if rows[i].source[0] for token in text_of(rows[i])]
    taken = rows.taken(21)["zh"]
    stream = np.resize(dataset.tokens["zh"]["train"], taken)
    assert sorted(read) == sorted(stream.tolist())
    tokens = sorted(token for i in range(21, 149) for token in text_of(rows[i]))
    later = rows.taken(149)["zh"]
    assert tokens == sorted(np.resize(dataset.tokens["zh"]["train"], later)[taken:].tolist())
