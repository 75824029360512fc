"""A row as text: what stood in a blank is shown there, whatever positions answers have."""

import re

import numpy as np
import pytest

from glm_jax.config import ModelConfig
from glm_jax.data.show import show_row
from glm_jax.objective import in_place, infill
from glm_jax.objective.one_stream import one_stream
from glm_jax.objective.spans import split_pieces
from glm_jax.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("span_position", "order", "numbers"), [("blank", (1, 0), (2, 1)), ("slot", (0, 1), (1, 2))]
)
def test_answers_are_shown_in_their_blanks(data_dir, span_position, order, numbers):
    tokenizer = Tokenizer.load(data_dir / "tokenizer")
    special, model = tokenizer.special, ModelConfig(span_position=span_position)
    parts = [tokenizer.encode(text) for text in ("Gold is", " yellow", " and iron", " grey", ".")]
    ends = np.cumsum([len(part) for part in parts])
    spans = [(ends[0], ends[1]), (ends[2], ends[3])]
    sample = infill.build(
        np.concatenate(parts),
        [spans[i] for i in order],
        mask_id=special.mask,
        special=special,
        model=model,
    )
    row = infill.pack([sample], 64, objective="token", source=0, special=special)
    shown = show_row(7, row, ["en"], tokenizer).plain
    first, second = (
        f"{number}@{row.position[(row.block_position == 1).nonzero()[0][number - 1]]}"
        for number in numbers
    )
    assert f"Gold is[MASK:{first}= yellow] and iron[MASK:{second}= grey]." in shown


def test_a_stream_is_shown_in_its_blanks(data_dir):
    tokenizer = Tokenizer.load(data_dir / "tokenizer")
    special = tokenizer.special
    parts = [tokenizer.encode(text) for text in ("Gold is", " yellow", " and iron", " grey", ".")]
    ends = np.cumsum([len(part) for part in parts])
    sample = infill.build(
        np.concatenate(parts),
        [(ends[0], ends[1]), (ends[2], ends[3])],
        mask_id=special.mask,
        special=special,
    )
    sample = one_stream(sample, special)
    row = infill.pack([sample], 64, objective="t5", source=0, special=special)
    shown = show_row(7, row, ["en"], tokenizer).plain
    assert "Gold is[MASK:1= yellow] and iron[MASK:2= grey]." in re.sub(r"@\d+", "", shown)


@pytest.mark.parametrize("objective", ["causal", "prefix", "masked"])
def test_texts_without_blanks(data_dir, objective):
    tokenizer = Tokenizer.load(data_dir / "tokenizer")
    special, rngs = tokenizer.special, [np.random.default_rng(0)]
    text = "Gold is yellow and iron grey."
    tokens = np.concatenate(([special.cls], tokenizer.encode(text), [special.eos]))
    tokens = tokens.astype(np.int32)
    pieces, options = split_pieces(tokens, special), {"length": len(tokens), "special": special}
    if objective == "causal":
        sample = in_place.causal(tokens, pieces, **options)
    elif objective == "prefix":
        sample = in_place.prefix(rngs, tokens, pieces, **options)
    else:
        sample = in_place.masked(rngs, tokens, pieces, mask_ratio=0.5, **options)
    row = infill.pack([sample], 64, objective=objective, source=0, special=special)
    shown = show_row(7, row, ["en"], tokenizer).plain
    assert f"row 7  en, {objective}: {len(tokens)} of 64 slots" in shown
    if objective == "masked":
        assert "[MASK" in shown
        assert re.sub(r"\[MASK(?:\*[0-9]+)?=(.*?)\]", r"\1", shown).endswith(f"1 {text}\n")
    else:
        assert shown.count("|") == 1
        assert shown.replace("|", "").endswith(f"1 {text}\n")


def test_noise_is_spelled_out(data_dir):
    tokenizer = Tokenizer.load(data_dir / "tokenizer")
    special = tokenizer.special
    tokens = tokenizer.encode("Gold is yellow and iron grey.")
    sample = infill.build(tokens, [(2, 4)], mask_id=special.mask, special=special)
    sample.tokens[1] = special.dblock
    row = infill.pack([sample], 64, objective="token", source=0, special=special)
    shown = show_row(7, row, ["en"], tokenizer).plain
    assert f"1 {tokenizer.decode(tokens[:1])}[dBLOCK][MASK:1@2=" in shown
