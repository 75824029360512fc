"""What GLM 2021 does to finished samples: [dBLOCK] noise in the inputs, positions that are shifted.

All take and return the samples of a window (fields [n], segments 1..P) and leave targets alone.
"""

import numpy as np

from glm_jax.batch import Batch
from glm_jax.tokenizer import SpecialTokens

_NEAR = 3  # tokens on each side of a blank that context noise may fall on, as published


def noise_in_answers(
    rng: np.random.Generator, samples: Batch, probability: float, special: SpecialTokens
) -> Batch:
    """Each input token of an answer becomes [dBLOCK] with `probability`; its sop stays."""
    is_answer = (samples.weights > 0) & (samples.tokens != special.sop)
    is_noise = is_answer & (rng.random(len(is_answer)) < probability)
    return _with_noise(samples, np.flatnonzero(is_noise), special)


def noise_near_blanks(
    rng: np.random.Generator, samples: Batch, count: int, special: SpecialTokens
) -> Batch:
    """`count` context tokens, or all there are, within three of a blank become [dBLOCK].

    Neither a mask token, nor [CLS], nor an eos does.
    """
    in_context = samples.weights == 0
    blanks = np.flatnonzero(in_context & (samples.tokens == special.mask))
    offsets = np.concatenate((np.arange(-_NEAR, 0), np.arange(1, _NEAR + 1)))
    near = blanks[:, None] + offsets
    is_inside = (near >= 0) & (near < len(in_context))
    near = np.where(is_inside, near, blanks[:, None])
    is_inside &= samples.segment[near] == samples.segment[blanks][:, None]
    places = np.unique(near[is_inside])
    control = (special.mask, special.eos, *special.start)
    places = places[in_context[places] & ~np.isin(samples.tokens[places], control)]
    chosen = rng.choice(places, min(count, len(places)), replace=False)
    return _with_noise(samples, chosen, special)


def shift_positions(rng: np.random.Generator, samples: Batch, max_positions: int) -> Batch:
    """Adds one random number to all positions of a piece, so that the last is < `max_positions`.

    The published `--random-position`, so that late rows of a learned table are trained as well.
    """
    first = np.flatnonzero(np.diff(samples.segment, prepend=0))
    last = np.maximum.reduceat(samples.position, first)
    shift = rng.integers(0, max_positions - last, dtype=np.int32)
    return samples._replace(position=samples.position + shift[samples.segment - 1])


def _with_noise(samples: Batch, slots: np.ndarray, special: SpecialTokens) -> Batch:
    tokens = samples.tokens.copy()
    tokens[slots] = special.dblock
    return samples._replace(tokens=tokens)
