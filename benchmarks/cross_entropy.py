"""Time and memory of the loss on targets only beside the dense loss, in the same run.

    python benchmarks/cross_entropy.py
    python benchmarks/cross_entropy.py --dtype=bfloat16 --tokens=32768 --width=2048 --torch

Every entry computes the loss and its gradients by the hidden states and the head. Peers: all logits
in JAX, with our formula (logsumexp minus the target's logit) and with optax's; with `--torch`,
PyTorch's cross_entropy on all logits and on the gathered targets, and Liger Kernel's fused loss on
the gathered targets. Every entry is measured in rounds that alternate with the first one; times are
medians. An entry that fails, or whose package is not installed, says so and the others go on.
Temporary memory is what XLA plans for the compiled call beside its arguments and results; a chunk
is chunk_size x V float32 logits.
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
from failures import one_line

from glm_jax.ops.cross_entropy import target_cross_entropy


def main():
    args = parse_arguments()
    print(versions())
    print()
    print(f"{args.tokens} tokens, width {args.width}, {args.dtype}, chunk of {args.chunk_size}")
    print()
    print("| V | targets | entry | ms | in units of the first | temporary MiB | in chunks |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for vocab in args.vocabs:
        for share in args.shares:
            compare(args, vocab, share)


def compare(args, vocab, share):
    rng = np.random.default_rng(args.seed)
    hidden = rng.standard_normal((1, args.tokens, args.width), np.float32)
    kernel = rng.standard_normal((args.width, vocab), np.float32) * args.width**-0.5
    targets = rng.integers(0, vocab, (1, args.tokens)).astype(np.int32)
    weights = (rng.random((1, args.tokens)) < share).astype(np.float32)
    builders = jax_builders(args, hidden, kernel, targets, weights)
    if args.torch:
        builders |= torch_builders(args.dtype, hidden, kernel, targets, weights)
    about, first = f"| {vocab} | {share:.0%}", None
    for name, build in builders.items():
        try:
            run, temporary = build()
            first = first or run
            seconds, first_seconds = paired_medians(run, first, args.rounds)
        except Exception as error:  # out of memory, a package that is not there
            print(f"{about} | {name} | failed: {one_line(error)} | | | |", flush=True)
            continue
        memory = "- | -"
        if temporary is not None:
            chunks = temporary / (args.chunk_size * vocab * 4)
            memory = f"{temporary / 2**20:.0f} | {chunks:.2f}"
        ratio = seconds / first_seconds
        print(f"{about} | {name} | {seconds * 1e3:.1f} | {ratio:.2f} | {memory} |", flush=True)


def jax_builders(args, hidden, kernel, targets, weights):
    """Name -> a function that gives a call that waits for the result, and its temporary bytes."""

    def fused(hidden, kernel, targets, weights):
        return target_cross_entropy(hidden, kernel, targets, weights, chunk_size=args.chunk_size)

    def logits_of(hidden, kernel):
        return jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)

    def dense(hidden, kernel, targets, weights):
        logits = logits_of(hidden, kernel)
        at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - at_target
        return jnp.sum(weights * nll), nll

    def with_optax(hidden, kernel, targets, weights):
        import optax

        logits = logits_of(hidden, kernel)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(weights * nll), nll

    arrays = [jnp.asarray(x) for x in (hidden, kernel, targets, weights)]
    arrays[:2] = (x.astype(args.dtype) for x in arrays[:2])

    def build(loss):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*arrays).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        return lambda: jax.block_until_ready(compiled(*arrays)), memory

    losses = {
        "target_cross_entropy": fused,
        "jax, all logits": dense,
        "jax and optax, all logits": with_optax,
    }
    return {name: functools.partial(build, loss) for name, loss in losses.items()}


def torch_builders(dtype, hidden, kernel, targets, weights):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = torch.tensor(hidden[0], dtype=getattr(torch, dtype), device=device)
    kernel = torch.tensor(kernel.T, dtype=getattr(torch, dtype), device=device)
    targets = torch.tensor(targets[0], dtype=torch.long, device=device)
    is_target = torch.tensor(weights[0] > 0, device=device)
    ignored = torch.where(is_target, targets, -100)
    hidden.requires_grad_()
    kernel.requires_grad_()

    def dense(x, labels):
        logits = torch.nn.functional.linear(x, kernel).float()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    def build(loss):
        def run():
            torch.autograd.grad(loss(), (hidden, kernel))
            if device == "cuda":
                torch.cuda.synchronize()

        return run, None

    def liger():
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        def loss():
            result = liger_fused_linear_cross_entropy(
                hidden[is_target], kernel, targets[is_target], reduction="sum"
            )
            return result[0] if isinstance(result, tuple) else result

        return build(loss)

    return {
        f"torch, all logits ({device})": lambda: build(lambda: dense(hidden, ignored)),
        f"torch, targets gathered ({device})": lambda: build(
            lambda: dense(hidden[is_target], targets[is_target])
        ),
        f"Liger, targets gathered ({device})": liger,
    }


def paired_medians(run, first, rounds):
    """Seconds of `run` and of `first`, measured in turn."""
    seconds = {run: [], first: []}
    for timed in seconds:
        timed()
    for _ in range(rounds):
        for timed in seconds:
            began = time.perf_counter()
            timed()
            seconds[timed].append(time.perf_counter() - began)
    return statistics.median(seconds[run]), statistics.median(seconds[first])


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
    parser.add_argument("--torch", action="store_true", help="also PyTorch's losses and Liger's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
