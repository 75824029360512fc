"""Checkpoints of a run, behind one file: Orbax writes them, this decides what and when.

A run's folder holds `config.json` (resolved), `tokenizer/`, `metrics.jsonl` and
`checkpoints/<step>/` with the items params, opt_state and meta.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from glm_jax.config import CheckpointConfig, Config, from_dict, run_identity, to_dict
from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.model import glm
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.step import TrainState

FORMAT_VERSION = 1
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")


def open_run(workdir: Path, config: Config, tokenizer: Tokenizer) -> None:
    """Creates the run's folder, or checks that an existing one is this run.

    Raises:
      UserError: the folder holds something else, or a run with another tokenizer or with a config
        that would change its rows or parameters.
    """
    if not (workdir / "config.json").exists():
        _create_run(workdir, config, tokenizer)
        return
    saved = run_identity(load_config(workdir))
    for name, value in run_identity(config).items():
        if saved.get(name) != value:
            raise UserError(
                f"--workdir {workdir} holds another run: config.{name} is {saved.get(name)!r} "
                f"there and {value!r} here"
            )
    saved_tokenizer = Tokenizer.load(workdir / "tokenizer")
    if saved_tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--workdir {workdir} was trained with tokenizer {saved_tokenizer.fingerprint[:12]}, "
            f"the data has {tokenizer.fingerprint[:12]}"
        )
    _write_json(workdir / "config.json", to_dict(config))


def _create_run(workdir: Path, config: Config, tokenizer: Tokenizer) -> None:
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UserError(f"--workdir {workdir} is not empty and holds no run (no config.json)")
    with written_whole(workdir) as partial:
        shutil.copytree(tokenizer.dir, partial / "tokenizer")
        _write_json(partial / "config.json", to_dict(config))


def load_config(workdir: Path) -> Config:
    """The resolved config of a run.

    Raises:
      UserError: the folder holds no run.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing")
    return from_dict(json.loads(path.read_text()))


class Checkpoints:
    """Saves and restores a run's state; saving is asynchronous."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._root = (workdir / "checkpoints").absolute()
        policies = ocp.checkpoint_managers
        keep = [policies.LatestN(config.keep_latest)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        if config.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=_validation_loss,
                    reverse=True,
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                # Not max_to_keep: with best_fn that deletes the latest steps. And best_fn only
                # because without it the losses are not written, and a resumed run forgets the best.
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=_validation_loss,
                best_mode="min",
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return max(_complete_steps(self._root), default=None)

    def save(
        self,
        state: TrainState,
        config: Config,
        next_row: int,
        data: dict[str, list],
        validation: dict[str, float] | None,
    ) -> None:
        """Starts to save a state.

        Args:
          next_row: index of the first row that was not trained on, the whole state of the data.
          data: fingerprint of the dataset.
          validation: figures of this very state, if there are any; `loss` ranks checkpoints.
        """
        step = int(state.step)
        meta = {
            "format_version": FORMAT_VERSION,
            "next_row": next_row,
            "data": data,
            "config": to_dict(config),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                opt_state=ocp.args.StandardSave(state.opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=None if validation is None else {"loss": validation["loss"]},
        )

    def restore(
        self, step: int, abstract: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict]:
        """State of a step, laid out by `shardings` whatever mesh saved it, and its meta."""
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            abstract,
            shardings,
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target.params),
                opt_state=ocp.args.StandardRestore(target.opt_state),
                meta=ocp.args.JsonRestore(),
            ),
        )
        version = restored.meta["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(
                f"{self._root / str(step)} has format {version}, this program {FORMAT_VERSION}"
            )
        counter = jax.device_put(np.int32(step), shardings.step)
        return TrainState(restored.params, restored.opt_state, counter), restored.meta

    def close(self) -> None:
        """Waits for saves in flight; raises what they raised."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_params(workdir: Path, step: int | None = None) -> tuple[Config, dict, int]:
    """Config, parameters as numpy arrays on the host, and step of a run's checkpoint.

    Args:
      step: None for the latest.

    Raises:
      UserError: no such run or step.
    """
    config = load_config(workdir)
    root = (workdir / "checkpoints").absolute()
    steps = _complete_steps(root)
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" {step}"
        raise UserError(f"{workdir} has no checkpoint{wanted}; it has steps {steps}")
    step = steps[-1] if step is None else step
    shapes, _ = glm.abstract_params(config.model)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    manager = ocp.CheckpointManager(root)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(params=ocp.args.PyTreeRestore(shapes, restore_args=as_numpy)),
    )
    manager.close()
    return config, restored.params, step


def _complete_steps(root: Path) -> list[int]:
    """Steps of the folder that hold a checkpoint, ascending; anything else in it is ignored."""
    names = (path.parent.name for path in root.glob("*/params"))
    return sorted(int(name) for name in names if name.isdecimal())


def _validation_loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def _write_json(path: Path, value) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)
