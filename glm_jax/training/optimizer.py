"""AdamW as GLM was trained: warm-up, cosine decay, clipping, decay by parameter name."""

import re

import jax
import optax

from glm_jax.config import OptimizerConfig
from glm_jax.errors import UserError
from glm_jax.parallel.sharding import param_name


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of the update that follows `count` updates.

    Linear warm-up to the peak, then a cosine to `final_ratio` of it (Megatron, GLM 2021): update n
    counts from 1, so that the first one already learns.

    Raises:
      UserError: the warm-up is longer than the decay.
    """
    decay_steps = config.decay_steps or steps
    if config.warmup_steps >= decay_steps:
        raise UserError(
            f"config.optimizer.warmup_steps {config.warmup_steps} leaves nothing of the "
            f"{decay_steps} decay steps"
        )
    cosine = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=decay_steps,
        end_value=config.learning_rate * config.final_ratio,
    )
    return lambda count: cosine(count + 1)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: decay_mask(config, params),
        ),
    )


def decay_mask(config: OptimizerConfig, params: dict) -> dict:
    """Which parameters decay: a tree of booleans.

    Raises:
      UserError: a parameter is matched by both `decay` and `no_decay`, or by neither.
    """

    def decays(path, _) -> bool:
        name = param_name(path)
        yes = any(re.search(pattern, name) for pattern in config.decay)
        no = any(re.search(pattern, name) for pattern in config.no_decay)
        if yes == no:
            which = "both match" if yes else "neither matches"
            raise UserError(
                f"parameter {name}: {which} in config.optimizer.decay {config.decay} and "
                f"no_decay {config.no_decay}"
            )
        return yes

    return jax.tree_util.tree_map_with_path(decays, params)
