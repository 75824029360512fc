"""What `fit` predicts that a step needs on CPUs, beside what the process that runs it uses.

    python benchmarks/fit_memory.py

The steps run in a process of its own on four virtual devices. Used is the largest resident memory
while it steps (VmHWM of Linux, reset before), less what was resident before it had a state: with
the program compiled, and freed memory given back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

DEVICES = 4
MIB = 2**20
MODEL = {"num_layers": 4, "num_heads": 8, "vocab_size": 32_000, "max_positions": 256}
CASES = {
    "fsdp=4": {"mesh": {"data": 1, "fsdp": 4}},
    "data=4": {"mesh": {"data": 4}},
    "data=2 fsdp=2, remat full": {"mesh": {"data": 2, "fsdp": 2}, "model": {"remat": "full"}},
    "fsdp=2 model=2, float32": {
        "mesh": {"data": 1, "fsdp": 2, "model": 2},
        "model": {"dtype": "float32"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="measure this one, in this process")
    parser.add_argument("--width", type=int, default=512, help="of the model")
    parser.add_argument("--rows", type=int, default=32, help="of a step")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(CASES[arguments.case], arguments.width, arguments.rows)))
        return
    print("| mesh | predicted MiB | used MiB | predicted / used |\n|---|---|---|---|")
    for name in CASES:
        predicted, used = run_alone(name, arguments.width, arguments.rows)
        print(f"| {name} | {predicted:,.0f} | {used:,.0f} | {predicted / used:.2f} |", flush=True)


def run_alone(name: str, width: int, rows: int) -> tuple[float, float]:
    """`measure` in a process of its own."""
    devices = f"--xla_force_host_platform_device_count={DEVICES}"
    finished = subprocess.run(
        [sys.executable, __file__, f"--case={name}", f"--width={width}", f"--rows={rows}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices},
        stdout=subprocess.PIPE,
        check=True,
    )
    return tuple(json.loads(finished.stdout.splitlines()[-1]))


def measure(fields: dict, width: int, rows: int) -> tuple[float, float]:
    """What a step of all devices needs, predicted and used, in MiB."""
    import jax
    import jax.numpy as jnp

    from glm_jax.config import from_dict
    from glm_jax.parallel.sharding import make_sharding
    from glm_jax.planning.compiled_step import abstract_batch, abstract_state, compile_step
    from glm_jax.training.step import make_train_step

    config = from_dict(
        {
            "model": MODEL | {"hidden_dim": width, "mlp_dim": 4 * width} | fields.get("model", {}),
            "mesh": fields["mesh"],
            "data": {"seq_length": 256},
            "training": {"batch_size": rows},
            "optimizer": {"warmup_steps": 10},
        }
    )
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    predicted = compile_step(config, jax.devices()).memory.peak * DEVICES
    sharding = make_sharding(config.mesh)
    state, batch = abstract_state(config, sharding), abstract_batch(config, sharding)
    step = make_train_step(config, sharding, 1).lower(state, batch).compile()
    layouts = jax.tree.map(lambda leaf: leaf.sharding, (state, batch))
    fill = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), (state, batch)),
        out_shardings=layouts,
    )
    fill = fill.lower().compile()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    held, filled = fill()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        held, metrics = step(held, filled)
        jax.block_until_ready((held, metrics))
    return predicted / MIB, (memory("VmHWM") - before) / MIB


def memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
