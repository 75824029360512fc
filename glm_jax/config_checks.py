"""What a config must fulfil beyond the types of its fields; each fault is one line."""

from __future__ import annotations

import dataclasses
import math
import re
import typing

from glm_jax.errors import UserError
from glm_jax.mesh_rules import parse_rule
from glm_jax.stages import check_stages, stages_of

if typing.TYPE_CHECKING:
    from glm_jax.config import BadStepsConfig, Config, ModelConfig, ObjectiveConfig, OptimizerConfig

REMAT_NAMES = ("qkv", "attention_out", "attention_lse", "residual", "mlp_hidden")
"""Arrays of a layer that `model.remat_saved` may name."""


def check(config: Config) -> None:
    """Refuses values and combinations that cannot run.

    Raises:
      UserError: naming the field and its value.
    """
    _require(config.seed >= 0, f"seed must not be negative, got {config.seed}")
    check_model(config.model)
    _check_rows(config)
    _check_optimizer(config.optimizer)
    _check_training(config)
    check_stages(config)
    for stage in stages_of(config):
        try:
            _check_rows(stage.config)
        except UserError as error:
            raise UserError(f"config.stages.{stage.name}: {error}") from error
    _check_bad_steps(config.bad_steps)
    _check_mesh_rules(config)
    _positive("hosts", config.hosts, "hang_seconds", "start_seconds", "silent_seconds")
    _not_negative("hosts", config.hosts, "compare_every")
    _positive("logging", config.logging, "sample_tokens")
    _require(
        not config.logging.samples
        or any(stage.config.objective.fills_blanks for stage in stages_of(config)),
        "logging.samples are blanks to fill, which no objective with a weight learns, got "
        f"{config.logging.samples}",
    )
    _one_of("logging.wandb", config.logging.wandb, ("off", "offline", "online"))


def _check_mesh_rules(config: Config) -> None:
    """Each rule makes a config that can run, as far as that is known without the devices."""
    for rule in map(parse_rule, config.mesh_rules):
        try:
            check(dataclasses.replace(rule.applied(config), mesh_rules=()))
        except UserError as error:
            raise UserError(f"config.mesh_rules: {rule.text!r}: {error}") from error


def _check_rows(config: Config) -> None:
    _check_objective(config.objective)
    _check_blanks_are_told_apart(config)
    _check_objective_fits_model(config)
    _check_data(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"config.{message}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _positive(section: str, values, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        _require(value > 0, f"{section}.{name} must be positive, got {value}")


def _not_negative(section: str, values, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        _require(value >= 0, f"{section}.{name} must not be negative, got {value}")


def _in_unit(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, f"{name} must be in [0, 1], got {value}")


def check_model(m: ModelConfig) -> None:
    """Refuses an architecture that cannot run.

    Raises:
      UserError: naming the field and its value.
    """
    _positive("model", m, "num_layers", "hidden_dim", "num_heads", "mlp_dim", "max_positions")
    _positive("model", m, "vocab_multiple", "rope_base", "norm_eps", "init_std")
    _not_negative("model", m, "vocab_size", "deepnorm_alpha", "num_kv_heads")
    _one_of("model.position", m.position, ("learned_2d", "rope_2d", "rope_1d"))
    _one_of("model.span_position", m.span_position, ("blank", "slot", "mixed"))
    _one_of("model.context", m.context, ("bidirectional", "causal"))
    _one_of("model.rope_layout", m.rope_layout, ("half", "interleaved"))
    _one_of("model.norm", m.norm, ("layernorm", "rmsnorm"))
    _one_of("model.residual", m.residual, ("pre", "deepnorm", "sandwich"))
    _one_of("model.activation", m.activation, ("gelu", "gelu_tanh", "geglu", "swiglu"))
    _one_of("model.remat", m.remat, ("none", "selective", "offload", "full"))
    for name in m.remat_saved:
        _one_of("model.remat_saved", name, REMAT_NAMES)
    for name in ("dtype", "param_dtype"):
        _one_of(f"model.{name}", getattr(m, name), ("float32", "bfloat16", "float64"))
    for name in ("embedding_dropout", "output_dropout"):
        rate = getattr(m, name)
        _require(0.0 <= rate < 1.0, f"model.{name} must be in [0, 1), got {rate}")
    _require(
        m.hidden_dim % m.num_heads == 0,
        f"model.hidden_dim {m.hidden_dim} is not divisible by model.num_heads {m.num_heads}",
    )
    _require(
        m.num_heads % m.kv_heads == 0,
        f"model.num_heads {m.num_heads} is not divisible by model.num_kv_heads {m.kv_heads}",
    )
    _check_positions(m)


def _check_positions(m: ModelConfig) -> None:
    _require(
        m.position != "rope_2d" or m.head_dim % 4 == 0,
        f"model.position rope_2d needs a head dimension divisible by 4, got {m.head_dim}",
    )
    _require(
        0.0 < m.rope_fraction <= 1.0,
        f"model.rope_fraction must be in (0, 1], got {m.rope_fraction}",
    )
    _require(
        m.position == "rope_1d" or m.rope_fraction == 1.0,
        f"model.rope_fraction {m.rope_fraction} is for model.position rope_1d, got {m.position}",
    )
    _require(
        m.block_positions or m.position != "rope_1d",
        "model.block_positions False is for models that read block positions, got model.position "
        "rope_1d",
    )
    _require(
        m.block_positions or m.span_position == "blank",
        "model.block_positions False needs model.span_position blank, got "
        f"{m.span_position}: nothing else would tell one answer from the next",
    )
    turned = m.head_dim * m.rope_fraction
    _require(
        m.position != "rope_1d" or (turned == m.rotary_dim and m.rotary_dim % 2 == 0),
        f"model.rope_fraction {m.rope_fraction} of a head dimension {m.head_dim} is no even number",
    )


def _check_objective(o: ObjectiveConfig) -> None:
    weights = tuple(o.weights.values())
    _require(
        min(weights) >= 0 and sum(weights) > 0,
        f"objective weights must be >= 0 with a positive sum, got {weights}",
    )
    _one_of("objective.span_sampling", o.span_sampling, ("fixed", "budget"))
    _require(
        0 < o.mask_ratio < 1, f"objective.mask_ratio must be between 0 and 1, got {o.mask_ratio}"
    )
    for name in (
        "document_min_ratio",
        "document_infill_prob",
        "single_span_prob",
        "short_sequence_prob",
        "block_mask_prob",
        "context_mask_ratio",
    ):
        _in_unit(f"objective.{name}", getattr(o, name))
    _positive("objective", o, "span_length_mean", "max_span_length", "tokens_per_sentence_blank")


def _check_blanks_are_told_apart(config: Config) -> None:
    objective = config.objective
    has_many_blanks = objective.token_weight > 0 or objective.sentence_weight > 0
    _require(
        config.model.span_position != "slot" or not (has_many_blanks and objective.shuffle_spans),
        "objective.shuffle_spans must be False for model.span_position slot: nothing but their "
        "order says which of several blanks an answer fills",
    )


def _check_objective_fits_model(config: Config) -> None:
    for name in ("prefix", "masked"):
        weight = config.objective.weights[name]
        _require(
            weight == 0 or config.model.context == "bidirectional",
            f"objective.{name}_weight {weight} needs model.context bidirectional, got "
            f"{config.model.context}",
        )
    _require(
        config.objective.t5_weight == 0 or config.model.block_positions,
        f"objective.t5_weight {config.objective.t5_weight} needs model.block_positions True: they "
        "count through its stream",
    )
    _require(
        not config.objective.random_position or config.model.position == "learned_2d",
        "objective.random_position True is for model.position learned_2d, got "
        f"{config.model.position}: rotary attention sees nothing but differences",
    )


def _check_data(config: Config) -> None:
    data, sample_length = config.data, config.objective.sample_length
    _require(
        sample_length == 0 or (sample_length >= 16 and data.seq_length % sample_length == 0),
        f"objective.sample_length must be 0 or a divisor >= 16 of data.seq_length "
        f"{data.seq_length}, got {sample_length}",
    )
    _require(data.seq_length >= 16, f"data.seq_length must be at least 16, got {data.seq_length}")
    if config.model.position == "learned_2d":
        _require(
            data.seq_length <= config.model.max_positions,
            f"data.seq_length {data.seq_length} is longer than the position table "
            f"(model.max_positions {config.model.max_positions})",
        )
    _not_negative("data", data, "num_workers")
    _positive("data", data, "prefetch", "temperature", "packing_rows", "shuffle_rows")
    _one_of("data.verify", data.verify, ("sha256", "size"))
    _one_of("data.weighting", data.weighting, ("weight", "tokens", "temperature"))
    _one_of("data.packing", data.packing, ("windows", "documents"))
    _require(
        0.5 <= data.packing_fill <= 1.0,
        f"data.packing_fill must be in [0.5, 1], got {data.packing_fill}",
    )
    for name, source in data.sources.items():
        _not_negative(f"data.sources.{name}", source, "weight", "max_epochs")
        _one_of(f"data.sources.{name}.packing", source.packing, ("", "windows", "documents"))
    _require(
        not data.sources or any(source.weight for source in data.sources.values()),
        f"data.sources.*.weight are all 0 ({', '.join(data.sources)})",
    )


def _check_optimizer(o: OptimizerConfig) -> None:
    _one_of("optimizer.name", o.name, ("adamw", "adafactor", "muon"))
    _one_of("optimizer.schedule", o.schedule, ("cosine", "linear", "wsd", "constant"))
    _positive("optimizer", o, "learning_rate", "eps", "clip_norm", "muon_rms")
    _not_negative("optimizer", o, "warmup_steps", "decay_steps", "cooldown_steps", "weight_decay")
    _in_unit("optimizer.final_ratio", o.final_ratio)
    for name in ("b1", "b2", "muon_momentum", "ema_decay"):
        decay = getattr(o, name)
        _require(0.0 <= decay < 1.0, f"optimizer.{name} must be in [0, 1), got {decay}")
    _require(
        o.schedule != "wsd" or o.cooldown_steps > 0,
        "optimizer.cooldown_steps must be positive for the schedule wsd",
    )
    for name in ("decay", "no_decay", "frozen", "muon"):
        for pattern in getattr(o, name):
            _check_regex(f"optimizer.{name}", pattern)
    for entry in o.learning_rate_factors:
        pattern, _, factor = entry.rpartition("=")
        _check_regex("optimizer.learning_rate_factors", pattern)
        _require(
            pattern != "" and _is_positive_number(factor),
            f'optimizer.learning_rate_factors must be "regex=positive factor", got {entry!r}',
        )


def _check_regex(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.{name}: {pattern!r} is no regular expression: {error}") from error


def _is_positive_number(text: str) -> bool:
    try:
        return 0.0 < float(text) < math.inf
    except ValueError:
        return False


def _check_training(config: Config) -> None:
    t, c = config.training, config.checkpoint
    _positive("training", t, "steps", "batch_size", "accumulation_steps", "log_every", "eval_rows")
    _not_negative("training", t, "eval_every", "z_loss")
    _require(
        t.batch_size % t.accumulation_steps == 0,
        f"training.batch_size {t.batch_size} is not divisible by "
        f"training.accumulation_steps {t.accumulation_steps}",
    )
    shares, steps = t.embedding_gradient_shrink, t.embedding_gradient_shrink_steps
    _require(
        len(shares) == len(steps) > 0,
        f"training.embedding_gradient_shrink {shares} and embedding_gradient_shrink_steps {steps} "
        "must be of one length",
    )
    for share in shares:
        _in_unit("training.embedding_gradient_shrink", share)
    _require(
        list(steps) == sorted(set(steps)) and steps[0] >= 0,
        f"training.embedding_gradient_shrink_steps must ascend from 0 or more, got {steps}",
    )
    _positive("checkpoint", c, "every", "keep_latest")
    _not_negative("checkpoint", c, "keep_every", "keep_best")


def _check_bad_steps(b: BadStepsConfig) -> None:
    _not_negative("bad_steps", b, "sigma", "rewind_skip_steps", "max_rewinds")
    _positive("bad_steps", b, "max_consecutive")
    _require(b.window >= 4, f"bad_steps.window must be at least 4, got {b.window}")
    _one_of("bad_steps.action", b.action, ("stop", "rewind"))
