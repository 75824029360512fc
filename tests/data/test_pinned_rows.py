"""Rows are the same bytes from one version of this package to the next.

A run that was stopped goes on with a later version, and must not see other rows. Where a change of
rows is meant, say so in its commit and pin the new digests; NumPy promises the streams of its
generators within a version only, so a new NumPy may be a reason too.
"""

import hashlib

import numpy as np
import pytest

from glm_jax.batch import TEXT_OBJECTIVES

ROWS = [*range(60), *range(10_000, 10_020), *range(10**9, 10**9 + 20)]
CASES = {
    **{objective: {f"{objective}_weight": 1.0} for objective in TEXT_OBJECTIVES},
    "mixture": {
        "token_weight": 0.4,
        "sentence_weight": 0.3,
        "document_weight": 0.2,
        "causal_weight": 0.1,
    },
    "budget": {"token_weight": 1.0, "span_sampling": "budget", "shuffle_spans": False},
    "noise": {"token_weight": 1.0, "block_mask_prob": 0.2, "context_mask_ratio": 0.1},
    "short texts": {
        "token_weight": 0.5,
        "document_weight": 0.3,
        "masked_weight": 0.2,
        "short_sequence_prob": 0.5,
        "single_span_prob": 0.3,
        "random_position": True,
    },
    "several samples": {"token_weight": 0.7, "sentence_weight": 0.3, "sample_length": 32},
}
DIGESTS = {
    ("token", 64): "2ba0192be733b944",
    ("token", 512): "e8124b2fa33f5eed",
    ("sentence", 64): "d131a66023482ede",
    ("sentence", 512): "a8ce2ce3f340cd4e",
    ("document", 64): "9958d3e9100f454d",
    ("document", 512): "88d3af8ad4adf5cc",
    ("causal", 64): "05eae99c3b49d329",
    ("causal", 512): "91022f6b130058e8",
    ("prefix", 64): "be291869decc35fe",
    ("prefix", 512): "79fb36099c713b72",
    ("masked", 64): "99b6b11d66ac4b91",
    ("masked", 512): "c38c336e2ae147cf",
    ("t5", 64): "ac6919966769504a",
    ("t5", 512): "cb8f3d194cd542cc",
    ("mixture", 64): "871a3a9e03c49b98",
    ("mixture", 512): "143db8703253d181",
    ("budget", 64): "4b614e1648a768e2",
    ("budget", 512): "a20f44fcee14772b",
    ("noise", 64): "e8c845c28c24e1ee",
    ("noise", 512): "a56f5d0e145ef8d0",
    ("short texts", 64): "2caff3f569d347dd",
    ("short texts", 512): "60e5b630ba7af2f7",
    ("several samples", 64): "a45ba55eec281386",
    ("several samples", 512): "44a06d08658abdfc",
}


@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("case", CASES)
def test_rows_do_not_change(make_config, open_rows, case, length):
    rows = open_rows(make_config(seq_length=length, **{"token_weight": 0.0} | CASES[case]))
    digest, together = hashlib.sha256(), rows.build(ROWS)
    for place, index in enumerate(ROWS):
        for field, fields in zip(rows[index], together, strict=True):
            assert np.array_equal(field, fields[place]), "a row does not depend on its company"
            digest.update(f"{field.dtype}{field.shape}".encode() + field.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[case, length]
