"""JAX's interpreter of Mosaic-GPU kernels on CPU, for the tests of the kernels for Hopper."""

import contextlib

import jax
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu


@contextlib.contextmanager
def interpreted():
    """Run the Mosaic-GPU kernels traced here step by step on CPU, memory and barriers included.

    Buffers start as NaN, barriers must end even, and memory that two warpgroups or TMA touch
    without an order fails the test. Skips it where the installed jax cannot do this.
    """
    if not hasattr(plgpu, "force_gpu_interpret_mode"):
        pytest.skip(f"jax {jax.__version__} cannot interpret Mosaic GPU kernels: needs jax 0.11.2")
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_callbacks, "wgmma", _wgmma(gpu_callbacks))
        try:
            with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
                yield
            assert not gpu_callbacks.get_races().races_found
        finally:
            gpu_callbacks.reset_gpu_interpret_mode_state()


def _wgmma(callbacks):
    """The interpreter's matrix product, with a left operand in registers too, as wgmma has it."""
    from_shared_memory = callbacks.wgmma

    def wgmma(**call):
        left = call["a_allocation_key_as_array"]
        if left.ndim == 1:  # the key of a buffer and not its content
            return from_shared_memory(**call)
        memory, thread = callbacks._get_shared_memory(), call["thread"]
        logging = callbacks.memory.GPULoggingInfo(
            call["mesh_location"], thread, call["source_info"]
        )

        def place(name):
            key = callbacks.HostAllocationKey.from_array(call[f"{name}_allocation_key_as_array"])
            transforms = callbacks._remove_noop_transforms(call[f"{name}_transforms"])
            return key, memory.access(key, jax.tree.map(int, transforms))

        right, accumulator = (
            memory.get_buffer_content(*place(name), thread, logging_info=logging)[0]
            for name in ("b", "acc")
        )
        accumulator = accumulator + np.matmul(*(np.asarray(x, np.float32) for x in (left, right)))
        memory.store_buffer_content(*place("acc"), accumulator, thread, logging_info=logging)
        return call["token"]

    return wgmma
