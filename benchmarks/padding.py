"""Share of padding in training rows, by objective, packing, source and row length.

    python benchmarks/padding.py --data=DATA [--rows=2000]

DATA is a folder of `python -m glm_jax.prepare`. Prints a Markdown table.
"""

import dataclasses
from pathlib import Path

from absl import app, flags

from glm_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, SourceConfig
from glm_jax.data.rows import Rows
from glm_jax.data.sources import open_sources, sources_in
from glm_jax.objective.spans import sentence_ends
from glm_jax.tokenizer import Tokenizer

_DATA = flags.DEFINE_string("data", None, "Prepared data.", required=True)
_ROWS = flags.DEFINE_integer("rows", 2000, "Rows to build for each figure.", 1)

_TOGETHER = 100  # rows that are built at once

LENGTHS = (256, 512, 2048)
MIXTURE = ObjectiveConfig(token_weight=0.5, sentence_weight=0.3, document_weight=0.2)  # GLM-10B's
CASES = {
    "token, fixed": (ObjectiveConfig(), "windows"),
    "token, budget": (ObjectiveConfig(span_sampling="budget"), "windows"),
    "sentence": (ObjectiveConfig(token_weight=0.0, sentence_weight=1.0), "windows"),
    "document": (ObjectiveConfig(token_weight=0.0, document_weight=1.0), "windows"),
    "mixture": (MIXTURE, "windows"),
    "mixture, whole documents": (MIXTURE, "documents"),
}


def main(_) -> None:
    sources = sources_in(_DATA.value)
    tokenizer = Tokenizer.load(Path(_DATA.value) / "tokenizer")
    names = " / ".join(sources)
    print(f"| objective | {' | '.join(f'T {length} {names}' for length in LENGTHS)} |")
    print("|---" * (1 + len(LENGTHS)) + "|")
    for name, case in CASES.items():
        cells = [
            " / ".join(f"{padding(source, length, *case, tokenizer):.2%}" for source in sources)
            for length in LENGTHS
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def padding(
    source: str, length: int, objective: ObjectiveConfig, packing: str, tokenizer: Tokenizer
) -> float:
    """Share of the slots of the first training rows of one source that hold nothing."""
    config = Config(
        model=dataclasses.replace(ModelConfig(), max_positions=length),
        objective=objective,
        data=DataConfig(
            dir=_DATA.value,
            sources={source: SourceConfig()},
            seq_length=length,
            packing=packing,
        ),
    )
    streams = open_sources(config.data, tokenizer, "train")
    rows = Rows(config, streams, tokenizer.special, sentence_ends(tokenizer.pieces), "train")
    empty = 0
    for first in range(0, _ROWS.value, _TOGETHER):
        part = rows.build(range(first, min(first + _TOGETHER, _ROWS.value)))
        empty += int((part.segment == 0).sum())
    return empty / (_ROWS.value * length)


if __name__ == "__main__":
    app.run(main)
