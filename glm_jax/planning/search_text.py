"""What a search tried, as people read it."""

from glm_jax.errors import UserError
from glm_jax.planning.compiled_step import DoesNotFit
from glm_jax.planning.search import Tried

COLUMNS = (
    f"{'data':>5} {'fsdp':>5} {'context':>7} {'model':>5} {'accumulation':>12} {'remat':>9} "
    f"{'peak GiB':>9} {'sent MB':>9} {'TFLOP':>9} {'least s':>9} {'MFU at most':>11}"
)


def describe_tried(tried: Tried) -> str:
    """One row below `COLUMNS`: memory, traffic, operations (HFU) and the bound of a device."""
    data, fsdp, context, model, accumulation, remat = tried.layout
    layout = f"{data:5} {fsdp:5} {context:7} {model:5} {accumulation:12} {remat:>9}"
    if tried.plan is None:
        return f"{layout} {tried.problem}"
    plan, bound = tried.plan, tried.plan.bound
    figures = (
        f"{plan.memory.peak / 2**30:9.3f} {sum(plan.sent.values()) / 1e6:9.1f} "
        f"{plan.flops.hardware / 1e12:9.4g}"
    )
    if bound is None:
        return f"{layout} {figures} {'-':>9} {'-':>11}"
    return f"{layout} {figures} {bound.seconds:9.4g} {bound.mfu:11.1%}"


def describe_ranking(found: list[Tried]) -> str:
    """What fits, the best first, and how to ask for it.

    Raises:
      UserError: nothing fits; naming what comes nearest.
    """
    fitting = sorted((tried for tried in found if tried.plan), key=lambda tried: tried.rank)
    if not fitting:
        raise UserError(_nothing(found))
    timed = fitting[0].plan.bound is not None
    by = "least time, predicted, never run" if timed else "operations, as no peak is known"
    order = f"by {by}; then by what is sent, then by memory:"
    lines = [f"\n{len(fitting)} of {len(found)} tried fit, {order}"]
    lines += [COLUMNS, *map(describe_tried, fitting)]
    return "\n".join([*lines, f"best: {fitting[0].layout.overrides()}"])


def _nothing(found: list[Tried]) -> str:
    large = [tried for tried in found if isinstance(tried.problem, DoesNotFit)]
    if not large:
        return "no mesh of these devices divides the config's rows, heads and widths"
    nearest = min(large, key=lambda tried: tried.problem.needed)
    return f"none of {len(found)} fits; nearest is {nearest.layout.overrides()}: {nearest.problem}"
