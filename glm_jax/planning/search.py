"""Compiles ways to lay a run out over devices, and ranks what fits."""

from collections.abc import Iterator
from typing import NamedTuple

import jax

from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.planning.candidates import Candidate, candidates
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
    """Tries candidates as they are worth it; those that cannot fit are not compiled.

    Of one mesh, what saves less memory than a candidate that did not fit is left out.

    Args:
      config: one part of a run, with no stages.
      max_compiles: steps that are compiled at most.
    """
    kind = device_kind(devices[0].device_kind)
    too_large: list[Candidate] = []
    compiled = 0
    for candidate in candidates(config, len(devices), num_slices, kind):
        if compiled == max_compiles:
            return
        if any(_saves_less(candidate, other) for other in too_large):
            continue
        tried = _try(config, candidate, devices)
        if isinstance(tried.problem, DoesNotFit):
            too_large.append(candidate)
        compiled += tried.plan is not None or isinstance(tried.problem, DoesNotFit)
        yield tried


def _saves_less(candidate: Candidate, other: Candidate) -> bool:
    pairs = zip(candidate.saves, other.saves, strict=True)
    return candidate.mesh == other.mesh and all(a <= b for a, b in pairs)


def _try(config: Config, candidate: Candidate, devices: list[jax.Device]) -> Tried:
    config = candidate.within(config)
    try:
        step = compile_for(config, devices)
    except UserError as error:
        return Tried(candidate, None, error)
    return Tried(candidate, describe_step(config, step, devices), None)
