"""Rows of prompts and answers: whole examples, the answer predicted, nothing else."""

import dataclasses

import numpy as np
import pytest
from test_rows import SPECIAL
from toy_dataset import IS_SENTENCE_END

from glm_jax.batch import OBJECTIVES
from glm_jax.data.check_rows import check_rows, first_fault
from glm_jax.data.rows import Rows
from glm_jax.model.presets import preset
from glm_jax.objective import instruction
from glm_jax.objective.answers import answers
from glm_jax.objective.spans import split_pieces


class Examples:
    """A stream of prompts and answers."""

    name, language, instructions = "en", "en", True

    def __init__(self, prompts, seed=0):
        rng = np.random.default_rng(seed)
        self.examples = []
        for size in prompts:
            prompt, answer = rng.integers(20, 200, size), rng.integers(20, 200, 1 + size // 3)
            parts = ([SPECIAL.cls], prompt, [SPECIAL.mask], answer, [SPECIAL.eos])
            self.examples.append(np.concatenate(parts).astype(np.int32))
        self.tokens = np.concatenate(self.examples)
        self.length, self.documents = len(self.tokens), len(self.examples)

    def read(self, offset, count):
        return self.tokens[np.arange(offset, offset + count) % self.length]


def open_rows(config, stream, split="train") -> Rows:
    data = dataclasses.replace(config.data, packing_rows=16, packing_fill=0.95)
    config = dataclasses.replace(config, data=data)
    return Rows(config, {"en": stream}, SPECIAL, IS_SENTENCE_END, split)


def example(prompt: int, answer: int) -> np.ndarray:
    parts = ([SPECIAL.cls], np.arange(20, 20 + prompt), [SPECIAL.mask])
    parts += (np.arange(100, 100 + answer), [SPECIAL.eos])
    return np.concatenate(parts).astype(np.int32)


def test_an_example_as_arrays(make_config):
    tokens = np.concatenate((example(3, 2), example(1, 1)))
    sample = instruction.build(
        tokens, split_pieces(tokens, SPECIAL), SPECIAL, make_config().model, len(tokens)
    )
    cls, mask, sop, eop = SPECIAL.cls, SPECIAL.mask, SPECIAL.sop, SPECIAL.eop
    assert sample.tokens.tolist() == [cls, 20, 21, 22, mask, sop, 100, 101, cls, 20, mask, sop, 100]
    assert sample.targets[sample.weights > 0].tolist() == [100, 101, eop, 100, eop]
    assert sample.position.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 2, 2, 2]
    assert sample.block_position.tolist() == [0] * 5 + [1, 2, 3] + [0] * 3 + [1, 2]
    assert sample.kv_end.tolist() == [5] * 5 + [6, 7, 8] + [11] * 3 + [12, 13]


def test_glm_130b_counts_answers_on(make_config):
    tokens = example(3, 2)
    model = preset("glm_130b")
    sample = instruction.build(tokens, split_pieces(tokens, SPECIAL), SPECIAL, model, len(tokens))
    assert sample.position.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("prompt", "answer", "room", "kept"),
    [
        (30, 10, 43, (30, 10, True)),  # all of it
        (30, 10, 33, (20, 10, True)),  # the prompt loses its beginning
        (30, 100, 40, (10, 28, False)),  # it keeps a quarter, the answer loses its end
        (4, 100, 40, (4, 34, False)),
    ],
)
def test_shortened_examples(prompt, answer, room, kept):
    short = instruction.shorten(example(prompt, answer), room, SPECIAL).tolist()
    mask = short.index(SPECIAL.mask)
    ends = short[-1] == SPECIAL.eos
    assert len(short) <= room
    assert (mask - 1, len(short) - mask - 1 - ends, ends) == kept
    assert short[mask - 1] == 20 + prompt - 1
    assert short[mask + 1] == 100
    assert instruction.shorten(example(30, 30), 15, SPECIAL).tolist() == []


def test_every_example_is_in_one_row(make_config):
    stream = Examples(np.random.default_rng(1).integers(1, 60, 400))
    rows = open_rows(make_config(sources={"en": {}}), stream)
    assert [kind.objective for kind in rows.kinds] == ["instruction"]
    read = []
    for index in range(len(rows) + 20):
        row = rows[index]
        assert OBJECTIVES[row.objective[0]] == "instruction"
        for segment in range(1, row.segment.max() + 1):
            here = row.segment == segment
            text = [field[here] for field in row]
            context = text[0][text[2] == 0].tolist()
            read.append((*context, *text[1][text[2] > 0].tolist()))
    expected = {(*e[:-1].tolist(), SPECIAL.eop) for e in stream.examples}
    assert set(read) == expected
    padding = np.mean([rows[index].segment == 0 for index in range(64)])
    assert padding == pytest.approx(0.05, abs=0.01)  # what packing_fill leaves


@pytest.mark.parametrize("sizes", ["same", "spread"])
@pytest.mark.parametrize("length", [300, 201, 349])
def test_examples_that_fit_a_row_are_whole(make_config, length, sizes):
    """Whatever room their length leaves in the rows of 512."""
    rng = np.random.default_rng(0)
    prompts = np.full(1500, length * 3 // 4)
    if sizes == "spread":
        prompts = np.exp(rng.normal(np.log(prompts), 0.5)).astype(int).clip(1, 380)
    config = make_config(sources={"en": {}}, seq_length=512)
    stream = Examples(prompts)
    rows = Rows(config, {"en": stream}, SPECIAL, IS_SENTENCE_END, "train")
    lane = rows.stages[0].mixture.lanes["en"]
    whole = {tuple(example.tolist()) for example in stream.examples}
    read = []
    for rank in range(3 * 128):
        window = lane.read(rank)
        read += [tuple(part.tolist()) for part in np.split(window.tokens, window.ends[:-1])]
    assert np.mean([example in whole for example in filter(None, read)]) > 0.995
    taken = lane.taken(3 * 128)
    assert sum(map(len, read)) == pytest.approx(taken, rel=0.01)


def test_rows_of_examples_are_sound(make_config):
    """Also where an example is longer than a row."""
    stream = Examples([5, 300, 40, 2, 80, 1000, 3] * 9)
    rows = open_rows(make_config(sources={"en": {}}), stream)
    check_rows(rows, 30, SPECIAL)
    row = rows[0]
    text = [slot for span in answers(row, SPECIAL).values() for slot in span]
    assert len(text) == row.weights.sum()


def test_a_fault_in_a_row_of_examples_is_found(make_config):
    rows = open_rows(make_config(sources={"en": {}}), Examples([20] * 60))
    row = rows[3]
    assert first_fault(row, rows.window(3), SPECIAL) is None
    row.targets[int(np.flatnonzero(row.weights)[2])] += 1
    assert first_fault(row, rows.window(3), SPECIAL) is not None
