"""What the Hopper kernels of range attention share: shapes in shared memory, the ring of stages.

A kernel is a grid of thread blocks. A block has one warpgroup per 64 rows of its output tile, which
compute with wgmma, and one more, which feeds them: it copies tiles with TMA into a ring of stages
in shared memory and waits for a stage to be free before it fills it again. Arrays of a warpgroup
are laid out in its registers as wgmma leaves its accumulators.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from glm_jax.ops.range_attention_chunked import MASKED

WARPGROUP_ROWS = 64  # rows of a wgmma
LOG2_E = 1.4426950408889634  # exp(x) = exp2(x * LOG2_E), and exp2 is what the hardware has
_STAGES = 2
_TILE_LAYOUT = plgpu.Layout.WGMMA
PER_ROW, PER_COLUMN = _TILE_LAYOUT.reduce(1), _TILE_LAYOUT.reduce(0)
# jax 0.10 requires an index beside the ref; 0.11 deprecates it.
_LOAD_INDEX = inspect.signature(plgpu.load).parameters["idx"]
_NO_INDEX = ((),) if _LOAD_INDEX.default is inspect.Parameter.empty else ()
# Registers of a thread where two warpgroups compute: 2 x 240 + 24 of the 512 that three share.
_FEEDER_REGISTERS, _COMPUTE_REGISTERS = 24, 240


class Ring(NamedTuple):
    """Stages in shared memory that are filled and read in turn."""

    buffers: tuple[Any, ...]  # refs [stages, ...]
    full: Any  # barrier per stage: all its copies have arrived
    free: Any  # barrier per stage: all compute warpgroups have read it

    def fill(self, step: jax.Array, *sources: Any) -> None:
        """Start the copies of one step, one source per buffer, once the stage is free."""
        stage = lax.rem(step, _STAGES)

        @pl.when(step >= _STAGES)
        def _():
            plgpu.barrier_wait(self.free.at[stage])

        for source, buffer in zip(sources, self.buffers, strict=True):
            plgpu.copy_gmem_to_smem(source, buffer.at[stage], self.full.at[stage])

    def wait(self, step: jax.Array) -> tuple[Any, ...]:
        """The buffers of a step, filled."""
        stage = lax.rem(step, _STAGES)
        plgpu.barrier_wait(self.full.at[stage])
        return tuple(buffer.at[stage] for buffer in self.buffers)

    def release(self, step: jax.Array) -> None:
        """Let the feeder write over a step; what plain loads read needs a `commit_smem` before."""
        plgpu.barrier_arrive(self.free.at[lax.rem(step, _STAGES)])

    def drain(self, steps: jax.Array) -> None:
        """Wait until the last stages have been read, so that no barrier is left half way."""

        @pl.loop(jnp.maximum(steps - _STAGES, 0), steps)
        def _(step):
            plgpu.barrier_wait(self.free.at[lax.rem(step, _STAGES)])


def ring_scratch(readers: int, *tiles: jax.ShapeDtypeStruct) -> Ring:
    """Scratch of a ring whose step holds `tiles` and is read by `readers` warpgroups."""
    return Ring(
        tuple(tile_scratch(_STAGES, tile) for tile in tiles),
        plgpu.Barrier(num_arrivals=len(tiles), num_barriers=_STAGES),
        plgpu.Barrier(num_arrivals=readers, num_barriers=_STAGES),
    )


def tile_scratch(count: int, tile: jax.ShapeDtypeStruct) -> Any:
    """`count` tiles in shared memory; matrices are swizzled as wgmma reads them."""
    transforms = ()
    if len(tile.shape) == 2:
        transforms = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((count, *tile.shape), tile.dtype, transforms=transforms)


def launch(kernel, out_type, scratch, *, grid: dict[str, int], compute_warpgroups: int):
    """A call of `kernel(*inputs, *outputs, **scratch)`; the first axis of `grid` runs fastest."""
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=compute_warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
    )


def specialise(compute_warpgroups: int, feed, compute) -> None:
    """Run feed() in the last warpgroup of the block and compute(warpgroup) in the others."""
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == compute_warpgroups)
    def _():
        if compute_warpgroups > 1:
            plgpu.set_max_registers(_FEEDER_REGISTERS, action="decrease")
        feed()

    @pl.when(warpgroup < compute_warpgroups)
    def _():
        if compute_warpgroups > 1:
            plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        compute(warpgroup)


def read(ref: Any, layout: Any) -> jax.Array:
    """A vector of shared or device memory, in the registers where `layout` needs it."""
    return plgpu.load(ref, *_NO_INDEX, layout=layout, optimized=False)


def zeros(shape: tuple[int, ...]) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), _TILE_LAYOUT)


def spread(vector: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    """`vector`, indexed by `axis` of `like`, repeated along the other axis."""
    return lax.broadcast_in_dim(vector, like.shape, [axis])


def hide(scores: jax.Array, ranges, key_tile, first_key, full, *, key_axis: int) -> jax.Array:
    """`scores` of the keys from `first_key` on, `MASKED` where the query does not see the key.

    ranges is a pair of functions that give start and end per query, and full the pair (full_lo,
    full_hi) of the query tile in `BlockBounds`: from tile full_lo on no range has yet to start and
    before tile full_hi none has ended, so most tiles need one comparison or none.
    """

    def compare(sees, load, scores):
        position = first_key + plgpu.broadcasted_iota(
            jnp.int32, scores.shape, key_axis, layout=_TILE_LAYOUT
        )
        return jnp.where(sees(position, spread(load(), scores, 1 - key_axis)), scores, MASKED)

    start, end = ranges
    for needed, sees, load in (
        (key_tile < full[0], jnp.greater_equal, start),
        (key_tile >= full[1], jnp.less, end),
    ):
        scores = lax.cond(needed, functools.partial(compare, sees, load), lambda x: x, scores)
    return scores
