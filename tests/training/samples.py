"""A config small enough to train in a second, and rows for it."""

import dataclasses

import numpy as np

from glm_jax import config
from glm_jax.batch import OBJECTIVES, Batch
from glm_jax.objective import infill
from glm_jax.tokenizer import SpecialTokens

LENGTH, VOCAB = 48, 64


def tiny_config() -> config.Config:
    return config.from_dict(
        {
            "model": {
                "vocab_size": VOCAB,
                "num_layers": 2,
                "hidden_dim": 32,
                "num_heads": 4,
                "mlp_dim": 64,
                "max_positions": LENGTH,
                "dtype": "float32",
            },
            "data": {"seq_length": LENGTH},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
            "training": {"steps": 20, "batch_size": 8},
        }
    )


def changed(config: config.Config, section: str, **fields) -> config.Config:
    """The config with some fields of one section replaced."""
    part = dataclasses.replace(getattr(config, section), **fields)
    return dataclasses.replace(config, **{section: part})


def random_text(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(16, VOCAB, length)


def counting_text(rng: np.random.Generator, length: int) -> np.ndarray:
    """One token after the other from a random one on, in a circle: easily learnt."""
    return 16 + (rng.integers(VOCAB) + np.arange(length)) % (VOCAB - 16)


def make_batch(seed: int, rows: int = 8, text=random_text) -> Batch:
    """Rows of two samples each, with different numbers of targets, and some padding."""
    rng = np.random.default_rng(seed)
    packed = []
    for row in range(rows):
        samples = []
        for _ in range(2):
            tokens = text(rng, rng.integers(10, 18))
            start = int(rng.integers(1, 5))
            spans = [(start, start + int(rng.integers(1, 4)))]
            samples.append(
                infill.build(
                    tokens.astype(np.int32),
                    spans,
                    mask_id=SpecialTokens.mask,
                    special=SpecialTokens(),
                )
            )
        packed.append(
            infill.pack(
                samples,
                LENGTH,
                objective=OBJECTIVES[row % 3],
                source=row % 2,
                special=SpecialTokens(),
            )
        )
    return Batch(*map(np.stack, zip(*packed, strict=True)))
