"""Learning-rate schedules: a warm-up, then one of four ways down."""

import optax

from glm_jax.config import OptimizerConfig
from glm_jax.errors import UserError


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of the update that follows `count` batches, a float32 scalar.

    Update n = count + 1, so that the first one already learns. With peak lr0 = `learning_rate`,
    r = `final_ratio`, w = `warmup_steps`, N = `decay_steps` (0: `steps`) and C = `cooldown_steps`:
    lr0 n / w up to n = w, then

    - cosine: lr0 (r + (1 - r) (1 + cos(pi t)) / 2) with t = (n - w) / (N - w);
    - linear: lr0 (1 - (1 - r) t), with the same t;
    - wsd (warm-up, stable, decay: MiniCPM, arXiv 2404.06395): lr0 up to N - C, then linear to r lr0
      over C updates (arXiv 2405.18392);
    - constant: lr0 for ever; N is the run and r has no meaning.

    After N the first three stay at r lr0. Cosine and linear are those of Megatron and GLM 2021,
    except that the published linear one falls on below the floor, and below zero.

    Args:
      steps: length of the run, `config.training.steps`.

    Raises:
      UserError: the warm-up, or warm-up and cooldown together, do not fit into N.
    """
    decay_steps = config.decay_steps or steps
    if config.warmup_steps >= decay_steps:
        raise UserError(
            f"config.optimizer.warmup_steps {config.warmup_steps} leaves nothing of the "
            f"{decay_steps} decay steps"
        )
    peak, after_warmup = config.learning_rate, decay_steps - config.warmup_steps
    floor = peak * config.final_ratio
    boundaries = [config.warmup_steps]
    if config.schedule == "cosine":
        phases = [optax.cosine_decay_schedule(peak, after_warmup, config.final_ratio)]
    elif config.schedule == "linear":
        phases = [optax.linear_schedule(peak, floor, after_warmup)]
    elif config.schedule == "wsd":
        if config.cooldown_steps > after_warmup:
            raise UserError(
                f"config.optimizer.cooldown_steps {config.cooldown_steps} is longer than the "
                f"{after_warmup} steps between warm-up and the end of the decay steps"
            )
        phases = [
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, floor, config.cooldown_steps),
        ]
        boundaries.append(decay_steps - config.cooldown_steps)
    else:
        phases = [optax.constant_schedule(peak)]
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    schedule = optax.join_schedules([warmup, *phases], boundaries)
    return lambda count: schedule(count + 1)
