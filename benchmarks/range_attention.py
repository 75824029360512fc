"""Time of range attention beside dense attention, on the same packed rows in the same run.

    python benchmarks/range_attention.py
    python benchmarks/range_attention.py --dtype=bfloat16 --batch=8 --lengths=2048,8192

Rows hold four documents of random lengths on average; each document is a bidirectional context and
a causal rest. Peers: `jax.nn.dot_product_attention` with the mask as an array and, where PyTorch is
installed, its scaled_dot_product_attention with the mask and (CUDA only) compiled flex_attention.
Times are medians over rounds in which every entry runs once: a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.ops.block_bounds import BlockBounds, visited_tiles
from glm_jax.ops.range_attention import block_bounds, range_attention, resolve_backend


def main():
    args = parse_arguments()
    print(versions())
    print()
    print(
        "| T | d | visible | tiles visited | entry | forward ms | forward + backward ms | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for length in args.lengths:
        for dim in args.head_dims:
            compare(args, length, dim)


def compare(args, length, dim):
    rng = np.random.default_rng(args.seed)
    start, end = packed_rows(rng, args.batch, length)
    q, k, v, d_out = (
        rng.normal(size=(args.batch, length, heads, dim)).astype(np.float32)
        for heads in (args.heads, args.kv_heads, args.kv_heads, args.heads)
    )
    bounds = block_bounds(jnp.asarray(start), jnp.asarray(end), length, backend=args.backend)
    entries = jax_entries(args, (q, k, v, d_out), start, end, bounds)
    entries |= torch_entries(args.dtype, (q, k, v, d_out), start, end)
    forward = medians({name: runs[0] for name, runs in entries.items()}, args.rounds)
    both = medians({name: runs[1] for name, runs in entries.items()}, args.rounds)
    visible, visited = np.mean(end - start) / length, visited_share(bounds)
    for name in entries:
        ratio = both[name] / both["range_attention"]
        print(
            f"| {length} | {dim} | {visible:.2f} | {visited} | {name} | {forward[name] * 1e3:.1f} "
            f"| {both[name] * 1e3:.1f} | {ratio:.2f} |"
        )


def packed_rows(rng, batch, length):
    """kv_start, kv_end int32 [batch, length] of full rows of four documents on average."""
    start, end = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        cuts = np.sort(rng.choice(np.arange(1, length), size=rng.integers(1, 6), replace=False))
        for first, last in zip([0, *cuts], [*cuts, length], strict=True):
            slots = np.arange(first, last)
            context = int((last - first) * rng.uniform(0.5, 0.95))
            start[row, slots], end[row, slots] = first, np.maximum(first + context, slots + 1)
    return start, end


def jax_entries(args, arrays, start, end, bounds):
    """Name -> (forward, forward and backward), calls without arguments that wait for the result."""
    arrays = [jnp.asarray(x, args.dtype) for x in arrays]
    start, end = jnp.asarray(start), jnp.asarray(end)
    position = jnp.arange(start.shape[1])
    mask = ((start[..., None] <= position) & (position < end[..., None]))[:, None]

    def ours(q, k, v):
        return range_attention(q, k, v, start, end, backend=args.backend, bounds=bounds)

    def dense(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    return {
        "range_attention": jax_runs(ours, *arrays),
        "jax.nn, dense mask": jax_runs(dense, *arrays),
    }


def jax_runs(attend, q, k, v, d_out):
    forward = jax.jit(attend)
    both = jax.jit(lambda q, k, v, d_out: jax.vjp(attend, q, k, v)[1](d_out))
    return (
        lambda: jax.block_until_ready(forward(q, k, v)),
        lambda: jax.block_until_ready(both(q, k, v, d_out)),
    )


def torch_entries(dtype, arrays, start, end):
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, d_out = (
        torch.tensor(x, dtype=getattr(torch, dtype), device=device).transpose(1, 2).contiguous()
        for x in arrays
    )
    start, end = (torch.tensor(x, device=device)[:, None, :, None] for x in (start, end))
    position = torch.arange(q.shape[2], device=device)
    mask = (start <= position) & (position < end)
    grouped = q.shape[1] != k.shape[1]
    sdpa = functools.partial(
        torch.nn.functional.scaled_dot_product_attention, attn_mask=mask, enable_gqa=grouped
    )
    entries = {f"torch SDPA, dense mask ({device})": torch_runs(torch, sdpa, q, k, v, d_out)}
    if device == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(b, h, i, j):
            return (start[b, 0, i, 0] <= j) & (j < end[b, 0, i, 0])

        blocks = create_block_mask(visible, q.shape[0], None, q.shape[2], q.shape[2], device=device)
        flex = functools.partial(
            torch.compile(flex_attention), block_mask=blocks, enable_gqa=grouped
        )
        entries["torch flex_attention"] = torch_runs(torch, flex, q, k, v, d_out)
    return entries


def torch_runs(torch, attend, q, k, v, d_out):
    def wait():
        if q.is_cuda:
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            attend(q, k, v)
        wait()

    def both():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(attend(*leaves), leaves, d_out)
        wait()

    return forward, both


def medians(runs, rounds):
    """Name -> seconds."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # compiles, and lets the threads of the entry before it go to sleep
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def visited_share(bounds: BlockBounds | None):
    if bounds is None:
        return "all"
    all_tiles = bounds.key_lo.size * bounds.key_tiles
    return f"{int(visited_tiles(bounds)) / all_tiles:.2f} of {bounds.block_q}x{bounds.block_k}"


def versions():
    found = [f"jax {jax.__version__}", f"numpy {np.__version__}"]
    try:
        import torch

        found.append(f"torch {torch.__version__}")
    except ImportError:
        pass
    device = jax.devices()[0].device_kind
    return (
        f"{', '.join(found)}; Python {platform.python_version()}; {device}, {os.cpu_count()} cores"
    )


def parse_arguments():
    def integers(text):
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lengths", type=integers, default=[128, 512, 2048])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dims", type=integers, default=[64])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.backend = resolve_backend(args.backend)
    return args


if __name__ == "__main__":
    main()
