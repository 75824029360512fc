"""A row as a person reads it: every packed text with its blanks and what stood there."""

import numpy as np
from rich.text import Text

from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.objective.answers import answers
from glm_jax.tokenizer import Tokenizer

_BLANK, _TARGET, _FAINT = "bold yellow", "green", "dim"


def show_row(index: int, row: Batch, source_names: list[str], tokenizer: Tokenizer) -> Text:
    """A headline, then a paragraph for each packed text.

    A blank is shown as `[MASK:n@p=answer]`, n being its place in the order in which the model
    writes the spans and p the position of the answer's first token; k tokens masked in place as
    `[MASK*k=text]`, and a text that is generated from its beginning as `beginning|rest`.

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
    objective = OBJECTIVES[sample.objective[0]]
    if objective in ("causal", "prefix"):
        return _show_continued(sample, tokenizer)
    if objective == "masked":
        return _show_masked(sample, tokenizer)
    return _show_blanks(sample, tokenizer)


def _show_continued(sample: Batch, tokenizer: Tokenizer) -> Text:
    given = len(sample.tokens) - int((sample.weights > 0).sum())
    text = Text(tokenizer.decode(sample.tokens[:given]))
    text.append("|", _BLANK)
    return text.append(tokenizer.decode(sample.tokens[given:]), _TARGET)


def _show_masked(sample: Batch, tokenizer: Tokenizer) -> Text:
    is_masked = sample.weights > 0
    text = Text()
    for run in np.split(np.arange(len(is_masked)), np.flatnonzero(np.diff(is_masked)) + 1):
        if is_masked[run[0]]:
            name = tokenizer.pieces[sample.tokens[run[0]]].strip("[]")
            text.append(f"[{name}{f'*{len(run)}' if len(run) > 1 else ''}=", _BLANK)
            text.append(tokenizer.decode(sample.targets[run]), _TARGET)
            text.append("]", _BLANK)
        else:
            text.append(tokenizer.decode(sample.tokens[run]))
    return text


def _show_blanks(sample: Batch, tokenizer: Tokenizer) -> Text:
    context = np.flatnonzero(sample.weights == 0)
    text = Text()
    start = 0
    filled = answers(sample, tokenizer.special)
    orders = {blank: order for order, blank in enumerate(filled, 1)}
    for blank in sorted(filled):
        text.append(_with_noise(sample.tokens[start:blank], tokenizer))
        name = tokenizer.pieces[sample.tokens[blank]].strip("[]")
        position = sample.position[filled[blank][0]]
        text.append(f"[{name}:{orders[blank]}@{position}=", _BLANK)
        text.append(tokenizer.decode(sample.targets[filled[blank]]), _TARGET)
        text.append("]", _BLANK)
        start = blank + 1
    text.append(_with_noise(sample.tokens[start : len(context)], tokenizer))
    return text


def _with_noise(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text with [dBLOCK] spelled out, which no other control symbol is."""
    noise = tokenizer.special.dblock
    if noise is None:
        return tokenizer.decode(tokens)
    parts = np.split(tokens, np.flatnonzero(tokens == noise))
    return tokenizer.pieces[noise].join(tokenizer.decode(part) for part in parts)
