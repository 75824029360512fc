"""Compiles ways to lay a run out over devices, and ranks what fits."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.planning.candidates import Layout, candidates
from glm_jax.planning.compiled_step import DoesNotFit
from glm_jax.planning.plan import StepPlan, compile_for, describe_step


class Tried(NamedTuple):
    """One layout; the plan of the run's largest step where it fits, or else why not."""

    layout: Layout
    plan: StepPlan | None
    problem: UserError | None

    @property
    def rank(self) -> tuple[float, int, int]:
        """Least time first, or least computed where no rates are known; then sent, then memory."""
        bound, flops = self.plan.bound, self.plan.flops
        first = flops.hardware if bound is None else bound.seconds
        return first, sum(self.plan.sent.values()), self.plan.memory.peak


def search(
    run: Config, devices: list[jax.Device], num_slices: int, max_compiles: int
) -> Iterator[Tried]:
    """Tries the candidates of a run as they are worth it, each at the run's largest step.

    After one that does not fit, those of its remat that would not fit either, if the estimate is
    wrong of them in the same proportion, are left out.

    Args:
      max_compiles: steps that are compiled at most, those that do not fit too.
    """
    kind = device_kind(devices[0].device_kind)
    limit = math.inf if kind is None else kind.hbm_bytes
    needed_of_estimate: dict[str, float] = {}
    compiled = 0
    for layout, estimate in candidates(run, len(devices), num_slices, kind):
        if compiled == max_compiles:
            return
        if estimate.total * needed_of_estimate.get(layout.remat, 0.0) > limit:
            continue
        tried = _try(run, layout, devices)
        if isinstance(tried.problem, DoesNotFit):
            needed = tried.problem.needed if math.isfinite(tried.problem.needed) else limit
            needed_of_estimate[layout.remat] = needed / estimate.total
        compiled += tried.plan is not None or isinstance(tried.problem, DoesNotFit)
        yield tried


def _try(run: Config, layout: Layout, devices: list[jax.Device]) -> Tried:
    config = layout.largest_step(run)
    try:
        step = compile_for(config, devices)
    except UserError as error:
        return Tried(layout, None, error)
    return Tried(layout, describe_step(config, step, devices), None)
