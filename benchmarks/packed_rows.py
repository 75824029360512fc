"""Random rows that are packed as training packs them: what the benchmarks measure on."""

import numpy as np

from glm_jax.batch import OBJECTIVES, Batch


def packed_ranges(
    rng: np.random.Generator,
    batch: int,
    length: int,
    documents: int,
    context: tuple[float, float] = (0.5, 0.95),
) -> tuple[np.ndarray, np.ndarray]:
    """Key ranges of full rows; a document is a bidirectional context and a causal rest.

    Args:
      documents: of a row, on average.
      context: the share of a document that is context is drawn between these two.

    Returns:
      kv_start and kv_end, int32 [batch, length] each.
    """
    start, end = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        number = rng.integers(1, 2 * documents - 2) if documents > 1 else 0
        cuts = np.sort(rng.choice(np.arange(1, length), size=number, replace=False))
        for first, last in zip([0, *cuts], [*cuts, length], strict=True):
            slots = np.arange(first, last)
            part_a = int((last - first) * rng.uniform(*context))
            start[row, slots], end[row, slots] = first, np.maximum(first + part_a, slots + 1)
    return start, end


def glm_rows(
    rng: np.random.Generator, batch: int, length: int, documents: int, vocab_size: int
) -> Batch:
    """Random tokens in packed rows without padding: a [gMASK] blank ends each document.

    Context is 70 to 93 % of a document, so about 18.5 % of the slots are targets.
    """
    start, end = packed_ranges(rng, batch, length, documents, context=(0.7, 0.93))
    slot = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
    # The first slot of a document sees its context, and itself where there is none.
    part_a = np.take_along_axis(end, start, axis=1) - start
    place = slot - start
    in_answer = place >= part_a
    segment = 1 + np.cumsum(np.diff(start, axis=1, prepend=0) > 0, axis=1)
    shape = (batch, length)
    return Batch(
        tokens=rng.integers(vocab_size, size=shape, dtype=np.int32),
        targets=rng.integers(vocab_size, size=shape, dtype=np.int32),
        weights=in_answer.astype(np.float32),
        position=np.where(in_answer, np.maximum(part_a - 1, 0), place).astype(np.int32),
        block_position=np.where(in_answer, place - part_a + 1, 0).astype(np.int32),
        kv_start=start,
        kv_end=end,
        segment=segment.astype(np.int32),
        objective=np.full(shape, OBJECTIVES.index("document"), np.int32),
        source=np.zeros(shape, np.int32),
    )
