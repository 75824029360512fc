"""A row as a person reads it: every packed text with its blanks and what stood there."""

import numpy as np
from rich.text import Text

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.objective.answers import answers
from glm_jax.tokenizer import Tokenizer

_BLANK, _TARGET, _FAINT = "bold yellow", "green", "dim"


def show_row(index: int, row: Batch, source_names: list[str], tokenizer: Tokenizer) -> Text:
    """A headline, then a paragraph for each packed text.

    A blank is shown as `[MASK:n=answer]`, n being its place in the order in which the model writes
    the spans.

    Args:
      row: fields [T].
    """
    used, targets = int((row.segment > 0).sum()), int((row.weights > 0).sum())
    objective = OBJECTIVES[row.objective[0]]
    text = Text(
        f"row {index}  {source_names[row.source[0]]}, {objective}: {used} of {len(row.tokens)} "
        f"slots, {targets} targets, {row.segment.max()} texts\n",
        style="bold",
    )
    for segment in range(1, int(row.segment.max()) + 1):
        here = row.segment == segment
        text.append(f"{segment} ", _FAINT)
        text.append_text(_show_text(Batch(*(field[here] for field in row)), tokenizer))
        text.append("\n")
    return text


def _show_text(sample: Batch, tokenizer: Tokenizer) -> Text:
    context = np.flatnonzero(sample.weights == 0)
    text = Text()
    start = 0
    filled = answers(sample, tokenizer.special)
    orders = {blank: order for order, blank in enumerate(filled, 1)}
    for blank in sorted(filled):
        text.append(tokenizer.decode(sample.tokens[start:blank]))
        name = tokenizer.pieces[sample.tokens[blank]].strip("[]")
        text.append(f"[{name}:{orders[blank]}=", _BLANK)
        text.append(tokenizer.decode(sample.targets[filled[blank]]), _TARGET)
        text.append("]", _BLANK)
        start = blank + 1
    text.append(tokenizer.decode(sample.tokens[start : len(context)]))
    return text
