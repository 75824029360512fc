"""What a step costs beside its mathematics: compilation, dispatch, start of a run, safety.

    python benchmarks/compile.py
    python benchmarks/compile.py --parts=dispatch --layers=48

- compile: seconds until the first step of a model of `--width` is done, by the number of layers,
  with the loop over layers and written out. The cache of compiled programs is off.
- dispatch: time of the host for a step of the deepest model: to place the batch, to call the step
  (which returns before the device is done) and to read its figures afterwards. Seconds of this
  thread on a core; what it waits is left out, so other programs do not disturb it.
- start: seconds from the start of `python -m glm_jax.train --config=configs/glm_tiny.py` to the
  loss of the first step, with an empty cache and with that of the run before.
- price: the training step beside a bare one (loss, gradient, clipping, AdamW; no metrics, no judge
  of bad steps), at `--price-width`. Rounds that take turns; the median of their ratios and the
  range of their middle half, of seconds and of the CPU seconds of all threads.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from packed_rows import glm_rows

from glm_jax.batch import Batch
from glm_jax.config import Config, from_dict
from glm_jax.model import glm
from glm_jax.ops.cross_entropy import target_cross_entropy
from glm_jax.parallel.sharding import Sharding, make_sharding
from glm_jax.training.optimizer import make_optimizer
from glm_jax.training.step import TrainState, init_state, make_train_step

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 8000


def main() -> None:
    args = parse_arguments()
    device = jax.devices()[0].device_kind
    print(
        f"jax {jax.__version__}; Python {platform.python_version()}; {jax.device_count()} x "
        f"{device}, {os.cpu_count()} cores"
    )
    for part in args.parts:
        print(f"\n## {part}\n")
        PARTS[part](args)


def time_compilation(args) -> None:
    print("| layers | loop: first step s | written out: first step s |\n|---|---|---|")
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    for layers in args.layers:
        cells = []
        for scan in (True, False):
            if not scan and layers > args.most_unrolled:
                cells.append("-")
                continue
            config = toy_config(args.width, layers, scan_layers=scan)
            sharding, state, batch = start(config)
            step = make_train_step(config, sharding, num_sources=1)
            began = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            cells.append(f"{time.perf_counter() - began:.1f}")
        print(f"| {layers} | {' | '.join(cells)} |", flush=True)
    jax.config.update("jax_enable_compilation_cache", before)


def time_dispatch(args) -> None:
    config = toy_config(args.width, args.layers[-1])
    sharding, state, _ = start(config)
    rows = host_rows(config)
    step = make_train_step(config, sharding, num_sources=1)
    state, metrics = step(state, sharding.place(rows))
    seconds = {"place the batch": [], "call the step": [], "read its figures": []}

    def timed(name: str, function, *arguments):
        began = time.thread_time()
        result = function(*arguments)
        seconds[name].append(time.thread_time() - began)
        return result

    for _ in range(args.calls):
        batch = timed("place the batch", sharding.place, rows)
        state, metrics = timed("call the step", step, state, batch)
        jax.block_until_ready(state)
        timed("read its figures", jax.device_get, metrics)
    leaves = len(jax.tree.leaves((state, batch)))
    print(f"{config.model.num_layers} layers, {leaves} arrays go in, {args.calls} steps\n")
    print("| | ms, median | ms, 9 of 10 below |\n|---|---|---|")
    total = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
    for name, found in (seconds | {"together": total}).items():
        high = statistics.quantiles(found, n=10)[-1]
        print(f"| {name} | {statistics.median(found) * 1e3:.2f} | {high * 1e3:.2f} |")


def time_start(args) -> None:
    from reference_run import prepare_data

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = Path(args.data).absolute() if args.data else prepare_data([], work / "prepared")
        print("| cache of compiled programs | first loss after s |\n|---|---|")
        for name in ("empty", "of the run before", "of the runs before"):
            seconds = first_loss(data, work / name, cache=work / "cache")
            print(f"| {name} | {seconds:.1f} |", flush=True)


def first_loss(data: Path, workdir: Path, cache: Path) -> float:
    """Seconds until a new run has written the figures of its first step.

    Raises:
      RuntimeError: it ended without.
    """
    command = [sys.executable, "-m", "glm_jax.train", "--config=configs/glm_tiny.py"]
    command += [f"--config.data.dir={data}", f"--workdir={workdir}", "--max_steps=1"]
    command += ["--config.training.log_every=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    metrics = workdir / "metrics.jsonl"
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as run:
        while not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
            if run.poll() is not None:
                raise RuntimeError(f"the run ended with {run.returncode}, before its first loss")
            time.sleep(0.02)
        return time.perf_counter() - began


def time_price(args) -> None:
    config = toy_config(args.price_width, args.price_layers, length=512, rows=args.price_rows)
    sharding, state, batch = start(config)
    steps = {
        "full": make_train_step(config, sharding, num_sources=1),
        "bare": bare_step(config, sharding),
    }
    for step in steps.values():
        state = step(state, batch)[0]
    jax.block_until_ready(state)
    clocks = {"seconds": time.perf_counter, "CPU seconds": time.process_time}
    found = {(name, clock): [] for name in steps for clock in clocks}
    for number in range(args.price_rounds):
        # The one that comes second may profit or suffer from the first.
        for name in sorted(steps, reverse=bool(number % 2)):
            began = {clock: read() for clock, read in clocks.items()}
            state = steps[name](state, batch)[0]
            jax.block_until_ready(state)
            for clock, read in clocks.items():
                found[name, clock].append(read() - began[clock])
    print(f"{args.price_rounds} rounds\n")
    print("| | bare step | training step | dearer by | middle half |\n|---|---|---|---|---|")
    for clock in clocks:
        full, bare = found["full", clock], found["bare", clock]
        ratios = [a / b - 1 for a, b in zip(full, bare, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = f"{statistics.median(bare):.3f} | {statistics.median(full):.3f}"
        print(f"| {clock} | {medians} | {middle:+.1%} | {low:+.1%} to {high:+.1%} |")


def bare_step(config: Config, sharding: Sharding):
    """The shortest step that trains the same: `(state, batch) -> (state, loss)`."""
    optimizer = make_optimizer(config.optimizer, glm.abstract_params(config.model)[0])

    def loss(params: dict, batch: Batch) -> jax.Array:
        hidden = glm.apply_hidden(
            config.model, params, batch.tokens, batch.position, batch.block_position,
            batch.kv_start, batch.kv_end,
        )  # fmt: skip
        kernel = glm.output_kernel(config.model, params)
        total, _ = target_cross_entropy(hidden, kernel, batch.targets, batch.weights)
        return total / batch.weights.sum()

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = config.optimizer.learning_rate
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        return state._replace(params=params, opt_state=opt_state), value

    jitted = jax.jit(step, donate_argnums=0)

    def call(state, batch):
        with sharding.activate():
            return jitted(state, batch)

    return call


def toy_config(
    width: int, layers: int, *, scan_layers: bool = True, length: int = 32, rows: int = 4
) -> Config:
    model = {"vocab_size": VOCAB, "num_layers": layers, "hidden_dim": width, "mlp_dim": 4 * width}
    model |= {"num_heads": 4, "max_positions": length, "dtype": "float32"}
    return from_dict(
        {
            "model": model | {"scan_layers": scan_layers},
            "data": {"seq_length": length},
            "optimizer": {"schedule": "constant", "warmup_steps": 0},
            "training": {"batch_size": rows},
            "mesh": {"data": 1, "fsdp": -1},
        }
    )


def start(config: Config) -> tuple[Sharding, TrainState, Batch]:
    sharding = make_sharding(config.mesh)
    state = init_state(config, sharding)
    return sharding, jax.block_until_ready(state), sharding.place(host_rows(config))


def host_rows(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    rows, length = config.training.batch_size, config.data.seq_length
    return glm_rows(rng, rows, length, documents=2, vocab_size=VOCAB)


PARTS = {
    "compile": time_compilation,
    "dispatch": time_dispatch,
    "start": time_start,
    "price": time_price,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument(
        "--layers",
        type=lambda text: sorted(int(part) for part in text.split(",")),
        default=[6, 12, 24, 48],
    )
    parser.add_argument("--most-unrolled", type=int, default=24, help="layers that are written out")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--calls", type=int, default=200, help="steps that dispatch is timed on")
    parser.add_argument("--data", help="prepared data for start; by default the almanac's")
    parser.add_argument("--price-width", type=int, default=512)
    parser.add_argument("--price-layers", type=int, default=4)
    parser.add_argument("--price-rows", type=int, default=2)
    parser.add_argument("--price-rounds", type=int, default=20)
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; known: {', '.join(PARTS)}")
    return args


if __name__ == "__main__":
    main()
