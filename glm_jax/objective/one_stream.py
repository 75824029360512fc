"""T5's span corruption (arXiv 1910.10683): all answers of a text in one stream."""

import numpy as np

from glm_jax.batch import Batch
from glm_jax.tokenizer import SpecialTokens


def one_stream(samples: Batch, special: SpecialTokens) -> Batch:
    """The answers of each text as `s1 .. sk [MASK] t1 .. tj eop`, in the order of the blanks.

    T5 has a hundred sentinels, of which each blank gets one and which stand before the answers. GLM
    vocabularies have none: the mask token is every sentinel, the place in the order says which
    blank is meant, and the first, which says nothing, is the sop of the stream. A stream is counted
    through: first coordinates go on from Part A, the second from 1.

    Args:
      samples: what `infill.build_pieces` makes of [MASK] blanks in ascending order that all end in
        eop; fields [n], or [R, T].
    """
    in_stream = samples.weights > 0
    slot = np.arange(in_stream.shape[-1], dtype=np.int32)
    starts_answer = in_stream & (samples.tokens == special.sop)
    starts_stream = in_stream & ~_shifted(in_stream, 1)
    starts_later = starts_answer & ~starts_stream
    ends_earlier = _shifted(starts_later, -1)
    stream_start = np.maximum.accumulate(np.where(starts_stream, slot, 0), axis=-1)
    return samples._replace(
        tokens=np.where(starts_later, np.int32(special.mask), samples.tokens),
        targets=np.where(ends_earlier, np.int32(special.mask), samples.targets),
        position=np.where(samples.segment > 0, slot - samples.kv_start, 0),
        block_position=in_stream * (slot - stream_start + 1),
    )


def _shifted(flags: np.ndarray, by: int) -> np.ndarray:
    """`flags` [..., T] moved along a row; what falls off one end is False: it begins with text."""
    return np.roll(flags, by, axis=-1)
