"""A run of seconds whose every step and save can be hit.

The variable FAULT, as in "raise:1:7", makes process 1 do something bad before its seventh batch.
"""

import os
import time

import jax
import ml_collections

from glm_jax import config, session


def get_config() -> ml_collections.ConfigDict:
    if fault := os.environ.get("FAULT"):
        _plant(*fault.split(":"))
    c = ml_collections.ConfigDict(config.default_dict())
    c.model.update(
        vocab_multiple=8,
        num_layers=1,
        hidden_dim=32,
        num_heads=2,
        mlp_dim=64,
        max_positions=64,
        dtype="float32",
        output_dropout=0.1,
    )
    c.data.seq_length = 64
    c.optimizer.update(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
    c.training.update(steps=100, batch_size=4, log_every=1, eval_every=50, eval_rows=8)
    c.checkpoint.every = 5
    return c


def _plant(what: str, process: str, number: str) -> None:
    following, left = session.Feed.next, [int(number)]

    def next_batch(feed):
        left[0] -= 1
        if left[0] == 0 and jax.process_index() == int(process):
            _FAULTS[what]()
        return following(feed)

    session.Feed.next = next_batch


def _raise() -> None:
    raise ZeroDivisionError("a planted fault")


def _hang() -> None:
    time.sleep(1000)


_FAULTS = {"raise": _raise, "hang": _hang}
