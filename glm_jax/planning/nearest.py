"""What should fit where a run does not, by arithmetic: the nearest layout, or more devices."""

import math

from glm_jax.config import Config
from glm_jax.parallel.device_kinds import DeviceKind
from glm_jax.planning.candidates import Candidate, Layout, candidates
from glm_jax.planning.estimate import estimate

MOST_DEVICES = 16_384
ROOM = 0.95
"""The share of a memory that an estimate may fill, as it may fall short."""


def nearest_that_fits(
    run: Config,
    mesh: tuple[int, ...],
    num_slices: int,
    device: DeviceKind | None,
    needed: float = math.inf,
) -> str:
    """What to change of a run that cannot be laid out or does not fit, as the end of a message.

    That is the layout of the same devices, of those that should fit, that changes least: first the
    accumulation, then the remat, then the mesh. Where there is none, it is the least power of two
    of devices that has one.

    Args:
      mesh: sizes of `AXES` that do not fit.
      device: None where its memory is not known.
      needed: bytes of a device that the run's largest step takes; infinite where it is not known.
    """
    now = Layout(*mesh, run.training.accumulation_steps, run.model.remat)
    wrong_by = _wrong_by(now, run, needed)
    count = math.prod(mesh)
    found = _fitting(run, count, num_slices, device, wrong_by)
    if found := [candidate for candidate in found if candidate.layout != now]:
        # They are in the order of their worth: the first of the nearest is the best of them.
        best = min(found, key=lambda candidate: _distance(now, candidate.layout))
        return (
            f"nearest that should fit, by arithmetic ({_gib(best, wrong_by)}): "
            f"{best.layout.overrides(besides=now)}"
        )
    here = f"by arithmetic no layout of these {count} devices should fit"
    while (count := 1 << count.bit_length()) <= MOST_DEVICES:
        if found := _fitting(run, count, num_slices, device, wrong_by):
            best = found[0]
            return f"{here}; {count} should ({_gib(best, wrong_by)}): {best.layout.overrides()}"
    return f"{here}, nor of up to {MOST_DEVICES}"


def _wrong_by(now: Layout, run: Config, needed: float) -> float:
    """The factor by which the activations of the estimate fall short of what is needed."""
    guessed = estimate(now.largest_step(run), now.mesh)
    if not math.isfinite(needed):
        return 1.0
    return max(1.0, (needed - guessed.state) / guessed.activations)


def _fitting(
    run: Config, count: int, num_slices: int, device: DeviceKind | None, wrong_by: float
) -> list[Candidate]:
    found = candidates(run, count, num_slices, device)
    limit = math.inf if device is None else ROOM * device.hbm_bytes
    return [candidate for candidate in found if _bytes(candidate, wrong_by) <= limit]


def _bytes(candidate: Candidate, wrong_by: float) -> float:
    return candidate.estimate.state + wrong_by * candidate.estimate.activations


def _gib(candidate: Candidate, wrong_by: float) -> str:
    return f"about {_bytes(candidate, wrong_by) / 2**30:.2f} GiB"


def _distance(now: Layout, other: Layout) -> tuple[int, bool, bool, int]:
    changes = (other.mesh != now.mesh, other.remat != now.remat)
    accumulates = other.accumulation_steps != now.accumulation_steps
    return sum(changes) + accumulates, *changes, other.accumulation_steps
