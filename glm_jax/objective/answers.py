"""Which targets of a text fill which of its blanks."""

import numpy as np

from glm_jax.batch import Batch
from glm_jax.tokenizer import SpecialTokens


def answers(text: Batch, special: SpecialTokens) -> dict[int, np.ndarray]:
    """Slot of each blank -> slots of its answer, in the order in which the answers are written.

    An answer begins with its sop, or with the mask token that separates it in a stream (t5). It
    fills the blank whose position it has; where answers have positions of their own, they
    follow in the order of the blanks.

    Args:
      text: fields [n] of one segment: Part A, then Part B.
    """
    mask_ids = (special.mask, special.smask, special.gmask)
    context, part_b = np.flatnonzero(text.weights == 0), np.flatnonzero(text.weights)
    blanks = context[np.isin(text.targets[context], mask_ids)]
    starts = np.flatnonzero(np.isin(text.tokens[part_b], (special.sop, *mask_ids)))
    spans = np.split(part_b, starts)[1:]
    blank_at = dict(zip(text.position[blanks].tolist(), blanks.tolist(), strict=True))
    places = [blank_at.get(int(text.position[span[0]])) for span in spans]
    return dict(zip(blanks.tolist() if None in places else places, spans, strict=False))
