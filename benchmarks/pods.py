"""The training step compiled for pods without any: memory, collectives, least time. Never run.

    JAX_PLATFORMS=cpu python benchmarks/pods.py
    JAX_PLATFORMS=cpu python benchmarks/pods.py --only=v5e:4x4

Needs the package that compiles for the devices: libtpu, or JAX for CUDA; a pod whose package is
absent says so and the others go on. Models are GLM 2021 at the sizes below, in bfloat16 with
float32 parameters and AdamW, every layer recomputed, sharded by the `fsdp` rules. Rows of 2,048
slots are full; each is one text of which 15 % is blanked at its end, for the bound of the time.
"""

import argparse
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from glm_jax.config import Config, from_dict
from glm_jax.errors import UserError
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.planning.collectives import fsdp_minimum, layer_traffic
from glm_jax.planning.compiled_step import CompiledStep, compile_step
from glm_jax.planning.expected import text_rows
from glm_jax.planning.roofline import roofline
from glm_jax.planning.topologies import described_devices
from glm_jax.training.flops import model_costs

LENGTH, TARGET_SHARE = 2048, 0.15
GIB, MB = 2**30, 1e6

MODELS = {
    "1.3B": {"num_layers": 24, "hidden_dim": 2048, "num_heads": 16, "mlp_dim": 8192},
    "10B": {"num_layers": 48, "hidden_dim": 4096, "num_heads": 64, "mlp_dim": 16384},
}
VOCABULARY = {"1.3B": 65_024, "10B": 150_528}


class Pod(NamedTuple):
    topology: str
    slices: int
    data: int  # of the mesh; fsdp has the other devices
    model: str
    rows: int  # on each device


PODS = [
    Pod("v5e:4x4", 1, 1, "1.3B", 4),
    Pod("v5e:4x4", 2, 2, "1.3B", 4),
    Pod("v6e:8x8", 1, 1, "1.3B", 4),
    Pod("v5p:4x4x4", 1, 1, "1.3B", 4),
    Pod("v5p:4x4x4", 1, 4, "1.3B", 4),
    Pod("v5e:8x8", 1, 1, "10B", 2),
    Pod("h200:8", 1, 1, "1.3B", 16),
    Pod("h200:8", 1, 1, "10B", 4),
]

COLUMNS = (
    "devices, mesh | model, rows a device | compile CPU s | state and batch GiB | peak GiB "
    "| sent for a layer MB | of the FSDP minimum | by kind MB | kernels "
    "| least compute, memory, network ms | MFU at most"
)


def main():
    args = parse_arguments()
    print(versions(), end="\n\n")
    print(f"| {COLUMNS} |")
    print("|" + "---|" * len(COLUMNS.split(" | ")), flush=True)
    for pod in PODS:
        if args.only in (None, pod.topology):
            print(row(pod), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted({pod.topology for pod in PODS})
    parser.add_argument("--only", choices=known, help="a topology; all by default")
    return parser.parse_args()


def row(pod: Pod) -> str:
    try:
        devices = described_devices(pod.topology, pod.slices)
        config = configured(pod, len(devices))
        start = time.process_time()
        step = compile_step(config, devices)
        seconds = time.process_time() - start
    except UserError as error:
        empty = " |" * (len(COLUMNS.split(" | ")) - 3)
        return f"| {pod.topology} x {pod.slices} | {pod.model} | {error} |{empty}"
    return describe(pod, config, step, seconds, len(devices), devices[0].device_kind)


def configured(pod: Pod, num_devices: int) -> Config:
    model = MODELS[pod.model] | {"vocab_size": VOCABULARY[pod.model], "max_positions": LENGTH}
    return from_dict(
        {
            "model": model | {"remat": "full"},
            "data": {"seq_length": LENGTH},
            "training": {"batch_size": pod.rows * num_devices, "steps": 10_000},
            "mesh": {"data": pod.data, "fsdp": -1, "rules": "fsdp"},
        }
    )


def describe(
    pod: Pod, config: Config, step: CompiledStep, seconds: float, num_devices: int, device: str
) -> str:
    layers = config.model.num_layers
    weights = model_costs(config.model).layer_weights // layers
    minimum = fsdp_minimum(weights, num_devices // pod.data, pod.data, compute_bytes=2)
    traffic = layer_traffic(step.collectives, layers, minimum)
    kinds = ", ".join(
        f"{kind} {sent / MB:.0f}"
        for kind, sent in sorted(traffic.by_kind.items())
        if sent >= 0.01 * traffic.total
    )
    bound = roofline(config, step, device_kind(device), text_rows(pod.rows, LENGTH, TARGET_SHARE))
    slices = "" if pod.slices == 1 else f" x {pod.slices} slices"
    cells = (
        f"{pod.topology}{slices}, data={pod.data} fsdp={num_devices // pod.data}",
        f"{pod.model}, {pod.rows}",
        f"{seconds:.0f}",
        f"{step.memory.arguments / GIB:.2f}",
        f"{step.memory.peak / GIB:.2f}",
        f"{traffic.total / MB:.0f}",
        f"{traffic.total / minimum:.2f}",
        kinds,
        str(step.num_kernels),
        ", ".join(f"{1e3 * s:.0f}" for s in (bound.compute, bound.memory, bound.network)),
        f"{100 * bound.mfu:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


def versions() -> str:
    names = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")
    return f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {found}" for name in names if (found := installed(name))
    )


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
