"""Every kind of row passes the check, and every kind of damage is named with its slot."""

import hashlib
import re

import numpy as np
import pytest

from glm_jax.data.check_rows import check_rows, first_fault
from glm_jax.errors import UserError
from glm_jax.tokenizer import SpecialTokens

SPECIAL = SpecialTokens()
MIXED = {"token_weight": 0.5, "sentence_weight": 0.3, "document_weight": 0.2}

PUBLISHED_ROWS = [
    ({}, "3e540a66d6aacb9c"),
    (MIXED, "46da7d88b1ff948a"),
    ({"span_sampling": "budget"}, "0e1109eeaaef4bef"),
]


@pytest.mark.parametrize(("objective", "expected"), PUBLISHED_ROWS)
def test_rows_of_old_configs_stay_as_they_were(make_config, open_rows, objective, expected):
    """SHA-256 over 200 rows, taken when there were three objectives."""
    rows = open_rows(make_config(**objective))
    digest = hashlib.sha256()
    for index in range(200):
        for field in rows[index]:
            digest.update(field.tobytes())
    assert digest.hexdigest()[:16] == expected


OBJECTIVE_OPTIONS = [
    MIXED,
    {"span_sampling": "budget"},
    MIXED | {"short_sequence_prob": 0.7, "random_position": True, "single_span_prob": 0.3},
    MIXED | {"sample_length": 32, "short_sequence_prob": 0.5, "single_span_prob": 0.5},
    {"block_mask_prob": 0.3, "context_mask_ratio": 0.1, "short_sequence_prob": 0.5},
    {"token_weight": 0.0, "t5_weight": 1.0, "random_position": True},
    {"t5_weight": 1.0, "span_sampling": "budget", "short_sequence_prob": 0.5},
    {"token_weight": 0.0, "causal_weight": 1.0, "prefix_weight": 1.0, "masked_weight": 1.0},
]


@pytest.mark.parametrize("objective", OBJECTIVE_OPTIONS)
def test_rows_hold_their_text(make_config, open_rows, objective):
    check_rows(open_rows(make_config(**objective)), 60, SPECIAL)


@pytest.mark.parametrize(
    ("field", "slot", "value", "fault", "message"),
    [
        ("tokens", 3, 77, 3, "the input is token 77 in place of"),
        ("targets", 126, 77, 127, "the input is token [0-9]+ in place of 77"),
        ("kv_start", 3, 120, 3, "keys 120:[0-9]+ are no range"),
        ("kv_end", 3, 999, 3, "keys 0:999 are no range of a row of 128"),
        ("kv_end", 3, 128, 3, "keys 0:128 reach into another text"),
        ("kv_end", 126, 128, 126, "keys [0-9]+:128 hold an answer that comes after slot 126"),
        ("segment", 3, 2, 0, "keys 0:[0-9]+ reach into another text"),
        ("segment", 127, 0, 127, "padding has keys or a weight"),
    ],
)
def test_damage_is_named(make_config, open_rows, field, slot, value, fault, message):
    rows = open_rows(make_config(sources={"zh": {}}))
    row, window = rows[0], rows.window(0)
    assert first_fault(row, window, SPECIAL) is None
    getattr(row, field)[slot] = value
    found = first_fault(row, window, SPECIAL)
    assert found[0] == fault
    assert re.match(message, found[1])


@pytest.mark.parametrize("objective", ["token", "prefix", "causal", "t5"])
def test_a_context_that_sees_an_answer_is_named(make_config, open_rows, objective):
    weights = {"token_weight": 0.0} | {f"{objective}_weight": 1.0}
    rows = open_rows(make_config(sources={"en": {}}, **weights))
    row, window = rows[0], rows.window(0)
    first_target = int(np.flatnonzero(row.weights)[0])
    row.kv_end[0] = first_target + (1 if objective in ("token", "t5") else 2)
    assert row.segment[row.kv_end[0] - 1] == row.segment[0]
    slot, message = first_fault(row, window, SPECIAL)
    assert slot == 0
    assert "hold an answer that comes after slot 0" in message


def test_another_text_is_noticed(make_config, open_rows):
    rows = open_rows(make_config())
    window = rows.window(0)
    other = window.copy()
    other[5] += 1
    assert "is not token 5 of the stream window" in first_fault(rows[0], other, SPECIAL)[1]
    longer = np.append(window, 30)
    assert f"holds {len(window)} of its {len(longer)}" in first_fault(rows[0], longer, SPECIAL)[1]


def test_a_fault_names_its_row(make_config, open_rows):
    rows = open_rows(make_config())

    class Misread:
        stages = rows.stages
        __getitem__ = staticmethod(rows.__getitem__)

        def window(self, index):
            return rows.window(index + 1 if index == 2 else index)

    with pytest.raises(UserError, match="^row 2, slot [0-9]+: token [0-9]+ is not token [0-9]+ of"):
        check_rows(Misread(), 4, SPECIAL)
