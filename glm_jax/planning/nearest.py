"""What to ask for instead of what does not fit, by arithmetic alone."""

import math

import jax

from glm_jax.config import Config
from glm_jax.parallel.device_kinds import DeviceKind, device_kind
from glm_jax.parallel.mesh import AXES
from glm_jax.planning.candidates import Candidate, candidates, estimated_bytes
from glm_jax.planning.compiled_step import DoesNotFit

_MOST_DEVICES = 8192


def nearest_that_fits(
    config: Config, devices: list[jax.Device], num_slices: int, refused: DoesNotFit
) -> str:
    """The layout of the same devices that differs least, or how many devices there should be.

    Estimates are wrong of it in the proportion in which they are wrong of what was refused.

    Args:
      config: one part of a run, with no stages, that was refused.
    """
    kind = device_kind(devices[0].device_kind)
    current = _as_candidate(config, len(devices))
    estimate = estimated_bytes(config, current)
    wrong = refused.needed / estimate if math.isfinite(refused.needed) else 1.0
    here = _fitting(config, len(devices), num_slices, kind, wrong)
    if here:
        best = min(here, key=lambda candidate: (_differences(candidate, current), here[candidate]))
        return f"by arithmetic this should fit: {best.overrides()}"
    count = 2 * len(devices)
    while count <= _MOST_DEVICES:
        if _fitting(config, count, num_slices, kind, wrong):
            return f"by arithmetic no layout of {len(devices)} does, but one of {count} should"
        count *= 2
    return f"by arithmetic no layout of {_MOST_DEVICES} or fewer devices does"


def _as_candidate(config: Config, num_devices: int) -> Candidate:
    sizes = [getattr(config.mesh, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    filled = [num_devices // known if size == -1 else size for size in sizes]
    return Candidate(*filled, config.training.accumulation_steps, config.model.remat)


def _fitting(
    config: Config, count: int, num_slices: int, kind: DeviceKind, wrong: float
) -> dict[Candidate, int]:
    """Candidates that should fit, with their place in the order of worth."""
    found = candidates(config, count, num_slices, kind)
    return {
        candidate: place
        for place, candidate in enumerate(found)
        if wrong * estimated_bytes(candidate.within(config), candidate) <= kind.hbm_bytes
    }


def _differences(candidate: Candidate, other: Candidate) -> int:
    """Fields that have to be changed; one of the mesh brings another along."""
    return sum(a != b for a, b in zip(candidate, other, strict=True))
