"""Whether both sides of `step.py` take the same steps, from the same weights on the same rows.

    python benchmarks/step_check.py [--dtype=bfloat16]

Three steps of the tiny model in one process: losses, and how far apart the parameters are in the
end, as a share of how far they went. Exits with 1 on a difference.
"""

import argparse
import sys

import jax
import step_jax
import step_torch
import torch
from step_case import Case, Trainer

TOLERANCE = {"float32": (1e-6, 1e-4), "bfloat16": (1e-3, 0.1)}  # of losses, of parameters
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--remat", choices=["none", "full"], default="none")
    args = parser.parse_args()
    with jax.default_matmul_precision("highest"):
        sys.exit(0 if check(args.dtype, args.remat) else 1)


def check(dtype: str, remat: str) -> bool:
    """Whether losses and parameters agree; prints them."""
    case = Case(
        side="", remat=remat, options=[], rows=2, model="tiny", length=256, documents=3,
        dtype=dtype, rounds=1, steps=1, seed=0,
    )  # fmt: skip
    ours, peer = step_jax.make_trainer(case), step_torch.make_trainer(case)
    before = jax.device_get(ours.params)
    step_torch.load_params(peer.model, before)
    of_losses, of_params = TOLERANCE[dtype]
    good = True
    for number in range(1, STEPS + 1):
        a, b = one_step(ours), one_step(peer)
        difference = abs(a - b) / abs(b)
        good &= difference <= of_losses
        print(f"step {number}: ours {a:.7f}, PyTorch {b:.7f}, difference {difference:.1e}")
    apart = distance(case, peer.model, before, jax.device_get(ours.params))
    good &= apart <= of_params
    print(f"parameters: {apart:.1e} of their way apart")
    print(f"{'ok' if good else 'FAILED'}: {dtype}, allowed are {of_losses:.0e} and {of_params:.0e}")
    return good


def one_step(trainer: Trainer) -> float:
    trainer.step()
    return trainer.wait()


def distance(case: Case, model: step_torch.GLM, before: dict, after: dict) -> float:
    """|PyTorch's parameters - ours| / |ours - before|."""
    start, end = (step_torch.GLM(case.config.model).to(model.final_norm.weight) for _ in range(2))
    step_torch.load_params(start, before)
    step_torch.load_params(end, after)
    a, b, c = (torch.cat([p.detach().ravel() for p in m.parameters()]) for m in (model, end, start))
    return float((a - b).norm() / (b - c).norm())


if __name__ == "__main__":
    main()
