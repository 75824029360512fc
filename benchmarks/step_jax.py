"""Our side of `step.py`: the training step of glm_jax on one device."""

import dataclasses
import itertools

import jax
from step_case import Case, serve

from glm_jax.batch import Batch
from glm_jax.config import Config
from glm_jax.ops.range_attention import BACKENDS
from glm_jax.parallel.sharding import make_sharding
from glm_jax.training.step import init_state, make_train_step


class Trainer:
    def __init__(self, config: Config, batches: list[Batch]):
        device = jax.devices()[0]
        sharding = make_sharding(config.mesh, [device])
        self._device = device
        self._batches = itertools.cycle([sharding.place(batch) for batch in batches])
        self._state = init_state(config, sharding)
        self._step = make_train_step(config, sharding, num_sources=1)
        self._metrics = None

    @property
    def params(self) -> dict:
        """They are donated to the next step."""
        return self._state.params

    def step(self) -> None:
        self._state, self._metrics = self._step(self._state, next(self._batches))

    def wait(self) -> float:
        jax.block_until_ready(self._state)
        sums = self._metrics.sums
        return float(sums.loss.sum() / sums.weight.sum())

    def peak_bytes(self) -> int | None:
        statistics = self._device.memory_stats()
        return statistics and statistics["peak_bytes_in_use"]

    def device(self) -> str:
        return self._device.device_kind


def make_trainer(case: Case) -> Trainer:
    config, model = case.config, case.config.model
    if "O1" in case.options:
        jax.config.update("jax_optimization_level", "O1")
    if "unrolled" in case.options:
        model = dataclasses.replace(model, scan_layers=False)
    for backend in set(case.options) & set(BACKENDS):
        model = dataclasses.replace(model, attention_backend=backend)
    return Trainer(dataclasses.replace(config, model=model), case.batches())


if __name__ == "__main__":
    serve(make_trainer)
