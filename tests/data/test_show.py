"""A row as text: what stood in a blank is shown there, whatever positions answers have."""

import numpy as np
import pytest

from glm_jax.config import ModelConfig
from glm_jax.data.show import show_row
from glm_jax.objective import infill
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
    first, second = numbers
    assert f"Gold is[MASK:{first}= yellow] and iron[MASK:{second}= grey]." in shown
