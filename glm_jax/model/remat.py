"""What the backward pass of a layer finds kept, and what it computes again.

Every policy keeps a layer's input. `selective` also keeps the arrays that config names, by default
all results of matrix products: then only norms, rotations and activation functions are computed
again. `offload` keeps those in the host's memory. `full` keeps none of them, and `none` keeps all
that the backward pass reads.
"""

from collections.abc import Callable

import jax
from jax import checkpoint_policies as policies

from glm_jax.config import ModelConfig
from glm_jax.config_checks import REMAT_NAMES

_LSE = "attention_lse"
"""Small, and read first in the backward pass of attention: never worth a transfer."""


def remat(layer: Callable, config: ModelConfig) -> Callable:
    """`layer`, a function under `jax.lax.scan`, under the policy of `config.remat`."""
    if config.remat == "none":
        return layer
    policy = {
        "selective": lambda: policies.save_only_these_names(*config.remat_saved),
        "offload": lambda: policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[name for name in config.remat_saved if name == _LSE],
            names_which_can_be_offloaded=[name for name in config.remat_saved if name != _LSE],
            offload_src="device",
            offload_dst="pinned_host",
        ),
        "full": lambda: policies.nothing_saveable,
    }[config.remat]()
    return jax.checkpoint(layer, prevent_cse=not config.scan_layers, policy=policy)


def computed_again(config: ModelConfig) -> tuple[str, ...]:
    """The matrix products of a layer that its backward pass repeats.

    Returns:
      Names of `Attention` and `MLP` kernels as in the parameters ("query", "up"), and "attention"
      for the attention over keys, by one of our own kernels: the others name nothing to keep. The
      last projection of a layer is among them only where a norm follows it.
    """
    if config.remat == "none":
        return ()
    of_name = {
        "qkv": ("query", "key", "value"),
        "attention_out": ("attention",),
        "attention_lse": ("attention",),
        "residual": ("out", "down") if config.residual == "sandwich" else ("out",),
        "mlp_hidden": ("up", "gate") if config.is_gated else ("up",),
    }
    kept = () if config.remat == "full" else config.remat_saved
    lost = [name for name in REMAT_NAMES if name not in kept]
    return tuple(dict.fromkeys(product for name in lost for product in of_name[name]))
