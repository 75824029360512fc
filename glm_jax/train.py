"""Trains or resumes a run: `python -m glm_jax.train --config=configs/X.py --workdir=D`.

Run the same line again to resume from the newest good checkpoint. SIGTERM and Ctrl-C save and end
with exit code 0, as --max_steps and --max_minutes do.
"""

import contextlib
import math
import time
from pathlib import Path

import jax
from absl import flags

from glm_jax import cli
from glm_jax.config import Config, with_vocab_size
from glm_jax.data.dataset import Dataset, host_batches, load_tokenizer, open_dataset, with_sources
from glm_jax.data.feed import Feed
from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.ops.range_attention import resolve_backend
from glm_jax.parallel.sharding import Sharding, make_sharding, parameter_table
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.bad_steps import Streak
from glm_jax.training.checkpoint import Checkpoints, Restored
from glm_jax.training.evaluation import check_batch, make_validation
from glm_jax.training.metrics import summarise, total
from glm_jax.training.optimizer import describe_optimizer
from glm_jax.training.run_folder import open_run
from glm_jax.training.step import TrainState, init_state, make_train_step, state_shardings
from glm_jax.training.stopping import Stopping
from glm_jax.training.window import Window
from glm_jax.training.writers import Display, Writer, make_writers
from glm_jax.versions import versions

FLAGS = flags.FLAGS

_SAMPLE_TOKENS = 32


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run; created, or resumed.")
    flags.DEFINE_integer(
        "max_steps", None, "Stop after this step; the schedule still runs to training.steps.", 1
    )
    flags.DEFINE_float("max_minutes", None, "Stop this session after so many minutes.", 0)
    flags.DEFINE_bool("allow_config_change", False, "Resume although rows or parameters change.")


def main() -> None:
    config, workdir = cli.load_config(), Path(cli.required("workdir"))
    with Stopping(FLAGS.max_steps, FLAGS.max_minutes) as stopping:
        run(config, workdir, stopping, allow_config_change=FLAGS.allow_config_change)


def run(
    config: Config,
    workdir: Path,
    stopping: Stopping | None = None,
    *,
    devices: list[jax.Device] | None = None,
    allow_config_change: bool = False,
) -> TrainState:
    """Trains to `config.training.steps`, from the folder's newest good checkpoint if there is one.

    Args:
      stopping: what may end the session earlier.
      devices: what the mesh is made of; None for all.
      allow_config_change: resume although fields that decide rows or parameters differ.
    """
    tokenizer = load_tokenizer(config)
    config = with_sources(with_vocab_size(config, tokenizer.vocab_size))
    dataset = open_dataset(config, tokenizer)
    sharding = make_sharding(config.mesh, devices)
    check_batch(config, sharding)
    resolve_backend(config.model.attention_backend)
    print(describe(config, dataset, sharding))
    for change in open_run(workdir, config, tokenizer, allow_config_change=allow_config_change):
        print(f"changed since the last session: {change}")
    with (
        contextlib.closing(make_writers(workdir, config.logging)) as log,
        contextlib.closing(Checkpoints(workdir, config.checkpoint)) as checkpoints,
    ):
        session = Session(
            config, dataset, tokenizer, sharding, checkpoints, log, stopping or Stopping()
        )
        return session.train(allow_data_change=allow_config_change)


def describe(config: Config, dataset: Dataset, sharding: Sharding) -> str:
    """What is about to be trained: mesh, kinds of rows, parameters and who updates them."""
    abstract, shardings = state_shardings(config, sharding)
    return "\n".join(
        [
            f"mesh {_mesh(sharding)} of {jax.devices()[0].device_kind}, rules {config.mesh.rules}",
            dataset.train.describe(),
            parameter_table(abstract.params, shardings.params),
            describe_optimizer(config.optimizer, abstract.params),
        ]
    )


class Session:
    """One process's work on a run: what it reads, where it trains, and where its results go."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        tokenizer: Tokenizer,
        sharding: Sharding,
        checkpoints: Checkpoints,
        log: Writer,
        stopping: Stopping,
    ):
        self._config, self._dataset, self._tokenizer = config, dataset, tokenizer
        self._sharding, self._checkpoints, self._log = sharding, checkpoints, log
        self._stopping = stopping
        self._streak = Streak(config.bad_steps.max_consecutive)
        self._window = Window(dataset.languages, self._streak)
        self._rewinds = 0
        self._validate = make_validation(
            config, len(dataset.languages), sharding, lambda rows: host_batches(rows, 0, config)
        )

    def train(self, *, allow_data_change: bool) -> TrainState:
        """From where the run is to its last step, or to where this session is asked to stop."""
        last = self._config.training.steps
        state, next_row = self._restore_or_init(allow_data_change)
        self._first_step = self._step = self._saved = int(state.step)
        step = make_train_step(self._config, self._sharding, len(self._dataset.languages))
        with (
            Display(last, self._step) as self._display,
            contextlib.closing(Feed(self._dataset.train, self._config, next_row)) as self._feed,
        ):
            while self._step < last and not self._stopping.reason(self._step):
                self._checkpoints.check()
                batch, rows, waited = self._feed.next()
                state, metrics = step(state, self._sharding.place(batch))
                self._step += 1
                self._window.add(self._step, rows, metrics, waited)
                state = self._look_and_save(state)
            self._end(state)
        return state

    def _restore_or_init(self, allow_data_change: bool) -> tuple[TrainState, int]:
        """The state to go on from and the index of the next row.

        Raises:
          UserError: no checkpoint is good, or the good one was trained on other data.
        """
        config = self._config
        abstract, shardings = state_shardings(config, self._sharding)
        restored = self._checkpoints.restore_newest(abstract, shardings)
        about = {
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "num_devices": self._sharding.mesh.size,
            "mesh": _mesh(self._sharding),
            "num_params": sum(math.prod(p.shape) for p in jax.tree.leaves(abstract.params)),
        }
        if restored is None:
            self._log.write(0, "started", {"next_row": 0, **about})
            return init_state(config, self._sharding), 0
        step, next_row = int(restored.state.step), restored.meta["next_row"]
        if not allow_data_change:
            self._check_data(restored)
        for bad in restored.set_aside:
            print(f"checkpoint {bad.step} was set aside as {bad.moved_to}: {bad.reason}")
            values = {"bad_step": bad.step, "reason": bad.reason, "moved_to": str(bad.moved_to)}
            self._log.write(step, "fallback", values)
        if step >= config.training.steps:
            print(f"nothing to do: step {step} of {config.training.steps} is done")
        else:
            print(f"resuming from step {step}, row {next_row}")
            self._log.write(step, "resumed", {"next_row": next_row, **about})
        return restored.state, next_row

    def _check_data(self, restored: Restored) -> None:
        if restored.meta["data"] != self._dataset.fingerprint:
            raise UserError(
                f"the checkpoint of step {int(restored.state.step)} was trained on data "
                f"{restored.meta['data']}, config.data is {self._dataset.fingerprint}; "
                "--allow_config_change goes on with it"
            )

    def _look_and_save(self, state: TrainState) -> TrainState:
        """What is due after a step; the state to go on with."""
        config, last, step = self._config, self._config.training.steps, self._step
        if _is_due(step, config.training.log_every, last):
            self._report("train", self._window.close())
        self._report_bad_steps()
        if self._streak.is_too_long:
            return self._go_back(state)
        validation = None
        if _is_due(step, config.training.eval_every, last):
            validation = self._look(state)
        if _is_due(step, config.checkpoint.every, last):
            self._save(state, validation)
        return state

    def _look(self, state: TrainState) -> dict[str, float] | None:
        """Figures on the validation split and filled samples; None if there is no time for it."""
        figures = self._validation_figures(state.params)
        if figures is not None and state.ema is not None:
            ema = self._validation_figures(state.ema)
            figures = ema and figures | {"loss_ema": ema["loss"]}
        if figures is not None:
            self._report("validation", figures)
            self._fill_samples(state.params)
        self._window.restart_clock()
        return figures

    def _validation_figures(self, params: dict) -> dict[str, float] | None:
        sums = self._validate(params, self._dataset.validation, lambda: self._stopping.is_urgent)
        return sums and summarise(total(sums), self._dataset.languages)

    def _fill_samples(self, params: dict) -> None:
        texts = self._config.logging.samples
        if texts:
            filler = Filler(self._config.model, params, self._tokenizer, self._sharding)
            filled = filler.fill(texts, DecodingOptions(max_new_tokens=_SAMPLE_TOKENS))
            self._report("samples", {"filled": [result.parts for result in filled]})

    def _save(self, state: TrainState, validation: dict[str, float] | None) -> None:
        started = time.perf_counter()
        self._checkpoints.save(
            state, self._config, self._feed.next_row, self._dataset.fingerprint, validation
        )
        self._saved = self._step
        self._report("saved", {"seconds": time.perf_counter() - started})

    def _go_back(self, state: TrainState) -> TrainState:
        """The state before too many bad steps in a row; the feed leaves their rows out.

        Raises:
          UserError: the config says to stop, the session went back too often, or there is no
            checkpoint to go back to. The rows are in metrics.jsonl.
        """
        config, first, at = self._config.bad_steps, self._streak.first, self._step
        message = f"{self._streak.length} bad steps in a row, from step {first} on"
        if config.action == "stop" or self._rewinds == config.max_rewinds:
            if self._saved < at:
                self._save(state, None)
            self._report("stopped", {"reason": "bad steps"})
            where = "metrics.jsonl names their rows; config.bad_steps says what to do"
            raise UserError(f"{message}; {where}")
        restored = self._checkpoints.restore_newest(
            *state_shardings(self._config, self._sharding), before=first
        )
        if restored is None:
            raise UserError(f"{message}, and no checkpoint before it to go back to")
        self._rewinds += 1
        self._streak.reset()
        self._window = Window(self._dataset.languages, self._streak)
        batch = self._config.training.batch_size
        first_row = restored.meta["next_row"]
        next_row = max(self._feed.next_row, first_row + config.rewind_skip_steps * batch)
        self._feed.seek(next_row)
        self._step = self._saved = int(restored.state.step)
        skipped = [first_row, next_row]
        self._report("rewound", {"from_step": at, "next_row": next_row, "skipped_rows": skipped})
        return restored.state

    def _end(self, state: TrainState) -> None:
        """Saves what no checkpoint holds yet and says why the session ends."""
        last = self._config.training.steps
        if self._step == self._first_step == last:
            return
        if not self._window.is_empty:
            self._report("train", self._window.close())
            self._report_bad_steps()
        if self._saved < self._step:
            self._save(state, None)
        self._checkpoints.wait()
        reason = "done" if self._step == last else self._stopping.reason(self._step)
        self._report("stopped", {"reason": reason})

    def _report_bad_steps(self) -> None:
        for bad in self._window.take_bad_steps():
            values = {"reason": bad.verdict, "loss": bad.loss, "grad_norm": bad.grad_norm}
            rows = [bad.rows.start, bad.rows.stop]
            self._log.write(bad.step, "bad_step", values | {"rows": rows})
            self._display.report(bad.step, "bad_step", values | {"rows": rows})

    def _report(self, kind: str, values: dict) -> None:
        self._log.write(self._step, kind, values)
        self._display.report(self._step, kind, values)


def _mesh(sharding: Sharding) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in sharding.mesh.shape.items())


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


if __name__ == "__main__":
    cli.run(main, define_flags)
