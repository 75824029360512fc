"""A row as a person reads it: every packed text with its blanks and what stood there."""

import numpy as np
from rich.text import Text

from glm_jax.batch import OBJECTIVES, Batch
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
    context = sample.tokens[sample.block_position == 0]
    names = {getattr(tokenizer.special, name): name for name in ("mask", "smask", "gmask")}
    blanks = np.flatnonzero(np.isin(context, list(names)))
    answers = _answers(sample, blanks, tokenizer)
    text = Text()
    start = 0
    for place in blanks:
        text.append(tokenizer.decode(context[start:place]))
        order, answer = answers[int(place)]
        text.append(f"[{tokenizer.pieces[context[place]].strip('[]')}:{order}=", _BLANK)
        text.append(answer, _TARGET)
        text.append("]", _BLANK)
        start = place + 1
    text.append(tokenizer.decode(context[start:]))
    return text


def _answers(sample: Batch, blanks: np.ndarray, tokenizer: Tokenizer) -> dict[int, tuple[int, str]]:
    """Place of a mask token in Part A -> when its span is written, from 1 on, and the span.

    A span whose position is none of the `blanks` counts slots: those are written in their order.
    """
    starts = np.flatnonzero(sample.block_position == 1)
    ends = np.append(starts, len(sample.tokens))[1:]
    places = sample.position[starts]
    places = places if np.isin(places, blanks).all() else blanks
    return {
        int(place): (order, tokenizer.decode(sample.targets[start:end]))
        for order, (place, start, end) in enumerate(zip(places, starts, ends, strict=True), 1)
    }
