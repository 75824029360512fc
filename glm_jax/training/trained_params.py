"""The parameters of a checkpoint without the rest of its state; nothing on disk is changed."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.parallel.sharding import Sharding, param_name
from glm_jax.stages import stages_of
from glm_jax.training import saved_state
from glm_jax.training import step_folders as folders
from glm_jax.training.manifest import Damaged
from glm_jax.training.run_folder import load_config

T = TypeVar("T")


def load_params(
    workdir: Path, step: int | None = None, *, ema: bool = False, sharding: Sharding | None = None
) -> tuple[Config, dict, int]:
    """Config, parameters and step of a run's checkpoint.

    Of the files that are not read, only names and sizes are compared with the manifest.

    Args:
      step: None for the newest good one; a newer one that is not good is named on standard error.
      ema: the moving average of the parameters instead of them.
      sharding: lays the arrays out on its mesh; None for numpy arrays on the host.

    Raises:
      UserError: there is no such run or step, the step is damaged, none is good, the run keeps no
        average, or the checkpoint does not fit the run's config.
    """
    return _newest_good(
        workdir, step, ema, lambda folder, item, config: _read(folder, item, config, sharding)
    )


def open_params(
    workdir: Path, step: int | None = None, *, ema: bool = False
) -> tuple[Config, "TrainedParams", int]:
    """As `load_params`, of parameters that are read one at a time."""
    return _newest_good(workdir, step, ema, TrainedParams)


class TrainedParams(Mapping[str, np.ndarray]):
    """The parameters of one checkpoint by flattened name; the last one asked for is in memory."""

    def __init__(self, folder: Path, item: str, config: Config):
        self._folder, self._item = folder, item
        shapes, _ = _checked_shapes(folder, item, config)
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        self._shapes = {param_name(path): leaf for path, leaf in leaves}
        self._last: tuple[str, np.ndarray | None] = ("", None)

    def __getitem__(self, name: str) -> np.ndarray:
        if self._last[0] != name:
            self._last = ("", None)  # two at once would be too many
            self._last = (name, self._read(name))
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name].shape

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self._shapes[name].dtype)

    def _read(self, name: str) -> np.ndarray:
        *parents, leaf = name.split("/")
        shape = {leaf: self._shapes[name]}
        on_host = {leaf: ocp.RestoreArgs(restore_type=np.ndarray)}
        for parent in reversed(parents):
            shape, on_host = {parent: shape}, {parent: on_host}
        target = ocp.args.PyTreeRestore(shape, restore_args=on_host, partial_restore=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
            try:
                tree = saved_state.read(orbax, self._folder, {self._item: target})[self._item]
            except Damaged as bad:
                raise UserError(f"checkpoint {self._folder} is not good: {bad}") from bad
        for key in (*parents, leaf):
            tree = tree[key]
        return tree


def check_fills_blanks(workdir: Path) -> None:
    """Refuses a run whose rows never ask for the answers of blanks one by one.

    Raises:
      UserError: it is such a run, or none.
    """
    objectives = [stage.config.objective for stage in stages_of(load_config(workdir))]
    if not any(objective.fills_blanks for objective in objectives):
        weights = [objective.weights for objective in objectives]
        learned = [name for name in weights[0] if any(each[name] for each in weights)]
        raise UserError(
            f"{workdir} does not learn to fill blanks: all rows are {', '.join(learned)}"
        )


def trained_data(workdir: Path) -> dict | None:
    """Fingerprint of the data that the newest readable checkpoint was trained on, if any is."""
    for folder in reversed(folders.step_folders((workdir / "checkpoints").absolute()).values()):
        with contextlib.suppress(Damaged):
            return saved_state.read_meta(folder)["data"]
    return None


def _newest_good(
    workdir: Path, step: int | None, ema: bool, read: Callable[[Path, str, Config], T]
) -> tuple[Config, T, int]:
    config = load_config(workdir)
    if ema and not config.optimizer.ema_decay:
        raise UserError(f"{workdir} keeps no moving average: config.optimizer.ema_decay is 0")
    root = (workdir / "checkpoints").absolute()
    steps = list(folders.step_folders(root))
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" {step}"
        raise UserError(f"{workdir} has no checkpoint{wanted}; it has steps {steps}")
    item = "ema" if ema else "params"
    for candidate in reversed(steps) if step is None else [step]:
        folder = root / str(candidate)
        try:
            return config, read(folder, item, config), candidate
        except Damaged as bad:
            if step is not None:
                raise UserError(f"checkpoint {folder} is not good: {bad}") from bad
            print(f"checkpoint {folder} is passed over: {bad}", file=sys.stderr)
    raise UserError(f"{workdir} has no good checkpoint; it has steps {steps}")


def _read(folder: Path, item: str, config: Config, sharding: Sharding | None) -> dict:
    """One of the trees of parameters, where `sharding` says."""
    shapes, axes = _checked_shapes(folder, item, config)
    if sharding is None:
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        target = ocp.args.PyTreeRestore(shapes, restore_args=on_host)
    else:
        layout = sharding.tree(shapes, axes)
        target = ocp.args.StandardRestore(saved_state.laid_out(shapes, layout))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
        return saved_state.read(orbax, folder, {item: target})[item]


def _checked_shapes(folder: Path, item: str, config: Config) -> tuple[dict, dict]:
    """Shapes and axes of the parameters; the files agree with their manifest and with these."""
    shapes, axes = glm.abstract_params(config.model)
    if item == "ema":
        shapes = jax.tree.map(_wide, shapes)
    meta = saved_state.verified_meta(folder, (item, "meta"))
    saved = {name: spec for name, spec in meta["arrays"].items() if name.split("/")[0] == item}
    saved_state.check_fit(folder, saved, saved_state.array_specs({item: shapes}))
    return shapes, axes


def _wide(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, jnp.promote_types(shape.dtype, jnp.float32))
