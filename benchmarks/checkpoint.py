"""Time of a verified checkpoint beside plain Orbax, in the same run.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --megabytes=2000 --folder=/mnt/disk

The state is float32 random numbers: parameters and two moments, 64 arrays. Every round saves and
restores once with each; times are medians over the rounds. Both write to the same folder and read
what they have just written, so reads come from memory where there is enough of it. Pass --folder to
measure another disk. "until training goes on" is what a training step waits for; the rest of a
save happens in the background.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from glm_jax.config import Config
from glm_jax.training import manifest
from glm_jax.training.bad_steps import empty_history
from glm_jax.training.checkpoint import Checkpoints, DataPosition
from glm_jax.training.step import TrainState

ORBAX_BLOCKING = "Orbax save, until training goes on"
ORBAX_SAVE = "Orbax save, to the end"
ORBAX_RESTORE = "Orbax restore"
ARRAYS = 64
CONFIG = Config()


def main() -> None:
    args = parse_arguments()
    state = make_state(args.megabytes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    print(f"jax {jax.__version__}, orbax {ocp.__version__}, {jax.default_backend()}, ", end="")
    print(f"{os.cpu_count()} {platform.machine()} cores, {size:.0f} MB, {args.rounds} rounds\n")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rounds = [measure(Path(folder) / str(i), state) for i in range(args.rounds)]
    print_table({name: statistics.median(r[name] for r in rounds) for name in rounds[0]}, size)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200, help="bytes of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; default: temporary files")
    return parser.parse_args()


def make_state(megabytes: int) -> TrainState:
    """Parameters and two moments of ARRAYS arrays in all."""
    rng = np.random.default_rng(0)
    rows = max(1, megabytes * 10**6 // (ARRAYS * 4 * 1024))
    arrays = [jnp.asarray(rng.normal(size=(rows, 1024)).astype("float32")) for _ in range(ARRAYS)]
    third = ARRAYS // 3
    params, first, second = (
        {f"layer_{i}": array for i, array in enumerate(part)}
        for part in (arrays[:third], arrays[third : 2 * third], arrays[2 * third :])
    )
    history = empty_history(CONFIG.bad_steps)
    return TrainState(params, None, {"mu": first, "nu": second}, history, jnp.int32(1))


def measure(folder: Path, state: TrainState) -> dict[str, float]:
    """Seconds of every entry; what was written is removed."""
    seconds = measure_orbax(folder / "orbax", state) | measure_ours(folder / "ours", state)
    shutil.rmtree(folder)
    return seconds


def measure_orbax(folder: Path, state: TrainState) -> dict[str, float]:
    items = {name: tree for name, tree in state._asdict().items() if name not in ("ema", "step")}
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, items)
    save = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    restore = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    with ocp.CheckpointManager(folder) as manager:
        blocking = timed(lambda: manager.save(1, args=ocp.args.Composite(**save)))
        rest = timed(manager.wait_until_finished)
        read = timed(lambda: dict(manager.restore(1, args=ocp.args.Composite(**restore)).items()))
    return {ORBAX_BLOCKING: blocking, ORBAX_SAVE: blocking + rest, ORBAX_RESTORE: read}


def measure_ours(folder: Path, state: TrainState) -> dict[str, float]:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = folder / "checkpoints" / "1"
    with contextlib.closing(Checkpoints(folder, CONFIG.checkpoint)) as checkpoints:
        blocking = timed(lambda: checkpoints.save(state, CONFIG, DataPosition(0, {}), {}, None))
        rest = timed(checkpoints.wait)
        read = timed(lambda: checkpoints.restore_newest(abstract, shardings).state)
    return {
        "glm_jax save, until training goes on": blocking,
        "glm_jax save, to the end": blocking + rest,
        "of which the manifest": timed(lambda: manifest.write(step)),
        "glm_jax restore (seconds to resume)": read,
        "of which comparing with the manifest": timed(lambda: manifest.verify(step)),
    }


def timed(call: Callable) -> float:
    """Seconds until the call is done and what it returns is there."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def print_table(seconds: dict[str, float], size: float) -> None:
    peers = [ORBAX_BLOCKING, ORBAX_SAVE, ORBAX_RESTORE]
    peers += [ORBAX_BLOCKING, ORBAX_SAVE, ORBAX_SAVE, ORBAX_RESTORE, ORBAX_RESTORE]
    print("| entry | seconds | MB/s | time / Orbax |")
    print("|---|---|---|---|")
    for (name, taken), peer in zip(seconds.items(), peers, strict=True):
        print(f"| {name} | {taken:.3f} | {size / taken:.0f} | {taken / seconds[peer]:.2f} |")


if __name__ == "__main__":
    main()
