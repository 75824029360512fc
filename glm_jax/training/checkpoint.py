"""Checkpoints of a run: what is saved and when it counts, and which one is restored.

Orbax writes and reads the arrays. A checkpoint counts once its manifest is written, is compared
with it before it is read, and is set aside, never deleted, if it does not agree. `step_folders`
says what lies where.
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from glm_jax.config import CheckpointConfig, Config, to_dict
from glm_jax.errors import UserError
from glm_jax.parallel.hosts import ALONE, Hosts
from glm_jax.training import manifest, saved_state
from glm_jax.training import step_folders as folders
from glm_jax.training.manifest import UNFINISHED, Damaged
from glm_jax.training.step import TrainState
from glm_jax.training.writers import json_value
from glm_jax.versions import versions

SAVE_AGAIN = "save again"
"""What a failed save wishes for."""

_SPACE_MARGIN = 1.1  # room a save needs, as a multiple of the bytes of the state
_SHORTEST_PAUSE = 2.0  # seconds until a failed save is tried again
_FULL = "No space left on device"

T = TypeVar("T")


class SetAside(NamedTuple):
    """A checkpoint that was moved out of the way."""

    step: int
    moved_to: Path
    reason: str  # one line


class DataPosition(NamedTuple):
    """Where a run stands in its data.

    Attributes:
      next_row: index of the first row that was not trained on, the whole state of the data.
      tokens_read: by source, what all rows before it take under the config of the run.
    """

    next_row: int
    tokens_read: dict[str, int]


class Restored(NamedTuple):
    state: TrainState
    meta: dict  # what `Checkpoints.save` was told: next_row, tokens_read, data, config, ...
    set_aside: list[SetAside]


class Checkpoints:
    """Saves and restores a run's state; saving is asynchronous.

    Opening removes what killed processes left of their saves. The methods are for one thread, but
    for `wish`. Of several processes each writes and verifies its part, and all of them call each
    method together; the folder is one that they share.

    Raises:
      UserError: the folder cannot be used.
    """

    def __init__(
        self,
        workdir: Path,
        config: CheckpointConfig,
        on_damage: Callable[[SetAside], None] = lambda _: None,
        on_failure: Callable[[int, str], None] = lambda *_: None,
        hosts: Hosts = ALONE,
    ):
        """Opens the folder.

        Args:
          on_damage: hears of each checkpoint that is found damaged, as it is set aside.
          on_failure: hears the step of a save that failed and is tried again, and why.
        """
        self._root = (workdir / "checkpoints").absolute()
        self._config, self._hosts = config, hosts
        self._on_damage, self._on_failure = on_damage, on_failure
        try:
            if hosts.is_first:
                self._root.mkdir(parents=True, exist_ok=True)
                folders.remove_leftovers(self._root)
        except OSError as error:
            raise UserError(f"{self._root} cannot be used: {error}") from error
        hosts.wait("checkpoints")
        logging.getLogger("absl").addFilter(_is_no_traceback_of_orbax)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[str] | None = None
        self._step = 0  # of the last save
        self._failing_since: float | None = None
        self._retry_at = math.inf

    @property
    def latest_step(self) -> int | None:
        """The newest step whose save was finished; None if there is none."""
        return max(folders.finished_steps(self._root), default=None)

    def save(
        self,
        state: TrainState,
        config: Config,
        position: DataPosition,
        data: dict[str, list],
        validation: dict[str, float] | None,
    ) -> None:
        """Starts to save a state, once the save before it is finished, or has failed.

        Args:
          position: where the data stands.
          data: fingerprint of the dataset.
          validation: figures of this very state, if there are any; `loss` ranks checkpoints.

        Raises:
          UserError: there is no room for it, or the save before it failed for good.
        """
        self.wait()
        self._retry_at = math.inf
        step, items = int(state.step), saved_state.items_of(state)
        self._step = step
        folder = self._root / str(step)
        meta = {
            "format_version": saved_state.FORMAT_VERSION,
            "step": step,
            "saved_at": time.time(),
            **position._asdict(),
            "data": data,
            "config": to_dict(config),
            "validation": validation and json_value(validation),
            "arrays": saved_state.array_specs(items),
            "versions": versions(),
        }
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        composite = ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(meta))
        # Every process begins it, or none.
        reason = self._first_reason("save", lambda: self._make_room(folder, items))
        reason = reason or _reason(lambda: self._orbax.save(folder, args=composite))
        self._saving = self._finisher.submit(self._finish, folder, reason)

    def _make_room(self, folder: Path, items: dict) -> None:
        if self._hosts.is_first:
            _check_free_space(folder, items)
            folders.make_way(folder)

    @property
    def has_failed(self) -> bool:
        """Whether the last save that is known to be over failed, and may be tried again."""
        return self._failing_since is not None

    def pause(self) -> None:
        """Waits until it is time to try a failed save again."""
        time.sleep(max(0.0, self._retry_at - time.monotonic()))

    def wish(self) -> str | None:
        """`SAVE_AGAIN` when it is time to try a failed save again; for any thread."""
        return SAVE_AGAIN if time.monotonic() >= self._retry_at else None

    def check(self) -> None:
        """Notes how a save in the background went; never waits.

        Raises:
          UserError: the save failed for good; the checkpoints before it are as they were.
        """
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in flight; raises as `check` does."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        if reason := saving.result():
            self._note_failure(reason)
        else:
            self._failing_since, self._retry_at = None, math.inf

    def _note_failure(self, reason: str) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        tried = now - self._failing_since
        if tried > self._config.retry_seconds:
            raise UserError(f"{reason}, tried for {tried:.0f} s")
        self._retry_at = now + max(_SHORTEST_PAUSE, tried)
        self._on_failure(self._step, reason)

    def close(self) -> None:
        """Waits for the save in flight; raises as `check` does, if that has not been raised yet."""
        try:
            self.wait()
        finally:
            self._finisher.shutdown()
            self._orbax.close()

    def restore_newest(
        self, abstract: TrainState, shardings: TrainState, *, before: int | None = None
    ) -> Restored | None:
        """The newest checkpoint that is whole; those that are not are set aside on the way.

        Args:
          abstract: shapes and dtypes of the state.
          shardings: how to lay it out, whatever mesh saved it.
          before: restore a step before this one. Once that is done, the others are set aside as
            rewound, so that their numbers are free.

        Returns:
          None if no save of the run was ever finished.

        Raises:
          UserError: no checkpoint is good, or one is and does not fit: it has another format, or
            other arrays, shapes or dtypes.
        """
        self.wait()
        found = json.dumps(list(reversed(folders.step_folders(self._root))))
        steps = json.loads(self._hosts.from_first("steps", found))
        later = [step for step in steps if before is not None and step >= before]
        moved = []
        for step in steps[len(later) :]:
            try:
                state, meta = self._restore(step, abstract, shardings)
            except Damaged as bad:
                moved.append(self._set_aside(step, bad.kind, str(bad)))
                self._on_damage(moved[-1])
                continue
            reason = f"training went back to step {step}"
            rewound = [self._set_aside(other, "rewound", reason) for other in later]
            return Restored(state, meta, rewound + moved)
        self._check_nothing_is_lost(moved, later)
        return None

    def _finish(self, folder: Path, reason: str) -> str:
        """In the background: gives a committed checkpoint its manifest; then others may go.

        Args:
          reason: why the save could not be started, or nothing.

        Returns:
          Why it failed, where it may be tried again; or nothing.
        """
        parts = (
            self._orbax.wait_until_finished,
            lambda: manifest.write(folder, self._hosts.index, self._hosts.count),
            self._delete_superseded,
        )
        for part in parts:
            # No process goes on with its part before all have done theirs.
            reason = self._first_reason("saving", part, reason)
            if reason:
                return self._failed(folder, reason)
        return ""

    def _first_reason(self, topic: str, part: Callable[[], None], reason: str = "") -> str:
        """Why one of the processes could not do its part; one that has a reason does not try."""
        reasons = self._hosts.exchange(topic, reason or _reason(part))
        return next(filter(None, reasons), "")

    def _delete_superseded(self) -> None:
        if self._hosts.is_first:
            for step in folders.superseded(self._root, self._config):
                folders.delete(self._root / str(step))

    def _failed(self, folder: Path, reason: str) -> str:
        """Says what to do about a save that failed; its leftovers would keep a full disk full."""
        if self._hosts.is_first:
            with contextlib.suppress(OSError):
                folders.remove_leftovers(self._root)
        message = f"checkpoint {folder} was not saved: {reason}"
        if reason == _FULL:
            raise UserError(message)
        return message

    def _restore(
        self, step: int, abstract: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict]:
        folder = self._root / str(step)
        meta = self._together(
            lambda: saved_state.verified_meta(folder, None, self._hosts.index, self._hosts.count)
        )
        items, layouts = saved_state.items_of(abstract), saved_state.items_of(shardings)
        saved_state.check_fit(folder, meta["arrays"], saved_state.array_specs(items))
        targets = {
            name: ocp.args.StandardRestore(saved_state.laid_out(tree, layouts[name]))
            for name, tree in items.items()
        }
        restored = self._together(lambda: saved_state.read(self._orbax, folder, targets))
        counter = jax.make_array_from_callback((), shardings.step, lambda _: np.int32(step))
        return abstract._replace(**restored, step=counter), meta

    def _together(self, read: Callable[[], T]) -> T:
        """What this process reads, unless any finds that the checkpoint must not be used."""
        result, damage = None, ""
        try:
            result = read()
        except Damaged as bad:
            damage = json.dumps([bad.kind, str(bad)])
        found = next(filter(None, self._hosts.exchange("read", damage)), "")
        if found:
            raise Damaged(*json.loads(found))
        return result

    def _set_aside(self, step: int, why: str, reason: str) -> SetAside:
        target = None
        if self._hosts.is_first:
            target = str(folders.set_aside(self._root / str(step), why))
        return SetAside(step, Path(self._hosts.from_first("set aside", target)), reason)

    def _check_nothing_is_lost(self, moved: list[SetAside], later: list[int]) -> None:
        """A run that was killed in its very first save may begin again; with more it may not.

        Checkpoints that an earlier session set aside count, or a supervisor's second try would
        silently begin again. A kill leaves no more than one save unfinished.
        """
        aside = [(why, path) for _, why, path in folders.set_aside_folders(self._root)]
        if later or len(moved) > 1 or {why for why, _ in aside} - {UNFINISHED, folders.FOREIGN}:
            reasons = {bad.moved_to: f" ({bad.reason})" for bad in moved}
            found = [f"{folders.SET_ASIDE}/{p.name}{reasons.get(p, '')}" for _, p in aside]
            found += [f"{step} (too late)" for step in later]
            raise UserError(
                f"{self._root} has no good checkpoint to go on from: {'; '.join(found)}"
            )


def _check_free_space(folder: Path, items: dict) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) * _SPACE_MARGIN
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(
            f"checkpoint {folder} was not saved: it needs {_megabytes(needed)}, "
            f"{_megabytes(free)} are free, {_megabytes(needed - free)} are missing"
        )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _reason(action: Callable[[], object]) -> str:
    """Why the action failed, in one line; nothing if it did not.

    Raises:
      UserError: as the action does.
    """
    try:
        action()
    except UserError:
        raise
    except Exception as error:
        return _FULL if _FULL in str(error) else f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs what fails in its threads several pages long; `check` says it in a line."""
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)
