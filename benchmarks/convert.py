"""Converting a released checkpoint file to file, beside transformers loading and saving it.

    python benchmarks/convert.py                      # 3B parameters, 12 GB of disk
    python benchmarks/convert.py --layers=2 --folder=/mnt/disk

A synthetic checkpoint of the ChatGLM2 layout (width 2,560, 20 heads, 65,024 words, bfloat16, shards
of 1 GB) becomes one of the native layout `glm` with `python -m glm_jax.export`. The peer loads that
and saves it again with `from_pretrained` and `save_pretrained`, as little as there is to do without
a conversion. The third row loads the source into JAX arrays, as `config.init_from` does; they are
part of its memory. Each is a process of its own; memory is the most that it had resident
(ru_maxrss). All read files that were written just before, from memory where there is enough of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.layouts import parameters
from glm_jax.model.presets import PRESETS

LAYOUT, TARGET = "chatglm2", "glm"

PEER = """
import sys, torch
from transformers import AutoModelForCausalLM
source, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.bfloat16)
model.save_pretrained(out, max_shard_size="1GB")
"""

INIT = """
import sys, jax
from glm_jax.config import MeshConfig
from glm_jax.layouts.folder import open_checkpoint
from glm_jax.layouts.init_from import load_sharded
from glm_jax.model.glm import abstract_params
from glm_jax.parallel.sharding import make_sharding
checkpoint = open_checkpoint(sys.argv[1])
shardings = make_sharding(MeshConfig()).tree(*abstract_params(checkpoint.config))
jax.block_until_ready(load_sharded(checkpoint.source, shardings, "bfloat16"))
"""


class Noise:
    """Parameters that cost nothing to make: every read repeats one block of random numbers."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self._block = np.random.default_rng(0).normal(scale=0.02, size=1 << 20).astype("bfloat16")

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        out[...] = np.resize(self._block, out.shape)

    def dtype(self, name: str) -> np.dtype:
        return self._block.dtype


def main() -> None:
    args = parse_arguments()
    config = model_config(args.layers)
    shapes = parameters.shapes(config).values()
    size = 2 * sum(int(np.prod(shape)) for shape in shapes)
    largest = 2 * max(
        int(np.prod(s)) for s in layouts.LAYOUTS[TARGET].tensor_shapes(config).values()
    )
    print(f"jax {jax.__version__}, {os.cpu_count()} {platform.machine()} cores, ", end="")
    print(
        f"{size / 2e9:.2f}B parameters, {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, converted, saved = (Path(folder) / name for name in ("source", "glm", "saved"))
        write_source(source, config)
        rows = {
            "glm_jax.export, chatglm2 to glm": timed(
                "-m", "glm_jax.export", f"--from={source}", f"--out={converted}",
                f"--layout={TARGET}", "--max_shard_size=1GB", "--license=x", "--base_model=x",
            ),
            "transformers, load and save glm": timed("-c", PEER, str(converted), str(saved)),
            "config.init_from, chatglm2 in bfloat16": timed("-c", INIT, str(source)),
        }  # fmt: skip
    print("\n| | seconds | MB/s | resident at most, MB |\n|---|---|---|---|")
    for name, (seconds, memory) in rows.items():
        print(f"| {name} | {seconds:.1f} | {size / 1e6 / seconds:.0f} | {memory / 1e6:.0f} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--folder", default=None, help="where to write; default: temporary files")
    return parser.parse_args()


def model_config(num_layers: int) -> ModelConfig:
    values = {"num_layers": num_layers, "hidden_dim": 2560, "num_heads": 20, "mlp_dim": 8640}
    return ModelConfig(**(vars(PRESETS["chatglm2_6b"]) | values))


def write_source(folder: Path, config: ModelConfig) -> None:
    folder.mkdir()
    layout = layouts.LAYOUTS[LAYOUT]
    layouts.write_weights(layout, Noise(config), folder, np.dtype("bfloat16"), "1GB")
    (folder / "sha256sums.txt").unlink()  # a released checkpoint has none
    (folder / "config.json").write_text(json.dumps(layout.write_config(config)))


def timed(*arguments: str) -> tuple[float, int]:
    """Seconds and most resident bytes of `python ARGUMENTS`."""
    code = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", code, sys.executable, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - started, int(ran.stdout) * 1024


if __name__ == "__main__":
    main()
