"""Trains or resumes a run: `python -m glm_jax.train --config=configs/X.py --workdir=D`.

Run the same line again to resume from the newest good checkpoint. SIGTERM and Ctrl-C save and end
with exit code 0, as --max_steps and --max_minutes do.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags

from glm_jax import cli
from glm_jax.config import Config, with_vocab_size
from glm_jax.data.dataset import Dataset, equal_batches, load_tokenizer, open_dataset, with_sources
from glm_jax.data.feed import Feed
from glm_jax.data.reading import describe_reading, describe_rows, stage_values
from glm_jax.errors import UserError
from glm_jax.first_state import first_state, released_params
from glm_jax.ops.range_attention import resolve_backend
from glm_jax.parallel.sharding import Sharding, make_sharding, parameter_table
from glm_jax.reporting.goodput import goodput_of_session
from glm_jax.reporting.history import Line
from glm_jax.stages import BatchGrid
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.bad_steps import Streak
from glm_jax.training.checkpoint import Checkpoints, DataPosition, SetAside
from glm_jax.training.evaluation import check_batches, make_validation
from glm_jax.training.logged_samples import check_samples, fill_samples
from glm_jax.training.metrics import summarise, total
from glm_jax.training.optimizer import describe_optimizer
from glm_jax.training.run_folder import check_same_data, is_run, locked, open_run, save_config
from glm_jax.training.speed import make_machine
from glm_jax.training.step import (
    TrainState,
    make_train_step,
    state_shardings,
    with_empty_history,
)
from glm_jax.training.stopping import Stopping
from glm_jax.training.surroundings import count_params, mesh_shape, surroundings
from glm_jax.training.window import Window
from glm_jax.training.writers import Display, Writer, make_writers, steps_of

FLAGS = flags.FLAGS


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
    began = time.time()
    tokenizer = load_tokenizer(config)
    check_samples(config, tokenizer)
    config = with_sources(with_vocab_size(config, tokenizer.vocab_size))
    dataset = open_dataset(config, tokenizer)
    sharding = make_sharding(config.mesh, devices)
    check_batches(config, sharding)
    resolve_backend(config.model.attention_backend)
    print(describe(config, dataset, sharding))
    open_it = functools.partial(
        open_run, workdir, config, tokenizer, allow_config_change=allow_config_change
    )
    changes = open_it() if is_run(workdir) else []
    init = released_params(config, sharding, workdir, tokenizer)
    if not is_run(workdir):
        open_it()  # only now: what cannot be read leaves no folder behind
    with (
        locked(workdir),
        contextlib.closing(make_writers(workdir, config.logging)) as log,
        contextlib.closing(
            Checkpoints(workdir, config.checkpoint, functools.partial(report_damage, log))
        ) as checkpoints,
    ):
        session = Session(
            config, dataset, tokenizer, sharding, checkpoints, log, stopping or Stopping(), workdir
        )
        start = session.restore_or_init(
            functools.partial(first_state, config, sharding, workdir, init),
            changes,
            steps_of(workdir, "validation"),
            began=began,
            allow_data_change=allow_config_change,
        )
        save_config(workdir, config)
        return session.train(start)


def report_damage(log: Writer, bad: SetAside) -> None:
    """Says which checkpoint was found damaged and where it is now."""
    print(f"checkpoint {bad.step} was set aside as {bad.moved_to}: {bad.reason}")
    values = {"bad_step": bad.step, "reason": bad.reason, "moved_to": str(bad.moved_to)}
    log.write(bad.step, "fallback", values)


def describe(config: Config, dataset: Dataset, sharding: Sharding) -> str:
    """What is about to be trained: mesh, rows, parameters, who updates them, and what they read.

    Raises:
      UserError: more epochs of a source than its `max_epochs`.
    """
    abstract, shardings = state_shardings(config, sharding)
    machine = make_machine(config.model, sharding)
    return "\n".join(
        [
            f"mesh {mesh_shape(sharding)} of {machine.device}, rules {config.mesh.rules}",
            describe_rows(dataset.train),
            parameter_table(abstract.params, shardings.params),
            describe_optimizer(config.optimizer, abstract.params),
            describe_reading(dataset.train, config, count_params(abstract.params)),
            machine.describe(),
        ]
    )


class Start(NamedTuple):
    """Where a session goes on."""

    state: TrainState
    next_row: int
    owes_validation: bool  # the validation of this step was given up, or never finished


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
        workdir: Path,
    ):
        self._config, self._dataset, self._tokenizer = config, dataset, tokenizer
        self._sharding, self._checkpoints, self._log = sharding, checkpoints, log
        self._stopping, self._workdir = stopping, workdir
        self._machine = make_machine(config.model, sharding)
        self._step = self._saved = self._rewinds = 0
        self._display = Display(config.training.steps)
        self._feed = Feed(dataset.train, config)
        self._grid, self._part = BatchGrid(config), None
        self._watch(Streak(config.bad_steps.max_consecutive))
        self._validate = make_validation(
            config, len(dataset.languages), sharding, lambda rows: equal_batches(rows, config)
        )

    def restore_or_init(
        self,
        init: Callable[[], TrainState],
        changes: list[str],
        validated: set[int],
        *,
        began: float,
        allow_data_change: bool,
    ) -> Start:
        """Where to go on, logged as `started` or `resumed`.

        Args:
          init: makes the state of a run without a checkpoint.
          changes: of the config since the last session, for people.
          validated: the steps whose validation was reported.
          began: when the session did, in Unix seconds.

        Raises:
          UserError: no checkpoint is good, or the good one was trained on other data.
        """
        abstract, shardings = state_shardings(self._config, self._sharding)
        about = surroundings(abstract.params, self._sharding, self._machine)
        about["changes"] = changes
        for change in changes:
            print(f"changed since the last session: {change}")
        restored = self._checkpoints.restore_newest(abstract, shardings)
        if restored is None:
            state = init()
            about["start_seconds"] = time.time() - began
            self._log.write(0, "started", {"next_row": 0, **about})
            return Start(state, 0, owes_validation=False)
        step, next_row = int(restored.state.step), restored.meta["next_row"]
        read = self._dataset.train.taken(next_row)
        check_same_data(
            restored.meta, self._dataset.fingerprint, read, allow_change=allow_data_change
        )
        due = _is_due(step, self._config.training.eval_every, self._config.training.steps)
        owes_validation = due and not restored.meta["validation"] and step not in validated
        start = Start(restored.state, next_row, owes_validation)
        if step < self._config.training.steps or start.owes_validation:
            print(f"resuming from step {step}, row {next_row}")
            about["start_seconds"] = time.time() - began
            self._log.write(step, "resumed", {"next_row": next_row, **about})
        return start

    def train(self, start: Start) -> TrainState:
        """From there to the run's last step, or to where this session is asked to stop."""
        last, state = self._config.training.steps, start.state
        self._step = self._saved = int(state.step)
        if self._step >= last and not start.owes_validation:
            print(f"nothing to do: step {self._step} of {last} is done")
            return state
        length = int(state.history.streak)
        limit = self._config.bad_steps.max_consecutive
        self._watch(Streak(limit, self._step, length, start.next_row))
        with self._display, contextlib.closing(self._feed):
            self._display.start(self._step)
            self._feed.seek(start.next_row)
            owed = start.owes_validation and self._look(state) is None
            while self._step < last and not self._stopping.reason(self._step):
                self._checkpoints.check()
                try:
                    batch, rows, waited = self._feed.next()
                except RuntimeError:
                    if self._stopping.is_urgent:  # the signal has ended the workers too
                        break
                    raise
                state = self._enter(state, rows.start)
                step = self._steps(self._part.accumulation_steps)
                state, metrics = step(state, self._sharding.place(batch))
                self._step += 1
                self._window.add(self._step, rows, metrics, waited)
                state, owed = self._look_and_save(state)
            is_done = self._step >= last and not owed
            self._end(state, "done" if is_done else self._stopping.reason(self._step))
        return state

    @functools.cache  # noqa: B019, a session lives as long as its process
    def _steps(self, accumulation_steps: int) -> Callable:
        """The training step for batches of so many micro-batches."""
        training = dataclasses.replace(self._config.training, accumulation_steps=accumulation_steps)
        config = dataclasses.replace(self._config, training=training)
        return make_train_step(config, self._sharding, len(self._dataset.languages))

    def _enter(self, state: TrainState, row: int) -> TrainState:
        """The state to train on with from `row`, where other batches or another stage may begin.

        Losses and gradients of another mixture are no measure of what a spike is.
        """
        part, before = self._grid.part_at(row), self._part
        if part is before:
            return state
        if before is not None:
            self._window.expect_compilation()
        if len(self._grid.stages) == 1 or (before and before.stage == part.stage):
            self._part = part
            return state
        if not self._window.is_empty:
            self._report_window()
        self._part = part
        begins = before is not None or row == self._grid.rows_of_stage(part.stage)[0]
        if begins:
            self._report("stage", stage_values(self._dataset.train, self._grid, row))
        return with_empty_history(state) if begins and row > 0 else state

    def _watch(self, streak: Streak) -> None:
        self._streak = streak
        self._window = Window(self._dataset.languages, streak, self._machine)

    def _look_and_save(self, state: TrainState) -> tuple[TrainState, bool]:
        """What is due after a step.

        Returns:
          The state to go on with, and whether a validation was given up.
        """
        config, last, step = self._config, self._config.training.steps, self._step
        save_is_due = _is_due(step, config.checkpoint.every, last)
        if save_is_due:
            self._window.catch_up()
        if _is_due(step, config.training.log_every, last):
            self._report_window()
        self._report_bad_steps()
        if self._streak.is_too_long:
            return self._go_back(state), False
        look_is_due = _is_due(step, config.training.eval_every, last)
        validation = self._look(state) if look_is_due else None
        # Within a streak the checkpoint before it must not be pushed out.
        if save_is_due and (self._streak.length == 0 or step == last):
            self._save(state, validation)
        return state, look_is_due and validation is None

    def _look(self, state: TrainState) -> dict[str, float] | None:
        """Figures on the validation split and filled samples; None if there is no time for it."""
        with self._window.paused():
            started = time.perf_counter()
            figures = self._validation_figures(state.params)
            if figures is not None and state.ema is not None:
                ema = self._validation_figures(state.ema)
                figures = ema and figures | {"loss_ema": ema["loss"]}
            if figures is not None:
                seconds = time.perf_counter() - started
                self._report("validation", figures | {"seconds": seconds})
                self._fill_samples(state.params)
        return figures

    def _validation_figures(self, params: dict) -> dict[str, float] | None:
        rows, give_up = self._dataset.validation, lambda: self._stopping.is_urgent
        try:
            sums = self._validate(params, rows, give_up)
        except RuntimeError:
            if give_up():  # the signal has ended the workers too
                return None
            raise
        return sums and summarise(total(sums), self._dataset.languages)

    def _fill_samples(self, params: dict) -> None:
        if self._config.logging.samples:
            started = time.perf_counter()
            filled = fill_samples(self._config, params, self._tokenizer, self._sharding)
            seconds = time.perf_counter() - started
            self._report("samples", {"filled": filled, "seconds": seconds})

    def _save(self, state: TrainState, validation: dict[str, float] | None) -> None:
        with self._window.paused():
            started = time.perf_counter()
            row, data = self._feed.next_row, self._dataset
            position = DataPosition(row, data.train.taken(row))
            self._checkpoints.save(state, self._config, position, data.fingerprint, validation)
            self._saved = self._step
            self._report("saved", {"seconds": time.perf_counter() - started})

    def _go_back(self, state: TrainState) -> TrainState:
        """The state before too many bad steps in a row; the feed leaves their rows out.

        Raises:
          UserError: the config says to stop, the session went back too often, or there is no
            checkpoint to go back to. What is there is saved, and the rows are in metrics.jsonl.
        """
        started, lost_seconds = time.perf_counter(), self._window.unreported_seconds
        config, first, at = self._config.bad_steps, self._streak.first, self._step
        message = f"{self._streak.length} bad steps in a row, from step {first} on"
        if config.action == "stop" or self._rewinds == config.max_rewinds:
            self._end(state, "bad steps")
            where = "metrics.jsonl names their rows; config.bad_steps says what to do"
            raise UserError(f"{message}; {where}")
        try:
            restored = self._checkpoints.restore_newest(
                *state_shardings(self._config, self._sharding), before=first
            )
        except UserError:
            self._end(state, "bad steps")
            raise
        if restored is None:
            self._end(state, "bad steps")
            raise UserError(f"{message}, and no checkpoint before it to go back to")
        first_row = restored.meta["next_row"]
        skipped_to = self._grid.later(first_row, config.rewind_skip_steps)
        next_row = max(self._streak.end_row, skipped_to)
        self._feed.seek(next_row)
        self._part = self._grid.part_at(first_row)
        self._rewinds += 1
        self._step = self._saved = int(restored.state.step)
        self._watch(Streak(config.max_consecutive))
        skipped = [first_row, next_row]
        values = {"from_step": at, "next_row": next_row, "skipped_rows": skipped}
        values |= {"lost_seconds": lost_seconds, "seconds": time.perf_counter() - started}
        self._report("rewound", values)
        return restored.state

    def _end(self, state: TrainState, reason: str | None) -> None:
        """Reports and saves what is not yet, and says why the session ends."""
        if not self._window.is_empty:
            self._report_window()
        self._report_bad_steps()
        if self._saved < self._step:
            self._save(state, None)
        started = time.perf_counter()
        self._checkpoints.wait()
        values = {"reason": reason, "seconds": time.perf_counter() - started}
        spent = goodput_of_session(self._workdir, Line(self._step, "stopped", time.time(), values))
        self._report("stopped", values | spent.values())
        print(spent.describe())

    def _report_window(self) -> None:
        figures = self._window.close()
        if len(self._grid.stages) > 1:
            figures["stage"] = self._grid.stages[self._part.stage].name
        self._report("train", figures)

    def _report_bad_steps(self) -> None:
        for bad in self._window.take_bad_steps():
            values = {"reason": bad.verdict, "loss": bad.loss, "grad_norm": bad.grad_norm}
            values["rows"] = [bad.rows.start, bad.rows.stop]
            values["documents"] = self._dataset.train.origins(bad.rows)
            self._log.write(bad.step, "bad_step", values)
            self._display.report(bad.step, "bad_step", values)

    def _report(self, kind: str, values: dict) -> None:
        self._log.write(self._step, kind, values)
        self._display.report(self._step, kind, values)


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


if __name__ == "__main__":
    cli.run(main, define_flags)
