"""Trains or resumes a run: `python -m glm_jax.train --config=configs/X.py --workdir=D`.

Run the same line again to resume from the latest checkpoint.
"""

import contextlib
import time
from pathlib import Path

import jax
from absl import flags

from glm_jax import cli
from glm_jax.config import Config, with_vocab_size
from glm_jax.data.dataset import Dataset, host_batches, load_tokenizer, open_dataset, with_sources
from glm_jax.errors import UserError
from glm_jax.ops.range_attention import resolve_backend
from glm_jax.parallel.sharding import Sharding, make_sharding, parameter_table
from glm_jax.training.checkpoint import Checkpoints, open_run
from glm_jax.training.evaluation import check_batch, make_validation
from glm_jax.training.metrics import Sums, summarise, total
from glm_jax.training.step import (
    StepMetrics,
    TrainState,
    init_state,
    make_train_step,
    state_shardings,
)
from glm_jax.training.writers import Display, MetricsLog

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run; created, or resumed.")


def main() -> None:
    run(cli.load_config(), Path(cli.required("workdir")))


def run(config: Config, workdir: Path, devices: list[jax.Device] | None = None) -> TrainState:
    """Trains to `config.training.steps`, from the folder's latest checkpoint if there is one.

    Args:
      devices: what the mesh is made of; None for all.
    """
    tokenizer = load_tokenizer(config)
    config = with_sources(with_vocab_size(config, tokenizer.vocab_size))
    dataset = open_dataset(config, tokenizer)
    sharding = make_sharding(config.mesh, devices)
    check_batch(config, sharding)
    resolve_backend(config.model.attention_backend)
    print(describe(config, dataset, sharding))
    open_run(workdir, config, tokenizer)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    log = MetricsLog(workdir)
    state, next_row = restore_or_init(config, checkpoints, sharding, dataset)
    step = int(state.step)
    if step >= config.training.steps:
        print(f"nothing to do: step {step} of {config.training.steps} is done")
    elif step:
        print(f"resuming from step {step}, row {next_row}")
        log.write(step, "resumed", {"next_row": next_row})
    state = train(config, state, next_row, dataset, sharding, checkpoints, log)
    checkpoints.close()
    log.close()
    return state


def describe(config: Config, dataset: Dataset, sharding: Sharding) -> str:
    """What is about to be trained: mesh, kinds of rows and the parameter table."""
    abstract, shardings = state_shardings(config, sharding)
    mesh = " x ".join(f"{axis}={size}" for axis, size in sharding.mesh.shape.items())
    return "\n".join(
        [
            f"mesh {mesh} of {jax.devices()[0].device_kind}, rules {config.mesh.rules}",
            dataset.train.describe(),
            parameter_table(abstract.params, shardings.params),
        ]
    )


def restore_or_init(
    config: Config, checkpoints: Checkpoints, sharding: Sharding, dataset: Dataset
) -> tuple[TrainState, int]:
    """The state to go on from and the index of the next row.

    Raises:
      UserError: the latest checkpoint was trained on other data.
    """
    step = checkpoints.latest_step
    if step is None:
        return init_state(config, sharding), 0
    state, meta = checkpoints.restore(step, *state_shardings(config, sharding))
    if meta["data"] != dataset.fingerprint:
        raise UserError(
            f"the checkpoint of step {step} was trained on data {meta['data']}, "
            f"config.data is {dataset.fingerprint}"
        )
    return state, meta["next_row"]


def train(
    config: Config,
    state: TrainState,
    next_row: int,
    dataset: Dataset,
    sharding: Sharding,
    checkpoints: Checkpoints,
    log: MetricsLog,
) -> TrainState:
    """The loop: dispatch a step, read the figures of the one before, now and then look and save."""
    step = make_train_step(config, sharding, len(dataset.languages))
    validate = make_validation(
        config, dataset.languages, sharding, lambda rows: host_batches(rows, 0, config)
    )
    window = Window(dataset.languages)
    first, last = int(state.step), config.training.steps
    with (
        Display(last, first) as display,
        contextlib.closing(host_batches(dataset.train, next_row, config)) as batches,
    ):

        def report(number: int, kind: str, figures: dict[str, float]) -> None:
            log.write(number, kind, figures)
            display.report(number, kind, figures)

        for number in range(first + 1, last + 1):
            state, metrics = step(state, sharding.place(next(batches)))
            next_row += config.training.batch_size
            window.add(metrics)
            if _is_due(number, config.training.log_every, last):
                report(number, "train", window.close())
            validation = None
            if _is_due(number, config.training.eval_every, last):
                validation = validate(state.params, dataset.validation)
                report(number, "validation", validation)
                window.restart_clock()
            if _is_due(number, config.checkpoint.every, last):
                checkpoints.save(state, config, next_row, dataset.fingerprint, validation)
    return state


class Window:
    """Figures over the steps since the last report.

    The device is never waited for in between: a step's figures are read once the next step has
    been dispatched.
    """

    def __init__(self, languages: list[str]):
        self._languages = languages
        self._pending: StepMetrics | None = None
        self._sums: list[Sums] = []
        self._compiled = False
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what was done since the last step out of the rate."""
        self._started, self._timed_tokens = time.perf_counter(), 0.0

    def add(self, metrics: StepMetrics) -> None:
        self._read_pending()
        self._pending = metrics

    def close(self) -> dict[str, float]:
        """Figures of the window by name; begins the next one."""
        last = self._pending
        self._read_pending()
        figures = summarise(total(self._sums), self._languages)
        figures["grad_norm"] = float(last.grad_norm)
        figures["learning_rate"] = float(last.learning_rate)
        if self._timed_tokens:
            seconds = time.perf_counter() - self._started
            figures["tokens_per_second"] = self._timed_tokens / seconds
        self._sums = []
        self.restart_clock()
        return figures

    def _read_pending(self) -> None:
        if self._pending is None:
            return
        self._sums.append(jax.device_get(self._pending.sums))
        self._pending = None
        if self._compiled:
            self._timed_tokens += float(self._sums[-1].tokens.sum())
        else:
            self._compiled = True
            self.restart_clock()


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


if __name__ == "__main__":
    cli.run(main, define_flags)
