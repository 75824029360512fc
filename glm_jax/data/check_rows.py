"""Proves of built rows that they hold their text whole and that no slot sees what it must not."""

from collections.abc import Iterator

import numpy as np

from glm_jax.batch import IN_PLACE, OBJECTIVES, Batch
from glm_jax.data.rows import Rows
from glm_jax.errors import UserError
from glm_jax.objective.answers import answers
from glm_jax.tokenizer import SpecialTokens

Fault = tuple[int, str]
"""A slot, and what is wrong there."""


def check_rows(rows: Rows, count: int, special: SpecialTokens) -> None:
    """Checks the first `count` rows of every stage, or all it has.

    Raises:
      UserError: the first fault, with its row and slot; or a source cannot be read.
    """
    for stage in rows.stages:
        num_rows = count if stage.num_rows is None else min(count, stage.num_rows)
        for index in range(stage.first_row, stage.first_row + num_rows):
            fault = first_fault(rows[index], rows.window(index), special)
            if fault:
                slot, message = fault
                raise UserError(f"row {index}, slot {slot}: {message}")


def first_fault(row: Batch, window: np.ndarray, special: SpecialTokens) -> Fault | None:
    """The first fault of a row [T], or None.

    Args:
      window: int32 [S], the stream tokens that the row was built from.
    """
    visibility = next(_faults_of_visibility(row), None)
    return visibility or next(_faults_of_text(row, window, special), None)


def _faults_of_visibility(row: Batch) -> Iterator[Fault]:
    """Weights are finite; padding comes last and sees nothing; others see no answer to come."""
    used = int((row.segment > 0).sum())
    is_masked, context_end = _is_masked(row), _context_ends(row)
    for slot in range(len(row.tokens)):
        start, end = int(row.kv_start[slot]), int(row.kv_end[slot])
        if not 0 <= row.weights[slot] < np.inf:
            yield slot, f"the weight is {row.weights[slot]}"
        elif (row.segment[slot] > 0) != (slot < used):
            yield slot, "padding stands before a text"
        elif slot >= used:
            if start or end or row.weights[slot]:
                yield slot, "padding has keys or a weight"
        elif not 0 <= start < end <= len(row.tokens):
            yield slot, f"keys {start}:{end} are no range of a row of {len(row.tokens)}"
        elif (row.segment[start:end] != row.segment[slot]).any():
            yield slot, f"keys {start}:{end} reach into another text"
        elif not is_masked and end > max(slot + 1, context_end[row.segment[slot]]):
            yield slot, f"keys {start}:{end} hold an answer that comes after slot {slot}"


def _context_ends(row: Batch) -> dict[int, int]:
    """By segment, one past the slots that all of the text may see: those before any answer."""
    ends = {}
    for segment in set(row.segment.tolist()):
        targets = np.flatnonzero((row.segment == segment) & (row.weights > 0))
        # In place, the input of the first slot that predicts is the last token of the context.
        ends[segment] = int(targets[0]) + _is_in_place(row) if len(targets) else len(row.tokens)
    return ends


def _faults_of_text(row: Batch, window: np.ndarray, special: SpecialTokens) -> Iterator[Fault]:
    """Context and targets, put together, are the window; no text goes on after an eos."""
    read = 0
    for segment in range(1, int(row.segment.max()) + 1):
        slots = np.flatnonzero(row.segment == segment)
        text = Batch(*(field[slots] for field in row))
        for slot, message in _faults_of_inputs(text, special):
            yield int(slots[slot]), message
        ended = False
        for slot, token in _recovered(text, special):
            if ended:
                yield int(slots[slot]), "a text goes on after its eos"
            if read == len(window) or token != window[read]:
                yield int(slots[slot]), f"token {token} is not token {read} of the stream window"
            read, ended = read + 1, token == special.eos
    if read < len(window):
        yield len(row.tokens) - 1, f"the row holds {read} of its {len(window)} stream tokens"


def _is_masked(row: Batch) -> bool:
    """Whether targets stand in place of masks, which may see all of their text."""
    return OBJECTIVES[row.objective[0]] == "masked"


def _faults_of_inputs(text: Batch, special: SpecialTokens) -> Iterator[Fault]:
    """Inputs are the mask of a target in place, the target before, or else the slot's own."""
    if _is_masked(text):
        expected = np.where(text.weights > 0, special.mask, text.targets)
    elif _is_in_place(text):
        is_predicted = np.append(False, text.weights[:-1] > 0)
        expected = np.where(is_predicted, np.roll(text.targets, 1), text.targets)
        # The first slot that predicts is not predicted, and its target is not its input.
        first = np.flatnonzero(text.weights)[:1]
        expected[first] = text.tokens[first]
    else:
        expected = np.where(text.weights > 0, np.roll(text.targets, 1), text.targets)
        is_stream = OBJECTIVES[text.objective[0]] == "t5"
        for number, span in enumerate(answers(text, special).values()):
            if number == 0 or not is_stream:
                expected[span[0]] = special.sop
    is_noise = text.tokens == special.dblock if special.dblock is not None else False
    is_control = np.isin(expected, (special.sop, special.mask, special.eos, *special.start))
    for slot in np.flatnonzero((text.tokens != expected) & ~(is_noise & ~is_control)):
        yield int(slot), f"the input is token {text.tokens[slot]} in place of {expected[slot]}"


def _is_in_place(text: Batch) -> bool:
    return OBJECTIVES[text.objective[0]] in IN_PLACE


def _recovered(text: Batch, special: SpecialTokens) -> Iterator[tuple[int, int]]:
    """Slot and token of one text, every blank filled with its answer."""
    if _is_in_place(text):
        yield from enumerate((text.targets if _is_masked(text) else text.tokens).tolist())
        return
    filled = answers(text, special)
    if OBJECTIVES[text.objective[0]] == "instruction":
        yield from _recovered_example(text, filled, special)
        return
    ends = (special.eop, special.mask)
    for slot in np.flatnonzero(text.weights == 0).tolist():
        if slot not in filled:
            yield slot, int(text.targets[slot])
            continue
        for place in filled[slot].tolist():
            if text.targets[place] not in ends:
                yield place, int(text.targets[place])


def _recovered_example(
    text: Batch, filled: dict[int, np.ndarray], special: SpecialTokens
) -> Iterator[tuple[int, int]]:
    """The prompt with its mask, then the answer, and an eos where the stream has it."""
    for slot in np.flatnonzero(text.weights == 0).tolist():
        yield slot, int(text.targets[slot])
    (answer,) = filled.values()
    for place in answer.tolist():
        token = int(text.targets[place])
        yield place, special.eos if token == special.eop else token
