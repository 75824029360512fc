"""One process's work on a run, from its first or newest state to where it is to stop.

Every process of a run does the same at the same steps; the first of them writes what is written
once. What only some of them could know, as a signal, all of them agree on (`Watch.agreement`).
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from glm_jax.config import Config
from glm_jax.data.dataset import Dataset, equal_batches
from glm_jax.data.feed import Feed
from glm_jax.data.reading import stage_values
from glm_jax.errors import RestartError, UserError
from glm_jax.parallel import watch as phases
from glm_jax.parallel.hosts import Hosts
from glm_jax.parallel.replicas import Replicas
from glm_jax.parallel.sharding import Sharding
from glm_jax.parallel.watch import Watch
from glm_jax.reporting.goodput import goodput_of_session
from glm_jax.reporting.history import Line
from glm_jax.stages import BatchGrid
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.bad_steps import Streak
from glm_jax.training.checkpoint import SAVE_AGAIN, Checkpoints, DataPosition
from glm_jax.training.evaluation import make_validation
from glm_jax.training.logged_samples import fill_samples
from glm_jax.training.metrics import summarise, total
from glm_jax.training.run_folder import check_same_data
from glm_jax.training.speed import make_machine
from glm_jax.training.step import (
    TrainState,
    make_train_step,
    state_shardings,
    with_empty_history,
)
from glm_jax.training.stopping import is_urgent
from glm_jax.training.surroundings import surroundings
from glm_jax.training.window import Window
from glm_jax.training.writers import Display, Writer


class Start(NamedTuple):
    """Where a session goes on."""

    state: TrainState
    next_row: int
    owes_validation: bool  # the validation of this step was given up, or never finished


class Run(NamedTuple):
    """What a session works on and with."""

    config: Config
    dataset: Dataset
    tokenizer: Tokenizer
    sharding: Sharding
    workdir: Path
    hosts: Hosts
    watch: Watch
    max_steps: int | None = None  # the number of the last step of this session


class Session:
    """One process's work on a run: what it reads, where it trains, and where its results go."""

    def __init__(self, run: Run, checkpoints: Checkpoints, log: Writer):
        self._config, self._dataset, self._tokenizer = run.config, run.dataset, run.tokenizer
        self._sharding, self._checkpoints, self._log = run.sharding, checkpoints, log
        self._workdir, self._hosts, self._watch = run.workdir, run.hosts, run.watch
        self._max_steps, self._stop_reason = run.max_steps, None
        self._machine = make_machine(run.config.model, run.sharding)
        self._step = self._saved = self._rewinds = 0
        self._owes_save = False
        self._display = Display(run.config.training.steps, shows=run.hosts.is_first)
        share = run.sharding.host_share
        self._feed = Feed(run.dataset.train, run.config, share)
        self._grid, self._part = BatchGrid(run.config), None
        self._begin_window(Streak(run.config.bad_steps.max_consecutive))
        self._validate = make_validation(
            run.config,
            len(run.dataset.languages),
            run.sharding,
            lambda rows: equal_batches(rows, run.config, share),
        )
        self._replicas = Replicas(run.sharding, *state_shardings(run.config, run.sharding))
        self._watch.when_interrupted(self._interrupted)
        self._watch.agreement.add(checkpoints.wish)

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
          RestartError: devices that should hold the same do not.
        """
        abstract, shardings = state_shardings(self._config, self._sharding)
        about = surroundings(abstract.params, self._sharding, self._machine, self._hosts.count)
        about["changes"] = changes
        for change in changes:
            print(f"changed since the last session: {change}")
        restored = self._checkpoints.restore_newest(abstract, shardings)
        state = init() if restored is None else restored.state
        self._compare_copies(state)
        if restored is None:
            about["start_seconds"] = time.time() - began
            self._log.write(0, "started", {"next_row": 0, **about})
            return Start(state, 0, owes_validation=False)
        step, next_row = int(state.step), restored.meta["next_row"]
        read = self._dataset.train.taken(next_row)
        check_same_data(
            restored.meta, self._dataset.fingerprint, read, allow_change=allow_data_change
        )
        due = _is_due(step, self._config.training.eval_every, self._config.training.steps)
        owes_validation = due and not restored.meta["validation"] and step not in validated
        start = Start(state, next_row, owes_validation)
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
        self._begin_window(Streak(limit, self._step, length, start.next_row))
        with self._display, contextlib.closing(self._feed):
            self._display.start(self._step)
            self._feed.seek(start.next_row)
            owed = start.owes_validation and self._look(state) is None
            while self._step < last and not self._is_to_stop(state):
                self._checkpoints.check()
                coming = self._grid.batch(self._feed.next_row)
                self._watch.sign(phases.READING, self._step + 1, coming)
                try:
                    batch, rows, waited = self._feed.next()
                except RuntimeError:
                    if self._workers_were_ended():
                        break
                    raise
                state = self._enter(state, rows.start)
                step = self._steps(self._part.accumulation_steps)
                phase = phases.STEP if self._window.is_compiled else phases.COMPILING
                self._watch.sign(phase, self._step + 1, rows)
                state, metrics = step(state, self._sharding.place(batch))
                self._step += 1
                self._window.add(self._step, rows, metrics, waited)
                self._watch.nothing_may_be_lost()
                state, owed = self._look_and_save(state)
            is_done = self._step >= last and not owed
            self._end(state, "done" if is_done else self._stop_reason)
        return state

    def _is_to_stop(self, state: TrainState) -> bool:
        """Whether no step may follow; a save that failed is made again on the way."""
        if self._max_steps is not None and self._step >= self._max_steps:
            self._stop_reason = "max_steps"
        self._ask()
        if self._owes_save:
            self._window.catch_up()
            if self._streak.length == 0:
                self._save(state, None)
        return self._stop_reason is not None

    def _ask(self) -> str | None:
        """Why to stop, if one of the processes is to; all call it at the same places."""
        if self._stop_reason is None:
            asked = self._watch.agreement.poll()
            if asked == SAVE_AGAIN:
                self._owes_save = True
            elif asked is not None:
                self._stop_reason = asked
                self._watch.nothing_may_be_lost()  # this loop ends the session now
        return self._stop_reason

    def _workers_were_ended(self) -> bool:
        """Whether the processes that build rows got the signal before they could ignore it."""
        if self._hosts.count > 1:
            return False  # the others have a step to do, and this one no batch for it
        return is_urgent(self._ask())

    def _interrupted(self, reason: str) -> None:
        """Says that the session ends before its first step, with nothing to save."""
        self._say_stopped(reason, seconds=0.0)

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

    def _begin_window(self, streak: Streak) -> None:
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
        if config.hosts.compare_every and step % config.hosts.compare_every == 0:
            self._compare_copies(state)
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

    def _compare_copies(self, state: TrainState) -> None:
        try:
            self._replicas.check(state, self._hosts)
        except RestartError as error:
            self._log.write(self._step, "diverged", {"reason": str(error)})
            raise

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
        batches = itertools.count()

        def give_up() -> bool:
            # The first batch compiles.
            self._watch.sign(phases.VALIDATION if next(batches) else phases.COMPILING)
            return is_urgent(self._ask())

        try:
            sums = self._validate(params, self._dataset.validation, give_up)
        except RuntimeError:
            if self._workers_were_ended():
                return None
            raise
        return sums and summarise(total(sums), self._dataset.languages)

    def _fill_samples(self, params: dict) -> None:
        if self._config.logging.samples:
            started = time.perf_counter()
            self._watch.sign(phases.COMPILING)
            filled = fill_samples(self._config, params, self._tokenizer, self._sharding)
            seconds = time.perf_counter() - started
            self._report("samples", {"filled": filled, "seconds": seconds})

    def _save(self, state: TrainState, validation: dict[str, float] | None) -> None:
        self._watch.sign(phases.SAVING)
        with self._window.paused():
            started = time.perf_counter()
            row, data = self._feed.next_row, self._dataset
            position = DataPosition(row, data.train.taken(row))
            self._checkpoints.save(state, self._config, position, data.fingerprint, validation)
            self._saved, self._owes_save = self._step, False
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
        self._watch.sign(phases.STARTING)
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
        self._begin_window(Streak(config.max_consecutive))
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
        self._watch.sign(phases.SAVING)
        self._checkpoints.wait()
        while self._checkpoints.has_failed:
            self._checkpoints.pause()
            self._save(state, None)
            self._checkpoints.wait()
        self._say_stopped(reason, time.perf_counter() - started)

    def _say_stopped(self, reason: str | None, seconds: float) -> None:
        if not self._hosts.is_first:
            return
        values = {"reason": reason, "seconds": seconds}
        spent = goodput_of_session(self._workdir, Line(self._step, "stopped", time.time(), values))
        self._report("stopped", values | spent.values())
        print(spent.describe())

    def _report_window(self) -> None:
        figures = self._window.close()
        if len(self._grid.stages) > 1:
            figures["stage"] = self._grid.stages[self._part.stage].name
        self._report("train", figures)
        if slow := self._watch.slow_input(figures.get("input_wait", 0.0)):
            self._report("slow_host", slow)

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
