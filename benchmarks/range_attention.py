"""Time of range attention beside its peers, on the same packed rows in the same run.

    python benchmarks/range_attention.py
    python benchmarks/range_attention.py --dtype=bfloat16 --batch=8 --lengths=2048,8192
    python benchmarks/range_attention.py --check --backends=gpu,chunked --dtype=bfloat16

Rows hold `--documents` documents of random lengths on average; each document is a bidirectional
context and a causal rest. Peers: `jax.nn.dot_product_attention` with the mask as an array and,
where PyTorch is installed, its scaled_dot_product_attention with the mask; on CUDA also compiled
flex_attention and, as a yardstick that answers an easier question, causal flash attention on rows
without documents (PyTorch's, cuDNN's, and FlashAttention-3 where installed).

Every entry is measured in rounds that alternate with the first one, so a busy machine slows both
alike; times are medians. TFLOP/s count visible pairs only: 4 H d per pair forward, 10 H d backward.
An entry that fails says so and the others go on. `--check` compares the backends with float32
attention instead, and with themselves for equal bits, and exits with 1 on a difference.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from failures import one_line
from packed_rows import packed_ranges

from glm_jax.ops.block_bounds import BlockBounds, visited_tiles
from glm_jax.ops.range_attention import block_bounds, range_attention, resolve_backend

CHECKED = "out", "dq", "dk", "dv"
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}  # of the norm of the difference


class Entry(NamedTuple):
    """forward(n) and backward(n) run n times and wait for the last result."""

    forward: callable
    backward: callable
    pairs: int  # visible pairs of a query and a key, over all rows


def main():
    args = parse_arguments()
    print(versions(), end="\n\n", flush=True)
    if args.check:
        verdicts = [check(args, *case) for case in check_cases(args)]
        sys.exit(0 if all(verdicts) else 1)
    print(
        "| T | d | visible | tiles visited | entry | forward ms | TFLOP/s | backward ms | TFLOP/s "
        "| forward + backward, in units of the first |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for length in args.lengths:
        for dim in args.head_dims:
            for documents in args.documents:
                compare(args, length, dim, documents)


def compare(args, length, dim, documents):
    rng = np.random.default_rng(args.seed)
    start, end = packed_ranges(rng, args.batch, length, documents)
    arrays = random_inputs(rng, args, length, dim)
    builders = jax_builders(args, arrays, start, end)
    if args.peers:
        builders |= torch_builders(args.dtype, arrays, start, end)
    bounds = block_bounds(jnp.asarray(start), jnp.asarray(end), length, backend=args.backends[0])
    visible = np.sum(np.maximum(end - start, 0)) / (args.batch * length**2)
    about = f"| {length} | {dim} | {visible:.2f} | {visited_share(bounds)}"
    first = None
    for name, build in builders.items():
        try:
            entry = build()
            first = first or entry
            times = [
                paired_medians(getattr(entry, part), getattr(first, part), args)
                for part in ("forward", "backward")
            ]
        except Exception as error:  # whatever a peer's compiler throws
            print(f"{about} | {name} | failed: {one_line(error)} | | | | |", flush=True)
            continue
        (forward, first_forward), (backward, first_backward) = times
        rates = [
            entry.pairs * args.heads * dim * flops / seconds / 1e12
            for flops, seconds in ((4, forward), (10, backward))
        ]
        ratio = (forward + backward) / (first_forward + first_backward)
        print(
            f"{about} | {name} | {forward * 1e3:.3f} | {rates[0]:.1f} | {backward * 1e3:.3f} "
            f"| {rates[1]:.1f} | {ratio:.2f} |",
            flush=True,
        )


def random_inputs(rng, args, length, dim):
    """q, k, v and the cotangent of the output, float32 [batch, length, heads, dim]."""
    return [
        rng.standard_normal((args.batch, length, heads, dim), np.float32)
        for heads in (args.heads, args.kv_heads, args.kv_heads, args.heads)
    ]


def check_cases(args):
    return [
        (backend, length, dim)
        for backend in args.backends
        for length in args.lengths
        for dim in args.head_dims
    ]


def check(args, backend, length, dim):
    """Whether output and gradients are those of float32 attention and the same twice; prints it."""
    rng = np.random.default_rng(args.seed)
    start, end = packed_ranges(rng, args.batch, length, args.documents[0])
    start[0, length // 3 : length // 2] = end[0, length // 3 : length // 2] = 0
    arrays = [jnp.asarray(x, args.dtype) for x in random_inputs(rng, args, length, dim)]
    try:
        run = jax.jit(functools.partial(gradients, backend, start, end))
        runs = [jax.block_until_ready(run(*arrays)) for _ in range(2)]
        with jax.default_matmul_precision("highest"):
            run = jax.jit(functools.partial(gradients, "reference", start, end))
            exact = run(*(x.astype(jnp.float32) for x in arrays))
    except Exception as error:  # the other backends are still to be checked
        print(f"FAILED: {backend} T {length} d {dim}: {one_line(error)}", flush=True)
        return False
    errors = [
        np.linalg.norm(np.asarray(x, np.float32) - y) / np.linalg.norm(y)
        for x, y in zip(runs[0], map(np.asarray, exact), strict=True)
    ]
    close = all(error < TOLERANCE[args.dtype] for error in errors)
    repeats = all(np.array_equal(*map(np.asarray, pair)) for pair in zip(*runs, strict=True))
    verdict = "ok" if close and repeats else "FAILED"
    figures = ", ".join(f"{name} {error:.1e}" for name, error in zip(CHECKED, errors, strict=True))
    same = "same bits twice" if repeats else "OTHER BITS THE SECOND TIME"
    print(f"{verdict}: {backend} T {length} d {dim}: relative error {figures}; {same}", flush=True)
    return close and repeats


def gradients(backend, start, end, q, k, v, d_out):
    start, end = jnp.asarray(start), jnp.asarray(end)

    def attend(q, k, v):
        return range_attention(q, k, v, start, end, backend=backend)

    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(d_out)


def jax_builders(args, arrays, start, end):
    """Name -> a function that compiles the entry."""
    arrays = [jnp.asarray(x, args.dtype) for x in arrays]
    start, end = jnp.asarray(start), jnp.asarray(end)

    def ours(backend):
        bounds = block_bounds(start, end, start.shape[1], backend=backend)

        def attend(q, k, v, start, end, bounds):
            return range_attention(q, k, v, start, end, backend=backend, bounds=bounds)

        return jax_entry(attend, arrays, (start, end, bounds), visible_pairs(start, end))

    def dense():
        position = jnp.arange(start.shape[1])
        mask = ((start[..., None] <= position) & (position < end[..., None]))[:, None]

        def attend(q, k, v, mask):
            return jax.nn.dot_product_attention(q, k, v, mask=mask)

        return jax_entry(attend, arrays, (mask,), visible_pairs(start, end))

    builders = {f"range_attention, {name}": functools.partial(ours, name) for name in args.backends}
    return builders | ({"jax.nn, dense mask": dense} if args.peers else {})


def jax_entry(attend, arrays, visibility, pairs):
    """`visibility` is passed, not closed over: as a constant it would be compiled in."""
    q, k, v, d_out = arrays

    def linearise(q, k, v, *visibility):
        return jax.vjp(lambda *qkv: attend(*qkv, *visibility), q, k, v)[1]

    forward, backward = jax.jit(attend), jax.jit(lambda pull, d_out: pull(d_out))
    pull = jax.jit(linearise)(q, k, v, *visibility)

    def repeat(function, *operands):
        def run(times):
            for _ in range(times):
                result = function(*operands)
            jax.block_until_ready(result)

        return run

    return Entry(repeat(forward, q, k, v, *visibility), repeat(backward, pull, d_out), pairs)


def torch_builders(dtype, arrays, start, end):
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, d_out = (
        torch.tensor(x, dtype=getattr(torch, dtype), device=device).transpose(1, 2).contiguous()
        for x in arrays
    )
    pairs = visible_pairs(start, end)
    length = q.shape[2]
    start, end = (torch.tensor(x, device=device)[:, None, :, None] for x in (start, end))
    grouped = q.shape[1] != k.shape[1]
    sdpa = functools.partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=grouped)

    def masked():
        position = torch.arange(length, device=device)
        mask = (start <= position) & (position < end)
        return torch_entry(torch, functools.partial(sdpa, attn_mask=mask), q, k, v, d_out, pairs)

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(b, h, i, j):
            return (start[b, 0, i, 0] <= j) & (j < end[b, 0, i, 0])

        blocks = create_block_mask(visible, q.shape[0], None, length, length, device=device)
        attend = functools.partial(
            torch.compile(flex_attention), block_mask=blocks, enable_gqa=grouped
        )
        return torch_entry(torch, attend, q, k, v, d_out, pairs)

    causal_pairs = q.shape[0] * length * (length + 1) // 2

    def causal(backend):
        def attend(q, k, v):
            with torch.nn.attention.sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=True)

        return torch_entry(torch, attend, q, k, v, d_out, causal_pairs)

    def flash_3():
        import flash_attn_interface

        def attend(*arrays):
            out = flash_attn_interface.flash_attn_func(
                *(x.transpose(1, 2) for x in arrays), causal=True
            )
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return torch_entry(torch, attend, q, k, v, d_out, causal_pairs)

    entries = {f"torch SDPA, dense mask ({device})": masked}
    if device == "cuda":
        kernels = torch.nn.attention.SDPBackend
        entries |= {
            "yardstick: causal, torch flash": lambda: causal(kernels.FLASH_ATTENTION),
            "yardstick: causal, cuDNN": lambda: causal(kernels.CUDNN_ATTENTION),
            "yardstick: causal, FlashAttention-3": flash_3,
            "torch flex_attention": flex,  # the slowest to compile
        }
    return entries


def torch_entry(torch, attend, q, k, v, d_out, pairs):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)

    def wait():
        if q.is_cuda:
            torch.cuda.synchronize()

    def forward(times):
        with torch.no_grad():
            for _ in range(times):
                attend(q, k, v)
        wait()

    def backward(times):
        for _ in range(times):
            torch.autograd.grad(out, leaves, d_out, retain_graph=True)
        wait()

    return Entry(forward, backward, pairs)


def paired_medians(run, first, args):
    """Seconds of a call of `run` and of `first`, measured in turn."""
    run(1)  # compiles
    began = time.perf_counter()
    run(1)
    once = time.perf_counter() - began
    # Enough calls that starting and waiting for them does not count; one where a call is long.
    times = int(min(max(args.round_seconds / max(once, 1e-6), 1), 100))
    seconds = {run: [], first: []}
    for _ in range(args.rounds):
        for timed in seconds:
            timed(1)  # lets the threads of the other go to sleep, and its caches empty
            began = time.perf_counter()
            timed(times)
            seconds[timed].append((time.perf_counter() - began) / times)
    return statistics.median(seconds[run]), statistics.median(seconds[first])


def visible_pairs(start, end):
    return int(np.sum(np.maximum(np.asarray(end) - np.asarray(start), 0), dtype=np.int64))


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
    def several(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lengths", type=several(int), default=[128, 512, 2048])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dims", type=several(int), default=[64])
    parser.add_argument("--documents", type=several(int), default=[4], help="mean of a row")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--backends", type=several(str), default=["auto"])
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--check", action="store_true", help="results and not times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-seconds", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    available = {name: resolved(name) for name in args.backends}
    args.backends = [backend for backend in available.values() if backend]
    return args


def resolved(name):
    try:
        return resolve_backend(name)
    except Exception as error:  # said, and the other backends go on
        print(f"without {name}: {one_line(error)}", flush=True)
        return None


if __name__ == "__main__":
    main()
