"""Time and memory of the whole training step, beside the same step in PyTorch, on one device.

    python benchmarks/step.py
    python benchmarks/step.py --model=350m --ours=none:32,none:64 --peer=none:32,none:64
    python benchmarks/step.py --ours=none:8,full+O1:16,full+chunked:16 --peer=none+layers+max:16

A case is REMAT[+OPTION...]:ROWS. REMAT is config.model.remat, and for PyTorch none, or full for a
checkpoint around every layer. Our options are O1 (XLA's optimization level), unrolled (no loop over
the layers) and the names of attention backends; those of PyTorch are layers (compiles each layer,
not the whole model) and max (max-autotune-no-cudagraphs).

Both sides train the model of GLM 2021 with AdamW and clipping, without dropout, on the same packed
rows, which lie on the device; `step_torch.py` says how PyTorch does it, `step_check.py` that the
losses are the same. Each case is a process of its own, so that one that runs out of memory or
hangs is a line of the table; the cases of the sides take turns. The time of a step is the median
over rounds of several steps, spread the slowest over the fastest round. FLOPs are those of
`glm_jax.training.flops`, of both sides alike; MFU is their share of the peak that
`glm_jax.parallel.device_kinds` knows. Useful tokens are slots that are not padding.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from step_case import MODELS, OPTIONS, Case

from glm_jax.parallel.device_kinds import device_kind
from glm_jax.training.flops import Counts, model_costs

FOLDER = Path(__file__).parent
SIDES = {"jax": "glm_jax", "torch": "PyTorch"}
OURS = "none:8,selective:16,selective:32,full:32"
PEER = "none:8,none:16,none+max:16,full:32"
MEMORY = {
    "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
"""Both sides may use about all of the device, and without holes between arrays."""

LEAST_SECONDS = 15  # with less left, no case is begun
PACKAGES = "jax", "jaxlib", "flax", "optax", "torch", "triton", "numpy"


class Row(NamedTuple):
    """What a case that ran came to."""

    case: Case
    tokens_per_second: float


def main():
    args = parse_arguments()
    # The cases have the accelerator; the driver only counts.
    jax.config.update("jax_platforms", "cpu")
    deadline = time.monotonic() + args.seconds
    print(versions(), end="\n\n")
    print(describe(args.cases[0]), end="\n\n")
    print(
        "| side | remat | rows | ms/step | spread | useful tokens/s | useful MFU | PaLM MFU | HFU "
        "| peak GiB | first step s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    rows, is_good = [], True
    for case in args.cases:
        about = f"| {SIDES[case.side]} | {'+'.join([case.remat, *case.options])} | {case.rows}"
        figures = run(case, min(args.case_seconds, deadline - time.monotonic()))
        if "failed" in figures:
            is_good &= not figures["failed"].startswith("failed")
            print(f"{about} | {figures['failed']} |" + " |" * 7, flush=True)
            continue
        row, cells = evaluated(case, figures)
        rows.append(row)
        print(f"{about} | {' | '.join(cells)} |", flush=True)
    print(f"\n{verdict(rows)}")
    sys.exit(0 if is_good and rows else 1)


def run(case: Case, seconds: float) -> dict:
    """The figures of `step_case.measure`, or `failed` with the reason."""
    if seconds < LEAST_SECONDS:
        return {"failed": "no time left"}
    command = [sys.executable, FOLDER / f"step_{case.side}.py", json.dumps(vars(case))]
    try:
        finished = subprocess.run(
            command, env=MEMORY | os.environ, stdout=subprocess.PIPE, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {seconds:.0f} s"}
    if finished.returncode:
        return {"failed": f"failed: the process ended with {finished.returncode}"}
    return json.loads(finished.stdout.splitlines()[-1])


def evaluated(case: Case, figures: dict) -> tuple[Row, list[str]]:
    """The row of a case, and its cells after the first three."""
    counts = count(case)
    seconds = statistics.median(figures["seconds"])
    row = Row(case, counts.tokens / seconds)
    spread = max(figures["seconds"]) / min(figures["seconds"])
    kind = device_kind(figures["device"])
    flops = model_costs(case.config.model).of_step(counts)
    peak = figures["peak_bytes"]
    return row, [
        f"{seconds * 1e3:.1f}",
        f"{spread:.3f}",
        f"{row.tokens_per_second:,.0f}",
        *(
            "-" if kind is None else f"{getattr(flops, name) / seconds / kind.peak_flops:.1%}"
            for name in ("useful", "palm", "hardware")
        ),
        "-" if peak is None else f"{peak / 2**30:.1f}",
        f"{figures['first']:.1f}",
    ]


def count(case: Case) -> Counts:
    """Of a step, averaged over its batches."""
    batches = case.batches()
    return Counts(
        slots=case.rows * case.length,
        tokens=float(np.mean([np.sum(batch.segment > 0) for batch in batches])),
        targets=float(np.mean([np.sum(batch.weights > 0) for batch in batches])),
        pairs=float(np.mean([np.sum(batch.kv_end - batch.kv_start) for batch in batches])),
        row_length=case.length,
    )


def verdict(rows: list[Row]) -> str:
    """The fastest case of each side, and how they compare."""
    best = {
        side: max(of_side, key=lambda row: row.tokens_per_second)
        for side in SIDES
        if (of_side := [row for row in rows if row.case.side == side])
    }
    lines = [
        f"Fastest of {SIDES[side]}: {row.tokens_per_second:,.0f} useful tokens/s, "
        f"{'+'.join([row.case.remat, *row.case.options])} with {row.case.rows} rows."
        for side, row in best.items()
    ]
    if len(best) == len(SIDES):
        ratio = best["jax"].tokens_per_second / best["torch"].tokens_per_second
        lines.append(f"glm_jax makes {ratio:.3f} times the tokens of PyTorch.")
    return "\n".join(lines)


def describe(case: Case) -> str:
    model, counts = case.config.model, count(case)
    costs = model_costs(model)
    flops = costs.of_step(counts)
    weights = costs.layer_weights + costs.head_weights
    useful = flops.useful / counts.tokens / 1e9
    return (
        f"{case.model}: {model.num_layers} layers of {model.hidden_dim}, {model.num_heads} heads, "
        f"vocabulary {model.vocab_size:,}, {weights:,} weights in products; rows of "
        f"{case.length}, {case.documents} documents each on average, {case.dtype}. Of the slots "
        f"{counts.targets / counts.slots:.1%} are targets; a slot sees "
        f"{counts.pairs / counts.slots:.0f} keys and takes {useful:.4f} useful GFLOP."
    )


def versions() -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if _is_there(name)]
    return f"{', '.join(found)}; Python {platform.python_version()}; {os.cpu_count()} cores"


def _is_there(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(MODELS), default="1.3b")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--documents", type=int, default=4, help="mean of a row")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--ours", default=OURS, help="cases; may be empty")
    parser.add_argument("--peer", default=PEER, help="cases; may be empty")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--seconds", type=float, default=3600, help="for all cases together")
    parser.add_argument("--case-seconds", type=float, default=600, help="for one case")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sides = [cases(args, side, text) for side, text in (("jax", args.ours), ("torch", args.peer))]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*sides))
    args.cases = [case for case in turns if case]
    if not args.cases:
        parser.error("no cases: both --ours and --peer are empty")
    return args


def cases(args, side: str, text: str) -> list[Case]:
    shared = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Case)
        if hasattr(args, field.name)
    }
    found = []
    for part in filter(None, text.split(",")):
        how, _, rows = part.partition(":")
        remat, *options = how.split("+")
        if not (rows.isdigit() and set(options) <= OPTIONS[side]):
            known = ", ".join(sorted(OPTIONS[side]))
            sys.exit(f"{part!r} is not REMAT[+OPTION...]:ROWS with options from {known}")
        case = Case(side=side, remat=remat, options=options, rows=int(rows), **shared)
        found.append(case)
    return found


if __name__ == "__main__":
    main()
