"""Batches hold the same rows for any number of hosts and workers, and from any start."""

import functools
import itertools

import numpy as np
import pytest

from glm_jax.batch import Batch, HostShare
from glm_jax.data import pipeline
from glm_jax.errors import UserError

MIXED = {"token_weight": 0.5, "sentence_weight": 0.3, "document_weight": 0.2}
BATCH_SIZE = 8


@pytest.fixture
def rows(make_config, open_rows):
    return open_rows(make_config(seq_length=64, **MIXED))


def batch_of_eight(start_row: int, number: int) -> range:
    first = start_row + number * BATCH_SIZE
    return range(first, first + BATCH_SIZE)


def first_batches(rows, number, *, start_row=0, parts=(0,), count=1, workers=0) -> list[Batch]:
    batches = pipeline.batches(
        rows,
        functools.partial(batch_of_eight, start_row),
        HostShare(parts, count),
        num_workers=workers,
        prefetch=2,
    )
    try:
        return list(itertools.islice(batches, number))
    finally:
        batches.close()


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for field, a, b in zip(Batch._fields, batch, other, strict=True):
            assert np.array_equal(a, b), field
            assert a.dtype == b.dtype


def test_batches_are_the_rows_in_order(rows):
    for number, batch in enumerate(first_batches(rows, 3)):
        for place in range(BATCH_SIZE):
            row = rows[number * BATCH_SIZE + place]
            assert all(map(np.array_equal, row, (field[place] for field in batch)))


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_share_a_batch(rows, hosts):
    parts = [first_batches(rows, 3, parts=(host,), count=hosts) for host in range(hosts)]
    joined = [Batch(*map(np.concatenate, zip(*p, strict=True))) for p in zip(*parts, strict=True)]
    assert_equal(joined, first_batches(rows, 3))


def test_a_host_may_hold_parts_that_are_apart(rows):
    some = first_batches(rows, 2, parts=(0, 2), count=4)
    wanted = [Batch(*(field[[0, 1, 4, 5]] for field in batch)) for batch in first_batches(rows, 2)]
    assert_equal(some, wanted)


def test_starts_at_any_row(rows):
    assert_equal(first_batches(rows, 4)[2:], first_batches(rows, 2, start_row=2 * BATCH_SIZE))


def test_workers_change_nothing(rows):
    batches = first_batches(rows, 5, start_row=3, workers=2)
    assert {type(field) for field in batches[0]} == {np.ndarray}
    assert_equal(batches, first_batches(rows, 5, start_row=3))


class FaultyRows:
    def build(self, indices):
        raise UserError(f"row {indices[0]} cannot be read")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_keeps_its_type(workers):
    with pytest.raises(UserError, match="row 0 cannot be read"):
        first_batches(FaultyRows(), 1, workers=workers)


def test_indivisible_batch(rows):
    with pytest.raises(ValueError, match="8 rows is not divisible by 3 devices"):
        first_batches(rows, 1, count=3)
