"""Time and memory of the loss on targets only beside the dense loss, in the same run.

    python benchmarks/cross_entropy.py
    python benchmarks/cross_entropy.py --dtype=bfloat16 --tokens=32768 --width=2048

Every entry computes the loss and its gradients by the hidden states and the head. Peers: all logits
in JAX, with optax's formula (logsumexp minus the target's logit), and where PyTorch is installed
its cross_entropy on all logits and on the gathered targets. Times are medians over rounds in which
every entry runs once. Temporary memory is what XLA plans for the compiled call beside its arguments
and results; a chunk is chunk_size x V float32 logits.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.ops.cross_entropy import target_cross_entropy


def main():
    args = parse_arguments()
    print(versions())
    print()
    print(f"{args.tokens} tokens, width {args.width}, {args.dtype}, chunk of {args.chunk_size}")
    print()
    print("| V | targets | entry | ms | dense / entry | temporary MiB | in chunks of logits |")
    print("|---|---|---|---|---|---|---|")
    for vocab in args.vocabs:
        for share in args.shares:
            compare(args, vocab, share)


def compare(args, vocab, share):
    rng = np.random.default_rng(args.seed)
    hidden = rng.normal(size=(1, args.tokens, args.width)).astype(np.float32)
    kernel = rng.normal(size=(args.width, vocab)).astype(np.float32) * args.width**-0.5
    targets = rng.integers(0, vocab, (1, args.tokens)).astype(np.int32)
    weights = (rng.random((1, args.tokens)) < share).astype(np.float32)
    runs, temporary = jax_entries(args, hidden, kernel, targets, weights)
    if args.torch:
        runs |= torch_entries(args.dtype, hidden, kernel, targets, weights)
    seconds = medians(runs, args.rounds)
    for name, time_of_entry in seconds.items():
        memory = "-", "-"
        if name in temporary:
            chunks = temporary[name] / (args.chunk_size * vocab * 4)
            memory = f"{temporary[name] / 2**20:.0f}", f"{chunks:.2f}"
        ratio = seconds["jax, all logits"] / time_of_entry
        print(
            f"| {vocab} | {share:.0%} | {name} | {time_of_entry * 1e3:.0f} | {ratio:.2f} "
            f"| {memory[0]} | {memory[1]} |"
        )


def jax_entries(args, hidden, kernel, targets, weights):
    """Name -> a call that waits for the result, and name -> bytes of temporary memory."""

    def fused(hidden, kernel, targets, weights):
        return target_cross_entropy(hidden, kernel, targets, weights, chunk_size=args.chunk_size)

    def dense(hidden, kernel, targets, weights):
        logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
        at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - at_target
        return jnp.sum(weights * nll), nll

    arrays = [jnp.asarray(x) for x in (hidden, kernel, targets, weights)]
    arrays[:2] = (x.astype(args.dtype) for x in arrays[:2])
    runs, temporary = {}, {}
    for name, loss in {"target_cross_entropy": fused, "jax, all logits": dense}.items():
        gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        compiled = gradients.lower(*arrays).compile()
        temporary[name] = compiled.memory_analysis().temp_size_in_bytes
        runs[name] = lambda compiled=compiled: jax.block_until_ready(compiled(*arrays))
    return runs, temporary


def torch_entries(dtype, hidden, kernel, targets, weights):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = torch.tensor(hidden[0], dtype=getattr(torch, dtype), device=device)
    kernel = torch.tensor(kernel.T, dtype=getattr(torch, dtype), device=device)
    targets = torch.tensor(targets[0], dtype=torch.long, device=device)
    is_target = torch.tensor(weights[0] > 0, device=device)
    ignored = torch.where(is_target, targets, -100)
    hidden.requires_grad_()
    kernel.requires_grad_()

    def run(x, labels):
        logits = torch.nn.functional.linear(x, kernel).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        torch.autograd.grad(loss, (hidden, kernel))
        if device == "cuda":
            torch.cuda.synchronize()

    return {
        f"torch, all logits ({device})": lambda: run(hidden, ignored),
        f"torch, targets gathered ({device})": lambda: run(hidden[is_target], targets[is_target]),
    }


def medians(runs, rounds):
    """Name -> seconds."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def versions():
    device = jax.devices()[0].device_kind
    return (
        f"jax {jax.__version__}, numpy {np.__version__}; Python {platform.python_version()}; "
        f"{device}, {os.cpu_count()} cores"
    )


def parse_arguments():
    def several(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabs", type=several(int), default=[65_536, 150_528])
    parser.add_argument("--shares", type=several(float), default=[0.2])
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--torch", action="store_true", help="also PyTorch's dense losses")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
