"""Steps that must not touch the parameters: what is not finite, and spikes.

A spike is a loss or gradient norm more than `sigma` standard deviations above the mean of the
latest good steps (OLMo's SkipStep; PaLM, arXiv 2204.02311, section 5.1, and GLM-130B, arXiv
2210.02414, left such batches out by hand). The judgement is part of the compiled step and what it
compares with is part of the state, so that a resumed run judges alike.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from glm_jax.config import BadStepsConfig

VERDICTS = ("good", "not finite", "loss spike", "gradient spike")
GOOD = 0


class History(NamedTuple):
    """Figures of the latest good steps, in a ring, and how many bad ones came after them."""

    loss: jax.Array  # float32 [window]
    grad_norm: jax.Array  # float32 [window]
    count: jax.Array  # int32, good steps so far
    streak: jax.Array  # int32, bad steps in a row up to now


class BadStep(NamedTuple):
    """A step that was skipped, as the host learns of it."""

    step: int
    rows: range
    verdict: str  # a name from VERDICTS
    loss: float
    grad_norm: float


class Streak:
    """Bad steps in a row as the host knows them; once there are too many, no more are counted.

    Attributes:
      length: bad steps in a row.
      first: number of the first of them.
      end_row: one past the rows of the last of them.
    """

    def __init__(self, limit: int, step: int = 0, length: int = 0, end_row: int = 0):
        """The streak after `step`: the last `length` steps, up to row `end_row`, were bad."""
        self._limit = limit
        self.length, self.first, self.end_row = length, step - length + 1, end_row

    def add(self, step: int, rows: range, is_good: bool) -> None:
        if is_good:
            self.length = 0
        elif not self.is_too_long:
            self.length += 1
            self.first, self.end_row = step - self.length + 1, rows.stop

    @property
    def is_too_long(self) -> bool:
        return self.length >= self._limit


def empty_history(config: BadStepsConfig) -> History:
    zeros = jnp.zeros(config.window, jnp.float32)
    none = jnp.zeros((), jnp.int32)
    return History(zeros, zeros, none, none)


def judge(
    config: BadStepsConfig, history: History, loss: jax.Array, grad_norm: jax.Array
) -> jax.Array:
    """Index into VERDICTS, int32, of a step with this mean loss and gradient norm."""
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    verdict = jnp.where(finite, GOOD, VERDICTS.index("not finite"))
    if config.sigma > 0:
        known = jnp.minimum(history.count, config.window)
        enough = known >= config.window // 2
        for name, value, past in (
            ("gradient spike", grad_norm, history.grad_norm),
            ("loss spike", loss, history.loss),
        ):
            spike = enough & finite & (value > _limit(past, known, config.sigma))
            verdict = jnp.where(spike, VERDICTS.index(name), verdict)
    return verdict.astype(jnp.int32)


def remember(history: History, loss: jax.Array, grad_norm: jax.Array) -> History:
    """The history after a good step."""
    place = history.count % history.loss.shape[0]
    return History(
        history.loss.at[place].set(loss.astype(jnp.float32)),
        history.grad_norm.at[place].set(grad_norm.astype(jnp.float32)),
        history.count + 1,
        jnp.zeros((), jnp.int32),
    )


def _limit(past: jax.Array, known: jax.Array, sigma: float) -> jax.Array:
    used = jnp.arange(past.shape[0]) < known
    mean = jnp.mean(past, where=used)
    return mean + sigma * jnp.std(past, where=used)
