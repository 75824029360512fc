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

from glm_jax.config_checks import REMAT_NAMES, check
from glm_jax.errors import UserError

GATED = ("geglu", "swiglu")
"""Activations of an mlp with two projections to its inner width."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture and numerics of one GLM. `glm_jax.model.presets` owns the named ones."""

    vocab_size: int = 0  # embedding rows; 0: the tokenizer's size rounded up to vocab_multiple
    vocab_multiple: int = 128
    num_layers: int = 12
    hidden_dim: int = 768
    num_heads: int = 12
    num_kv_heads: int = 0  # key and value heads (grouped queries); 0: num_heads
    mlp_dim: int = 3072  # of the inner activation; a gated mlp has two projections to it
    max_positions: int = 512  # P; learned tables have P + 1 rows
    position: str = "learned_2d"  # learned_2d | rope_2d | rope_1d
    span_position: str = "blank"  # of an answer's tokens. blank: that of its mask token (GLM 2021,
    # ChatGLM-6B) | slot: their place in the sample (ChatGLM2 and later) | mixed: slot for [gMASK],
    # blank for the others (GLM-130B)
    block_positions: bool = True  # False: 1 for all of an answer (GLM 2021's --no-block-position)
    context: str = "bidirectional"  # | causal: as the released ChatGLM2 and later read it
    rope_base: float = 10000.0
    rope_fraction: float = 1.0  # rope_1d: share of a head's dimensions that turn
    rope_layout: str = "half"  # half: i pairs with i + n/2 | interleaved: 2i with 2i + 1
    norm: str = "layernorm"  # layernorm | rmsnorm
    norm_eps: float = 1e-5
    residual: str = "pre"  # pre | deepnorm (y = alpha * LN(x) + f(LN(x)), GLM-130B)
    # | sandwich (x + norm(f(norm(x))), GLM-4-0414)
    deepnorm_alpha: float = 0.0  # 0: sqrt(2 * num_layers)
    activation: str = "gelu_tanh"  # gelu_tanh | gelu (erf) | geglu (erf) | swiglu
    qkv_bias: bool = True
    linear_bias: bool = True  # of the other projections
    tie_embeddings: bool = True
    init_std: float = 0.02  # outputs of attention and mlp: init_std / sqrt(2 * num_layers)
    embedding_dropout: float = 0.0
    output_dropout: float = 0.0  # on both sublayer outputs
    dtype: str = "bfloat16"  # of activations and matrix products
    param_dtype: str = "float32"
    remat: str = "none"  # what the backward pass computes again. none: nothing | selective: all but
    # remat_saved | offload: likewise, with those in the host's memory | full: the whole layer
    remat_saved: tuple[str, ...] = REMAT_NAMES
    scan_layers: bool = True
    attention_backend: str = "auto"  # a name from glm_jax.ops.range_attention.BACKENDS

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share a key head."""
        return self.kv_heads != self.num_heads

    @property
    def is_gated(self) -> bool:
        return self.activation in GATED

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that one coordinate turns; 0 for learned positions."""
        if self.position == "learned_2d":
            return 0
        if self.position == "rope_2d":
            return self.head_dim // 2
        return round(self.head_dim * self.rope_fraction)

    def answers_in_slots(self, is_document: bool) -> bool:
        """Whether the position of an answer's token is its place in the sample.

        Args:
          is_document: the answer is that of a [gMASK].
        """
        return {"blank": False, "slot": True, "mixed": is_document}[self.span_position]

    @property
    def residual_scale(self) -> float:
        """Alpha of the DeepNorm residual branch; meaningless for `residual='pre'`."""
        return self.deepnorm_alpha or math.sqrt(2 * self.num_layers)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """How the checkpoint `init_from` becomes the first parameters."""

    layout: str = "auto"  # a name from glm_jax.layouts.LAYOUTS; auto: by its config and tensors
    resize_vocab: bool = False  # add rows to its vocabulary, or drop the last ones
    extend_positions: bool = False  # add rows to its position tables
    copy_rows: tuple[str, ...] = ()  # "FROM:TO": vocabulary rows that take the values of others


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is blanked. The weights choose the objective of a row, never of a batch."""

    token_weight: float = 1.0  # [MASK]: short spans
    sentence_weight: float = 0.0  # [sMASK]: whole sentences
    document_weight: float = 0.0  # [gMASK]: one long span
    causal_weight: float = 0.0  # every token predicts the next
    prefix_weight: float = 0.0  # a prefix that all see, the rest causal
    masked_weight: float = 0.0  # BERT: single tokens masked in place
    t5_weight: float = 0.0  # [MASK] spans that are answered in one stream
    mask_ratio: float = 0.15  # share of the tokens that token and sentence blanks and masks cover
    span_length_mean: float = 3.0  # lambda of the zero-truncated Poisson of token spans
    max_span_length: int = 39
    span_sampling: str = "fixed"  # fixed: a row has a fixed number of blanks | budget: as published
    shuffle_spans: bool = True  # must be False for model.span_position slot with several blanks
    tokens_per_sentence_blank: int = 16  # a sentence row reserves a blank per so many masked tokens
    document_min_ratio: float = 0.25  # shortest [gMASK] span as a share of its document
    document_infill_prob: float = 0.5  # chance that text may follow the [gMASK] blank
    sample_length: int = 0  # slots of a sample in a token row, on average; 0: the whole row
    single_span_prob: float = 0.0  # share of token rows with one short span per text
    short_sequence_prob: float = 0.0  # share of rows that are cut into texts of a random length
    block_mask_prob: float = 0.0  # share of a token span's inputs that are [dBLOCK]
    context_mask_ratio: float = 0.0  # [dBLOCK] near token blanks, as a share of the text's tokens
    random_position: bool = False  # positions of a text start anywhere in the learned table

    @property
    def weights(self) -> dict[str, float]:
        """Share of rows, relative to the others, by the name of the objective."""
        return {
            name.removesuffix("_weight"): value
            for name, value in vars(self).items()
            if name.endswith("_weight")
        }

    @property
    def fills_blanks(self) -> bool:
        """Whether rows ask for the answers of blanks one by one, as filling and scoring do."""
        return self.token_weight + self.sentence_weight + self.document_weight > 0


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One prepared token dataset of the mixture."""

    weight: float = 1.0  # share of rows, relative to the other sources; see data.weighting
    dir: str = ""  # empty: <data.dir>/<name of the source>
    packing: str = ""  # empty: data.packing
    max_epochs: float = 0.0  # a run that would read more of the source is refused; 0: no limit


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where rows come from. A row is a pure function of (data, objective, seed, row index)."""

    dir: str = ""  # what `python -m glm_jax.prepare --out` wrote
    tokenizer: str = ""  # empty: <data.dir>/tokenizer
    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    # empty: every source that <data.dir> holds, with equal weights
    weighting: str = "weight"  # weight | tokens: weight times the tokens of the source
    # | temperature: weight times tokens to the power of 1 / temperature (mT5: 1 / 0.3)
    temperature: float = 3.33
    seq_length: int = 512  # T, slots of a row
    packing: str = "windows"  # windows: rows cut the stream where they end | documents: they hold
    # whole documents, as far as these fit a row
    packing_rows: int = 128  # documents: rows that are filled together
    packing_fill: float = 0.985  # documents: share of their room that is taken from the stream
    shuffle: bool = True
    shuffle_rows: int = 65_536  # that are shuffled among each other; prepare has shuffled documents
    num_workers: int = 0  # Grain processes that build rows; 0: in the trainer's process
    prefetch: int = 8  # batches built ahead by each worker
    verify: str = "sha256"  # | "size": how every shard is checked at the start


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What a part of a run changes; a field left at its default is that of the section it is from.

    Validation rows are those of the sections themselves in every stage.
    """

    from_step: int = 0
    source_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    # the sources it reads, by name; empty: the weights of data.sources
    objective_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    # its objectives, by name ("token"); empty: objective.*_weight
    mask_ratio: float = 0.0  # 0: objective.mask_ratio
    seq_length: int = 0  # 0: data.seq_length
    batch_size: int = 0  # 0: training.batch_size
    accumulation_steps: int = 0  # 0: micro-batches as large as training's


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule (the GLM 2021 recipes are presets of these numbers).

    Regexes are searched in parameter names such as `layers/attention/query/kernel`; one that
    matches no parameter is an error.
    """

    name: str = "adamw"  # adamw | adafactor | muon
    learning_rate: float = 4e-4
    schedule: str = "cosine"  # cosine | linear | wsd (warm-up, stable, decay) | constant
    warmup_steps: int = 1000
    decay_steps: int = 0  # length of warm-up and decay together; 0: training.steps
    cooldown_steps: int = 0  # wsd: length of the linear decay at the end of decay_steps
    final_ratio: float = 0.1  # learning rate at the end, as a share of the peak; constant: unused
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.1
    decay: tuple[str, ...] = ("kernel$", "embedding$")  # regexes of parameters that decay
    no_decay: tuple[str, ...] = (
        "bias$",
        "scale$",
    )  # and of those that do not; together all of them
    learning_rate_factors: tuple[str, ...] = ()  # "regex=factor"; parameters not named: 1
    frozen: tuple[str, ...] = ()  # regexes of parameters that are never updated
    muon: tuple[str, ...] = (
        "layers/.*kernel$",
    )  # name = muon: matrices it updates; the rest: adamw
    muon_momentum: float = 0.95
    muon_rms: float = 0.2  # root mean square of a Muon update: AdamW's learning rates fit as is
    clip_norm: float = 1.0
    ema_decay: float = 0.0  # of the moving average of the parameters; 0: none is kept


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    steps: int = 1000
    batch_size: int = 256  # rows per step, over all devices and accumulation steps
    accumulation_steps: int = 1  # of batch_size rows; smaller batches of a ramp take fewer
    batch_ramp: tuple[int, ...] = ()  # start, increment, rows: batches grow from start rows by
    # increment to batch_size over the first rows of a run (Megatron's --rampup-batch-size)
    z_loss: float = 0.0  # weight of log(sum(exp(logits)))^2 (PaLM: 1e-4)
    embedding_gradient_shrink: tuple[float, ...] = (1.0,)
    # share of the gradient that reaches the token table through the input (GLM-130B: 0.1)
    embedding_gradient_shrink_steps: tuple[int, ...] = (0,)
    # the steps at which those shares hold; linear in between
    log_every: int = 10
    eval_every: int = 500  # 0: only at the end
    eval_rows: int = 512  # validation rows, at most one pass over the validation split


@dataclasses.dataclass(frozen=True)
class BadStepsConfig:
    """Steps that are skipped: parameters and optimizer stay as they were."""

    sigma: float = 6.0  # a loss or gradient norm so many deviations above the mean is a spike;
    # 0: only a loss or gradient that is not finite is bad
    window: int = 128  # good steps that mean and deviation are over; judged from half of them on
    max_consecutive: int = 10  # bad steps in a row, after which
    action: str = "stop"  # stop | rewind: back to the last checkpoint before them
    rewind_skip_steps: int = 200  # batches after that checkpoint that are left out, at least
    max_rewinds: int = 3  # in one session, then it stops


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where figures go beside the terminal and metrics.jsonl, and what is filled on the way."""

    samples: tuple[str, ...] = ()  # texts with blanks that every validation fills, for the report
    sample_tokens: int = 32  # longest answer in them
    tensorboard: bool = False  # also write event files to <workdir>/tensorboard
    wandb: str = "off"  # off | offline | online
    wandb_project: str = "glm-jax"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as data x fsdp x context x model; one size may be -1: all that is left."""

    data: int = -1
    fsdp: int = 1
    context: int = 1  # devices that share a row: each has a part of its slots
    model: int = 1
    rules: str = "fsdp_model"  # a name from glm_jax.parallel.sharding.PRESETS
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    # logical axis of a parameter -> mesh axis, or "" for none; on top of the preset


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """How long processes wait, for themselves and for each other, and what they compare."""

    hang_seconds: float = 600.0  # a step or batch that takes longer: stacks, and exit code 42
    start_seconds: float = 3600.0  # the same of reading, restoring, compiling and saving
    silent_seconds: float = 60.0  # the same if a process gives no sign of life for so long
    compare_every: int = 500  # steps between comparisons of what devices hold copies of; 0: none


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 500  # steps between checkpoints; the last step is always saved
    keep_latest: int = 3
    keep_every: int = 0  # also keep the checkpoints of every so many steps; 0: none
    keep_best: int = 1  # also keep this many with the lowest loss, of those validated as saved
    retry_seconds: float = 300.0  # storage that is away is tried again for so long; full is full


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    init_from: str = ""  # folder of a released checkpoint to start from; empty: fresh parameters
    init: InitConfig = InitConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()
    stages: dict[str, StageConfig] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    bad_steps: BadStepsConfig = BadStepsConfig()
    logging: LoggingConfig = LoggingConfig()
    mesh: MeshConfig = MeshConfig()
    mesh_rules: tuple[str, ...] = ()  # "PATTERN: name=value ...": what replaces fields of mesh,
    # model.remat and training.accumulation_steps on devices that match; see glm_jax.mesh_rules
    hosts: HostsConfig = HostsConfig()
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
    check(config)
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


_FREE_SECTIONS = ("init", "optimizer", "training", "bad_steps", "logging", "mesh", "hosts")
_FREE_SECTIONS += ("checkpoint",)
_FREE_FIELDS = (
    "init_from",
    "mesh_rules",
    "model.remat",
    "model.remat_saved",
    "model.scan_layers",
    "model.attention_backend",
)
_FREE_FIELDS += ("data.dir", "data.tokenizer", "data.num_workers", "data.prefetch", "data.verify")


def run_identity(config: Config) -> dict[str, typing.Any]:
    """The fields that decide a run's rows and parameters, by dotted name.

    A run may be resumed with other values of everything else: a longer schedule, another mesh,
    data that moved to another folder. What it started from is in its checkpoints.
    """
    flat = _flatten(to_dict(config), "")
    return {
        name: value
        for name, value in flat.items()
        if name.split(".")[0] not in _FREE_SECTIONS
        and name not in _FREE_FIELDS
        and not (name.startswith("data.sources.") and name.endswith((".dir", ".max_epochs")))
        and not (name.startswith("stages.") and name.endswith(".accumulation_steps"))
    }


def with_vocab_size(config: Config, tokenizer_size: int) -> Config:
    """The config with the embedding rows resolved for a tokenizer.

    Raises:
      UserError: the configured vocabulary is smaller than the tokenizer.
    """
    model = config.model
    if 0 < model.vocab_size < tokenizer_size:
        raise UserError(
            f"config.model.vocab_size {model.vocab_size} is smaller than the tokenizer "
            f"({tokenizer_size})"
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
