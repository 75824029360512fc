"""Checkpoints of a run: what is saved and when it counts, and which one is restored.

Orbax writes and reads the arrays. A checkpoint counts once its manifest is written, is compared
with it before it is read, and is set aside, never deleted, if it does not agree. `step_folders`
says what lies where.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from glm_jax.config import CheckpointConfig, Config, to_dict
from glm_jax.errors import UserError
from glm_jax.training import manifest, saved_state
from glm_jax.training import step_folders as folders
from glm_jax.training.manifest import UNFINISHED, Damaged
from glm_jax.training.step import TrainState
from glm_jax.training.writers import json_value
from glm_jax.versions import versions

_SPACE_MARGIN = 1.1  # room a save needs, as a multiple of the bytes of the state


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

    Opening removes what killed processes left of their saves. The methods are for one thread.

    Raises:
      UserError: the folder cannot be used.
    """

    def __init__(
        self,
        workdir: Path,
        config: CheckpointConfig,
        on_damage: Callable[[SetAside], None] = lambda _: None,
    ):
        """`on_damage` hears of each checkpoint that is found damaged, as it is set aside."""
        self._root = (workdir / "checkpoints").absolute()
        self._config, self._on_damage = config, on_damage
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            folders.remove_leftovers(self._root)
        except OSError as error:
            raise UserError(f"{self._root} cannot be used: {error}") from error
        logging.getLogger("absl").addFilter(_is_no_traceback_of_orbax)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future | None = None

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
        """Starts to save a state, once the save before it is finished.

        Args:
          position: where the data stands.
          data: fingerprint of the dataset.
          validation: figures of this very state, if there are any; `loss` ranks checkpoints.

        Raises:
          UserError: there is no room for it, it cannot be written, or the save before it failed.
        """
        self.wait()
        step, items = int(state.step), saved_state.items_of(state)
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
        try:
            _check_free_space(folder, items)
            folders.make_way(folder)
            self._orbax.save(
                folder, args=ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(meta))
            )
        except UserError:
            raise
        except Exception as error:
            raise self._failed(folder, error) from error
        self._saving = self._finisher.submit(self._finish, folder)

    def check(self) -> None:
        """Raises what a save in the background has raised; never waits.

        Raises:
          UserError: the save failed; the checkpoints before it are as they were.
        """
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in flight; raises as `check` does."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

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
        steps = list(reversed(folders.step_folders(self._root)))
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

    def _finish(self, folder: Path) -> None:
        """In the background: gives a committed checkpoint its manifest; then others may go."""
        try:
            self._orbax.wait_until_finished()
            manifest.write(folder, jax.process_index(), jax.process_count())
            for step in folders.superseded(self._root, self._config):
                folders.delete(self._root / str(step))
        except Exception as error:
            raise self._failed(folder, error) from error

    def _failed(self, folder: Path, error: Exception) -> UserError:
        """What to raise for a save that failed; its leftovers would keep a full disk full."""
        with contextlib.suppress(OSError):
            folders.remove_leftovers(self._root)
        return UserError(f"checkpoint {folder} was not saved: {_one_line(error)}")

    def _restore(
        self, step: int, abstract: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict]:
        folder = self._root / str(step)
        meta = saved_state.verified_meta(folder)
        items, layouts = saved_state.items_of(abstract), saved_state.items_of(shardings)
        saved_state.check_fit(folder, meta["arrays"], saved_state.array_specs(items))
        targets = {
            name: ocp.args.StandardRestore(saved_state.laid_out(tree, layouts[name]))
            for name, tree in items.items()
        }
        restored = saved_state.read(self._orbax, folder, targets)
        counter = jax.device_put(np.int32(step), shardings.step)
        return abstract._replace(**restored, step=counter), meta

    def _set_aside(self, step: int, why: str, reason: str) -> SetAside:
        return SetAside(step, folders.set_aside(self._root / str(step), why), reason)

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


def _one_line(error: Exception) -> str:
    full = "No space left on device"
    return full if full in str(error) else f"{type(error).__name__}: {error}".splitlines()[0]


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs what fails in its threads several pages long; `check` says it in a line."""
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)
