"""What both sides of `step.py` share: the model, the rows, the clock and the process of a case."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from typing import Protocol

import numpy as np
from failures import one_line
from packed_rows import glm_rows

from glm_jax.batch import Batch
from glm_jax.config import Config, from_dict, to_dict
from glm_jax.model.presets import preset
from glm_jax.ops.range_attention import BACKENDS

MODELS = {
    name: {"num_layers": layers, "hidden_dim": width, "num_heads": heads, "mlp_dim": 4 * width}
    | {"vocab_size": vocab}
    for name, (layers, width, heads, vocab) in {
        "tiny": (2, 128, 2, 512),
        "350m": (24, 1024, 16, 65_024),
        "1.3b": (24, 2048, 16, 65_024),
    }.items()
}
"""Sizes by name; the architecture is that of GLM 2021, with an mlp of four times the width."""

OPTIONS = {
    "jax": {"O1", "unrolled", *BACKENDS},
    "torch": {"layers", "max"},
}
"""What a case may change, by side; the docstring of `step.py` says what they are."""

BATCHES = 4  # different ones that the steps take in turn


@dataclasses.dataclass(frozen=True)
class Case:
    """One entry of the table: how one side takes a step."""

    side: str  # jax | torch
    remat: str  # config.model.remat; PyTorch: none, or full for a checkpoint around every layer
    options: list[str]  # see OPTIONS
    rows: int  # of a step
    model: str  # a name from MODELS
    length: int
    documents: int  # of a row, on average
    dtype: str  # of activations and matrix products; parameters and optimizer are float32
    rounds: int
    steps: int  # of a round
    seed: int

    @property
    def config(self) -> Config:
        """AdamW as GLM 2021 has it, at a rate that stays; no dropout."""
        model = to_dict(preset("glm_large")) | MODELS[self.model]
        model |= {"embedding_dropout": 0.0, "output_dropout": 0.0}
        model |= {"dtype": self.dtype, "remat": self.remat, "max_positions": self.length}
        return from_dict(
            {
                "seed": self.seed,
                "model": model,
                "data": {"seq_length": self.length},
                "optimizer": {"schedule": "constant", "warmup_steps": 0},
                "training": {"batch_size": self.rows},
            }
        )

    def batches(self) -> list[Batch]:
        """The same on both sides."""
        rng = np.random.default_rng(self.seed)
        vocab = MODELS[self.model]["vocab_size"]
        return [
            glm_rows(rng, self.rows, self.length, self.documents, vocab) for _ in range(BATCHES)
        ]


class Trainer(Protocol):
    """One side, with its batches on the device."""

    def step(self) -> None:
        """Trains on the next batch; need not wait for the device."""

    def wait(self) -> float:
        """The loss of the last step, once it is done with all that it changes."""

    def peak_bytes(self) -> int | None:
        """The most device memory that was in use; None where that is not known."""

    def device(self) -> str: ...


def measure(trainer: Trainer, case: Case) -> dict:
    """Seconds of the first step (it compiles) and of a step in each round, and more figures.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    began = time.perf_counter()
    trainer.step()
    trainer.wait()
    first = time.perf_counter() - began
    # Whoever compiles again for a second batch does it here.
    for _ in range(BATCHES):
        trainer.step()
    trainer.wait()
    seconds = []
    for _ in range(case.rounds):
        began = time.perf_counter()
        for _ in range(case.steps):
            trainer.step()
        loss = trainer.wait()
        seconds.append((time.perf_counter() - began) / case.steps)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    peak = trainer.peak_bytes()
    return {"first": first, "seconds": seconds, "peak_bytes": peak, "device": trainer.device()}


def serve(make_trainer: Callable[[Case], Trainer]) -> None:
    """What the process of a case does: the case is its argument, its last line the figures."""
    case = Case(**json.loads(sys.argv[1]))
    try:
        figures = measure(make_trainer(case), case)
    except Exception as error:  # the driver goes on with the next case
        traceback.print_exc()
        figures = {"failed": _reason(error)}
    print(json.dumps(figures))


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if "resource_exhausted" in text or "out of memory" in text:
        return "out of memory"
    return f"failed: {one_line(error)}"
