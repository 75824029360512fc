"""Compiles ways to lay a run out over devices, and ranks what fits."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.planning.candidates import Candidate, candidates, estimated_bytes
from glm_jax.planning.compiled_step import DoesNotFit
from glm_jax.planning.plan import StepPlan, compile_for, describe_step


class Tried(NamedTuple):
    """One candidate; its plan where it fits, or else why not."""

    candidate: Candidate
    plan: StepPlan | None
    problem: UserError | None

    @property
    def rank(self) -> tuple[float, int, int]:
        """Least time first, or least computed where no rates are known; then sent, then memory."""
        bound, flops = self.plan.bound, self.plan.flops
        first = flops.hardware if bound is None else bound.seconds
        return first, sum(self.plan.sent.values()), self.plan.memory.peak


def search(
    config: Config, devices: list[jax.Device], num_slices: int, max_compiles: int
) -> Iterator[Tried]:
    """Tries candidates as they are worth it.

    After one that does not fit, those of its remat that would not fit either, if `estimated_bytes`
    is wrong of them in the same proportion, are left out.

    Args:
      config: one part of a run, with no stages.
      max_compiles: steps that are compiled at most, those that do not fit too.
    """
    kind = device_kind(devices[0].device_kind)
    limit = math.inf if kind is None else kind.hbm_bytes
    needed_of_estimate: dict[str, float] = {}
    compiled = 0
    for candidate in candidates(config, len(devices), num_slices, kind):
        if compiled == max_compiles:
            return
        estimate = estimated_bytes(candidate.within(config), candidate)
        if estimate * needed_of_estimate.get(candidate.remat, 0.0) > limit:
            continue
        tried = _try(config, candidate, devices)
        if isinstance(tried.problem, DoesNotFit):
            needed = tried.problem.needed if math.isfinite(tried.problem.needed) else limit
            needed_of_estimate[candidate.remat] = needed / estimate
        compiled += tried.plan is not None or isinstance(tried.problem, DoesNotFit)
        yield tried


def _try(config: Config, candidate: Candidate, devices: list[jax.Device]) -> Tried:
    config = candidate.within(config)
    try:
        step = compile_for(config, devices)
    except UserError as error:
        return Tried(candidate, None, error)
    return Tried(candidate, describe_step(config, step, devices), None)
