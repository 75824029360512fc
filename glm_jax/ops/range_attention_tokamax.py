"""Range attention by tokamax's flash attention for NVIDIA GPUs, where that package is installed.

Its forward kernel skips the key tiles outside the ranges of a query tile; its gradients visit every
tile and mask (tokamax 0.0.17). Its public function takes no ranges; its operation class does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from glm_jax.errors import UserError


def tokamax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, kv_start: jax.Array, kv_end: jax.Array
) -> jax.Array:
    """Shapes and meaning as `range_attention`.

    Raises UserError if the installed tokamax has no ranges or its kernel cannot take these arrays.
    """
    try:
        from tokamax._src.ops.attention.base import Mask
        from tokamax._src.ops.attention.pallas_mosaic_gpu import PallasMosaicGpuFlashAttention
    except ImportError as error:
        raise UserError(
            f"attention backend 'tokamax' was written for tokamax 0.0.17 ({error}): "
            "pip install tokamax==0.0.17"
        ) from error
    empty = kv_start >= kv_end
    # tokamax does not say what a query that sees nothing gives. Here it sees one key, and neither
    # its output nor a gradient of it leaves this function.
    start, end = jnp.where(empty, 0, kv_start), jnp.where(empty, 1, kv_end)
    mask = Mask(k_start=start[:, None], k_end=end[:, None])
    try:
        out = PallasMosaicGpuFlashAttention()(q, k, v, mask=mask)
    except NotImplementedError as error:
        raise UserError(f"attention backend 'tokamax': {str(error).splitlines()[0]}") from error
    return jnp.where(empty[..., None, None], 0, out)
