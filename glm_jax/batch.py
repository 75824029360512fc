"""The arrays that flow from the objective to the training step."""

from typing import Any, NamedTuple

import numpy as np

IN_PLACE = ("causal", "prefix", "masked")
"""Objectives without blanks: there is no Part B."""

TEXT_OBJECTIVES = ("token", "sentence", "document", *IN_PLACE, "t5")
"""Names of the objectives of text, which a config weighs."""

OBJECTIVES = (*TEXT_OBJECTIVES, "instruction")
"""Names of all objectives; `Batch.objective` holds an index into this tuple.

`instruction` is the objective of sources of prompts and answers, and theirs alone.
"""


class HostShare(NamedTuple):
    """The parts of every batch that the devices of one host hold.

    Attributes:
      parts: their numbers, ascending.
      count: of the equal parts of a batch, each of consecutive rows.
    """

    parts: tuple[int, ...]
    count: int


WHOLE = HostShare((0,), 1)
"""Of a host that holds all of a batch."""


class Batch(NamedTuple):
    """Samples as arrays: [n] for one sample, [T] for a packed row, [B, T] for a batch.

    Query slot i sees exactly the keys `kv_start[i] <= j < kv_end[i]`; that rule expresses blank
    infilling, prefix LM, causal LM and any packing of them. Targets are aligned with inputs: there
    is no label shift (GLM 2021). The fields are described for blank infilling; the other objectives
    (`glm_jax.objective.in_place`) have no Part B.

    Attributes:
      tokens: int32, inputs. Part A is the corrupted text with its mask tokens, then each span of
        Part B as `sop s1 .. sk`.
      targets: int32, what the slot predicts: `s1 .. sk eop` in Part B, a copy of the input in A.
      weights: float32, 0 in Part A and padding, 1 in Part B.
      position: int32, first coordinate: index in the corrupted text; in Part B, the index of the
        span's mask token, or the place in the sample (`ModelConfig.span_position`).
      block_position: int32, second coordinate: 0 in Part A, 1 .. k+1 inside a span, or 1 all along
        it (`ModelConfig.block_positions`).
      kv_start: int32, first visible key, relative to the row.
      kv_end: int32, one past the last visible key; padding has kv_start == kv_end == 0.
      segment: int32, 1.. for each packed sample, 0 for padding.
      objective: int32, index into OBJECTIVES, constant along a row.
      source: int32, index into the sorted names of the configured sources, constant along a row.
    """

    tokens: Any
    targets: Any
    weights: Any
    position: Any
    block_position: Any
    kv_start: Any
    kv_end: Any
    segment: Any
    objective: Any
    source: Any


def empty_rows(count: int, length: int) -> Batch:
    """A batch of `count` rows of `length` slots to write to: fields [count, length].

    One allocation: NumPy asks for huge pages for large ones, which saves most page faults.
    """
    fields = np.empty((len(Batch._fields), count, length), np.int32)
    rows = Batch(*fields)
    return rows._replace(weights=rows.weights.view(np.float32))
