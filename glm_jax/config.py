"""The configuration: frozen dataclasses, one per section, built from a plain dict.

Every default of the program lives in this file. A recipe in `configs/` starts from
`default_dict()`, changes what it wants and hands a dict to `from_dict`, which rejects unknown keys
and ill-typed values with one line each.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping

from glm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture and numerics of one GLM. `glm_jax.model.presets` owns the named ones."""

    vocab_size: int = 0  # embedding rows; 0: the tokenizer's size rounded up to vocab_multiple
    vocab_multiple: int = 128
    num_layers: int = 12
    hidden_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512  # P; learned tables have P + 1 rows
    position: str = "learned_2d"  # learned_2d | rope_2d
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    residual: str = "pre"  # pre | deepnorm (y = alpha * LN(x) + f(LN(x)), GLM-130B)
    deepnorm_alpha: float = 0.0  # 0: sqrt(2 * num_layers)
    activation: str = "gelu_tanh"  # gelu_tanh | gelu (erf)
    tie_embeddings: bool = True
    init_std: float = 0.02  # outputs of attention and mlp: init_std / sqrt(2 * num_layers)
    embedding_gradient_shrink: float = 1.0  # share of the gradient that reaches the token table
    embedding_dropout: float = 0.0
    output_dropout: float = 0.0  # on both sublayer outputs
    dtype: str = "bfloat16"  # of activations and matrix products
    param_dtype: str = "float32"
    remat: str = "none"  # none | full
    scan_layers: bool = True
    attention_backend: str = "auto"  # a name from glm_jax.ops.range_attention.BACKENDS

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads

    @property
    def residual_scale(self) -> float:
        """Alpha of the DeepNorm residual branch; meaningless for `residual='pre'`."""
        return self.deepnorm_alpha or math.sqrt(2 * self.num_layers)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is blanked. The weights choose the objective of a row, never of a batch."""

    token_weight: float = 1.0  # [MASK]: short spans
    sentence_weight: float = 0.0  # [sMASK]: whole sentences
    document_weight: float = 0.0  # [gMASK]: one long span
    mask_ratio: float = 0.15  # share of the tokens that token and sentence blanks cover
    span_length_mean: float = 3.0  # lambda of the zero-truncated Poisson of token spans
    max_span_length: int = 39
    span_sampling: str = "fixed"  # fixed: a row has a fixed number of blanks | budget: as published
    shuffle_spans: bool = True
    tokens_per_sentence_blank: int = 16  # a sentence row reserves a blank per so many masked tokens
    document_min_ratio: float = 0.25  # shortest [gMASK] span as a share of its document
    document_infill_prob: float = 0.5  # chance that text may follow the [gMASK] blank


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One prepared token dataset of the mixture."""

    weight: float = 1.0  # share of rows, relative to the other sources
    dir: str = ""  # empty: <data.dir>/<name of the source>


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where rows come from. A row is a pure function of (data, objective, seed, row index)."""

    dir: str = ""  # what `python -m glm_jax.prepare --out` wrote
    tokenizer: str = ""  # empty: <data.dir>/tokenizer
    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    # empty: every source that <data.dir> holds, with equal weights
    seq_length: int = 512  # T, slots of a row
    shuffle: bool = True
    num_workers: int = 0  # Grain processes that build rows; 0: in the trainer's process
    prefetch: int = 8  # batches built ahead by each worker


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay (GLM_2021 recipes are presets of these numbers)."""

    learning_rate: float = 4e-4
    warmup_steps: int = 1000
    decay_steps: int = 0  # length of warm-up and decay together; 0: training.steps
    final_ratio: float = 0.1  # learning rate at the end, as a share of the peak
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.1
    decay: tuple[str, ...] = ("kernel$", "embedding$")  # regexes of parameters that decay
    no_decay: tuple[str, ...] = (
        "bias$",
        "scale$",
    )  # and of those that do not; together all of them
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    steps: int = 1000
    batch_size: int = 256  # rows per step, over all devices and accumulation steps
    accumulation_steps: int = 1
    log_every: int = 10
    eval_every: int = 500  # 0: only at the end
    eval_rows: int = 512  # validation rows, at most one pass over the validation split


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as data x fsdp x model; one size may be -1: all that is left."""

    data: int = -1
    fsdp: int = 1
    model: int = 1
    rules: str = "fsdp_model"  # a name from glm_jax.parallel.sharding.PRESETS
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    # logical axis of a parameter -> mesh axis, or "" for none; on top of the preset


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 500  # steps between checkpoints; the last step is always saved
    keep_latest: int = 3
    keep_every: int = 0  # also keep the checkpoints of every so many steps; 0: none
    keep_best: int = 1  # also keep this many with the lowest loss, of those validated as saved


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


def default_dict() -> dict:
    """All fields with their defaults, as nested dicts that a recipe edits."""
    return to_dict(Config())


def to_dict(config) -> dict:
    """A config as nested dicts of JSON values; the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping) -> Config:
    """Builds and checks a Config.

    Raises:
      UserError: unknown key, ill-typed value, or a combination that cannot run.
    """
    config = _section(Config, values, prefix="")
    _require(config.seed >= 0, f"seed must not be negative, got {config.seed}")
    _check_model(config.model)
    _check_objective(config.objective)
    _check_data(config)
    _check_training(config)
    return config


def _section(cls, values: Mapping, prefix: str):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UserError(f"config has no field {prefix}{key}{hint}")
    return cls(**{k: _value(types[k], v, f"{prefix}{k}") for k, v in values.items()})


def _value(kind, value, name: str):
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _ill_typed(name, "a section", value)
        return _section(kind, value, f"{name}.")
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise _ill_typed(name, "a section", value)
        item = typing.get_args(kind)[1]
        return {k: _value(item, v, f"{name}.{k}") for k, v in value.items()}
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            raise _ill_typed(name, f"a tuple of {item.__name__}", value)
        return tuple(_value(item, v, f"{name}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _ill_typed(name, kind.__name__, value)
    return value


def _ill_typed(name: str, expected: str, value) -> UserError:
    return UserError(f"config.{name} must be {expected}, got {type(value).__name__} {value!r}")


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


def _check_model(m: ModelConfig) -> None:
    _positive("model", m, "num_layers", "hidden_dim", "num_heads", "mlp_dim", "max_positions")
    _positive("model", m, "vocab_multiple", "rope_base", "norm_eps", "init_std")
    _not_negative("model", m, "vocab_size", "deepnorm_alpha")
    _one_of("model.position", m.position, ("learned_2d", "rope_2d"))
    _one_of("model.residual", m.residual, ("pre", "deepnorm"))
    _one_of("model.activation", m.activation, ("gelu", "gelu_tanh"))
    _one_of("model.remat", m.remat, ("none", "full"))
    for name in ("dtype", "param_dtype"):
        _one_of(f"model.{name}", getattr(m, name), ("float32", "bfloat16", "float64"))
    _in_unit("model.embedding_gradient_shrink", m.embedding_gradient_shrink)
    for name in ("embedding_dropout", "output_dropout"):
        rate = getattr(m, name)
        _require(0.0 <= rate < 1.0, f"model.{name} must be in [0, 1), got {rate}")
    _require(
        m.hidden_dim % m.num_heads == 0,
        f"model.hidden_dim {m.hidden_dim} is not divisible by model.num_heads {m.num_heads}",
    )
    _require(
        m.position != "rope_2d" or m.head_dim % 4 == 0,
        f"model.position rope_2d needs a head dimension divisible by 4, got {m.head_dim}",
    )


def _check_objective(o: ObjectiveConfig) -> None:
    weights = (o.token_weight, o.sentence_weight, o.document_weight)
    _require(
        min(weights) >= 0 and sum(weights) > 0,
        f"objective weights must be >= 0 with a positive sum, got {weights}",
    )
    _one_of("objective.span_sampling", o.span_sampling, ("fixed", "budget"))
    _require(
        0 < o.mask_ratio < 1, f"objective.mask_ratio must be between 0 and 1, got {o.mask_ratio}"
    )
    for name in ("document_min_ratio", "document_infill_prob"):
        _in_unit(f"objective.{name}", getattr(o, name))
    _positive("objective", o, "span_length_mean", "max_span_length", "tokens_per_sentence_blank")


def _check_data(config: Config) -> None:
    data = config.data
    _require(data.seq_length >= 16, f"data.seq_length must be at least 16, got {data.seq_length}")
    if config.model.position == "learned_2d":
        _require(
            data.seq_length <= config.model.max_positions,
            f"data.seq_length {data.seq_length} is longer than the position table "
            f"(model.max_positions {config.model.max_positions})",
        )
    _not_negative("data", data, "num_workers")
    _positive("data", data, "prefetch")
    for name, source in data.sources.items():
        _require(
            source.weight > 0, f"data.sources.{name}.weight must be positive, got {source.weight}"
        )


def _check_training(config: Config) -> None:
    t, o, c = config.training, config.optimizer, config.checkpoint
    _positive("training", t, "steps", "batch_size", "accumulation_steps", "log_every", "eval_rows")
    _not_negative("training", t, "eval_every")
    _require(
        t.batch_size % t.accumulation_steps == 0,
        f"training.batch_size {t.batch_size} is not divisible by "
        f"training.accumulation_steps {t.accumulation_steps}",
    )
    _positive("optimizer", o, "learning_rate", "eps", "clip_norm")
    _not_negative("optimizer", o, "warmup_steps", "decay_steps", "weight_decay")
    for name in ("final_ratio", "b1", "b2"):
        _in_unit(f"optimizer.{name}", getattr(o, name))
    _positive("checkpoint", c, "every", "keep_latest")
    _not_negative("checkpoint", c, "keep_every", "keep_best")


_FREE_SECTIONS = ("optimizer", "training", "mesh", "checkpoint")
_FREE_FIELDS = ("model.remat", "model.scan_layers", "model.attention_backend", "data.dir")
_FREE_FIELDS += ("data.tokenizer", "data.num_workers", "data.prefetch")


def run_identity(config: Config) -> dict[str, typing.Any]:
    """The fields that decide a run's rows and parameters, by dotted name.

    A run may be resumed with other values of everything else: a longer schedule, another mesh,
    data that moved to another folder.
    """
    flat = _flatten(to_dict(config), "")
    return {
        name: value
        for name, value in flat.items()
        if name.split(".")[0] not in _FREE_SECTIONS
        and name not in _FREE_FIELDS
        and not (name.startswith("data.sources.") and name.endswith(".dir"))
    }


def with_vocab_size(config: Config, tokenizer_size: int) -> Config:
    """The config with the embedding rows resolved for a tokenizer.

    Raises:
      UserError: the configured vocabulary is smaller than the tokenizer.
    """
    model = config.model
    _require(
        model.vocab_size == 0 or model.vocab_size >= tokenizer_size,
        f"model.vocab_size {model.vocab_size} is smaller than the tokenizer ({tokenizer_size})",
    )
    rows = model.vocab_size or -(-tokenizer_size // model.vocab_multiple) * model.vocab_multiple
    return dataclasses.replace(config, model=dataclasses.replace(model, vocab_size=rows))


def _flatten(value, prefix: str) -> dict[str, typing.Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat
