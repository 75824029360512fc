"""Texts with blanks as the rows of a GLM: positions, visible keys, and answers put back."""

import re
from dataclasses import dataclass, field

import torch

_BLANK = re.compile(r"\s*(\[MASK\]|\[sMASK\]|\[gMASK\])")
_NAMES = ("[MASK]", "[sMASK]", "[gMASK]")


@dataclass
class FilledText:
    """One text with its blanks filled.

    Attributes:
      text: the text with the answers in place of its blanks.
      answers: one string for each blank, from left to right.
      token_ids: the generated ids of each answer, without the token that ended it.
    """

    text: str
    answers: list[str]
    token_ids: list[list[int]]


def default_attention_mask(input_ids, config):
    """int64 [B, T], 0 at padding; all 1 where <pad> is also the end of a document, or missing."""
    if config.pad_token_id in (None, config.eos_token_id):
        return torch.ones_like(input_ids)
    return (input_ids != config.pad_token_id).long()


def answers_in_slots(mask_token_id, config):
    """Whether the answer to a blank has its places in the row as positions: bool, or a tensor."""
    is_document = mask_token_id == config.mask_token_ids[-1]
    return {"blank": is_document & False, "slot": is_document | True, "mixed": is_document}[
        config.span_position
    ]


def blank_positions(input_ids, valid, config):
    """Position ids of rows whose answers follow the context in the order of its blanks.

    Args:
      input_ids: int64 [B, T].
      valid: bool [B, T], False at padding.

    Returns:
      int64 [B, 2, T]: position and block position (GLM 2021, section 2.2).

    Raises:
      ValueError: a row has more answers than blanks.
    """
    slot = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    is_sop = (input_ids == config.sop_token_id) & valid
    answer = is_sop.cumsum(1)  # 0 in the context, k in the k-th answer
    in_context = answer == 0
    position = (valid.cumsum(1) - 1).clamp(min=0)

    masks = torch.tensor(config.mask_token_ids, device=input_ids.device)
    is_blank = torch.isin(input_ids, masks) & in_context & valid
    if (answer[:, -1] > is_blank.sum(1)).any():
        raise ValueError("a row has more <sop> than blanks ([MASK], [sMASK], [gMASK]) before them")
    blanks = slot.masked_fill(~is_blank, input_ids.shape[1] - 1).sort(1).values
    blank = blanks.gather(1, (answer - 1).clamp(min=0))

    last_sop = slot.masked_fill(~is_sop, 0).cummax(1).values
    in_slots = answers_in_slots(input_ids.gather(1, blank), config)
    position = torch.where(in_context | in_slots, position, position.gather(1, blank))
    block_position = torch.where(in_context, 0, slot - last_sop + 1)
    return torch.stack([position, block_position], dim=1)


def has_open_answer(input_ids, valid, config):
    """Rows that go on where they end: bool [B].

    They end in <sop>, or every blank of theirs has an answer. A causal model also goes on with a
    text that has no blanks.
    """
    is_sop = (input_ids == config.sop_token_id) & valid
    num_answers = is_sop.sum(1)
    masks = torch.tensor(config.mask_token_ids, device=input_ids.device)
    num_blanks = (torch.isin(input_ids, masks) & (is_sop.cumsum(1) == 0) & valid).sum(1)
    all_answered = (num_answers == num_blanks) & ((num_answers > 0) | (config.context == "causal"))
    return all_answered | is_sop[:, -1]


def position_step(input_ids, valid, position_ids, config):
    """How far apart the positions of a row's next tokens are: int64 [B, 2].

    An answer has the position of its mask token, which is one of the context's, or counts on.
    """
    answer = ((input_ids == config.sop_token_id) & valid).cumsum(1)
    context_length = ((answer == 0) & valid).sum(1)
    counts = (position_ids[:, 0, -1] >= context_length) | (answer[:, -1] == 0)
    return torch.stack([counts.long(), torch.ones_like(context_length)], dim=1)


def default_key_ranges(input_ids, valid, config, num_cached):
    """Key ranges of rows that hold one text each: answers causal, the context as the config says.

    Tokens after a cache are causal: a bidirectional context is one call, before all answers.

    Returns:
      kv_start, kv_end: int64 [B, T]; slot i sees keys kv_start <= j < kv_end.
    """
    end = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device) + num_cached
    end = end.expand_as(input_ids)
    if num_cached == 0 and config.context == "bidirectional":
        in_context = ((input_ids == config.sop_token_id) & valid).cumsum(1) == 0
        end = torch.where(in_context, in_context.sum(1, keepdim=True), end)
    return torch.zeros_like(end), end


@dataclass
class Row:
    """A text under way: its context, then the answers so far."""

    segments: list[str]  # the text around the blanks
    blanks: list[int]  # index of each blank in the context
    in_slots: list[bool]  # of each blank, see `answers_in_slots`
    ids: list[int]
    positions: list[tuple[int, int]]
    answers: list[list[int]] = field(default_factory=list)

    @classmethod
    def read(cls, text, tokenizer, config):
        first, *rest = _BLANK.split(text)
        names, segments = rest[::2], [first, *rest[1::2]]
        if not names:
            raise ValueError(f"no blank ([MASK], [sMASK] or [gMASK]) in {text!r}")
        ids, blanks = [] if config.cls_token_id is None else [config.cls_token_id], []
        for name, segment in zip([None, *names], segments, strict=True):
            if name is not None:
                blanks.append(len(ids))
                ids.append(config.mask_token_ids[_NAMES.index(name)])
            ids += tokenizer(segment, add_special_tokens=False, split_special_tokens=True).input_ids
        if ids[-1] != config.mask_token_ids[-1]:
            ids.append(config.eos_token_id)
        in_slots = [answers_in_slots(ids[blank], config) for blank in blanks]
        return cls(segments, blanks, in_slots, ids, [(i, 0) for i in range(len(ids))])

    def open(self, blank, sop_token_id):
        self.append(sop_token_id, blank, 1)

    def append(self, token, blank, block_position):
        position = len(self.ids) if self.in_slots[blank] else self.blanks[blank]
        self.ids.append(token)
        self.positions.append((position, block_position))

    def answer(self, blank, generated, stops):
        end = next((i for i, token in enumerate(generated) if token in stops), len(generated))
        self.answers.append(generated[:end])
        # As in GLM the last token is never read, be it a stop or where the answer was cut.
        read = generated[: min(end, len(generated) - 1)]
        for block_position, token in enumerate(read, 2):
            self.append(token, blank, block_position)

    def filled(self, tokenizer):
        answers = [tokenizer.decode(ids, skip_special_tokens=True) for ids in self.answers]
        first, *after = self.segments
        text = first + "".join(a + s for a, s in zip(answers, after, strict=True))
        return FilledText(text=text, answers=answers, token_ids=self.answers)


def left_padded(rows, pad_token_id, device):
    """`generate` arguments for rows of different lengths; any id pads them, as the mask tells."""
    longest = max(len(row.ids) for row in rows)
    missing = [longest - len(row.ids) for row in rows]
    ids = [[pad_token_id] * n + row.ids for n, row in zip(missing, rows, strict=True)]
    mask = [[0] * n + [1] * len(row.ids) for n, row in zip(missing, rows, strict=True)]
    positions = [[(0, 0)] * n + row.positions for n, row in zip(missing, rows, strict=True)]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
        "position_ids": torch.tensor(positions, device=device).transpose(1, 2),
    }
