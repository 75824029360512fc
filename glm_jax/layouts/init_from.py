"""Starting from a released checkpoint: is it this model, and its values as sharded arrays."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from glm_jax.config import Config, ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters
from glm_jax.layouts.folder import Checkpoint, is_checkpoint, open_checkpoint
from glm_jax.layouts.resize import Resized
from glm_jax.layouts.sources import Index, ParamSource

# What a checkpoint does not decide: numerics, dropout, the spread of fresh rows.
_FREE = {
    "dtype",
    "param_dtype",
    "remat",
    "remat_saved",
    "scan_layers",
    "attention_backend",
    "vocab_multiple",
}
_FREE |= {"embedding_dropout", "output_dropout", "init_std"}
# Written as 0 where it follows from other fields; compared resolved.
_RESOLVED = {"num_kv_heads": "kv_heads", "deepnorm_alpha": "residual_scale"}


def open_init(config: Config) -> tuple[Checkpoint, ParamSource, list[str]]:
    """The checkpoint `config.init_from`, as the parameters of `config.model`.

    Returns:
      The checkpoint, its parameters with the rows that the config asks for, and what is worth
      knowing about both, in lines.

    Raises:
      UserError: no checkpoint, or one of another model; the message has every field that differs.
    """
    if not is_checkpoint(Path(config.init_from)):
        raise UserError(f"config.init_from {config.init_from} is no released checkpoint")
    checkpoint = open_checkpoint(
        config.init_from, config.init.layout, compare_checksums=jax.process_index() == 0
    )
    said = _check_same_model(config, checkpoint)
    source, lines = _resized(config, checkpoint)
    return checkpoint, source, [*checkpoint.describe(), *said, *lines]


def load_sharded(source: ParamSource, shardings: dict, dtype: str) -> dict:
    """Nested dict of arrays laid out by `shardings`; every host reads its own slices only.

    Raises:
      UserError: a value is not finite, in the files or in `dtype`.
    """
    shapes = parameters.shapes(source.config)
    arrays = {
        name: _load(source, name, shapes[name], sharding, np.dtype(dtype))
        for name, sharding in parameters.flatten(shardings).items()
    }
    return parameters.unflatten(arrays)


def _load(source: ParamSource, name: str, shape: tuple[int, ...], sharding, dtype) -> jax.Array:
    parts: dict[tuple, np.ndarray] = {}

    def part(index: Index) -> np.ndarray:
        """Once for each part, however many devices hold it."""
        ranges = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
        if ranges not in parts:
            out = np.empty([stop - start for start, stop in ranges], dtype)
            source.read(name, index, out)
            parts[ranges] = out
        return parts[ranges]

    return jax.make_array_from_callback(shape, sharding, part, dtype=dtype)


def _check_same_model(config: Config, checkpoint: Checkpoint) -> list[str]:
    """What the weights do not show and the config has otherwise, in lines."""
    ours, theirs = _comparable(config.model), _comparable(checkpoint.config)
    if ours["position"] != "learned_2d":
        del ours["max_positions"], theirs["max_positions"]  # a limit, no table
    differing = {name for name in ours if ours[name] != theirs[name]}
    chosen = differing & (checkpoint.layout.serves.keys() | _tolerated(checkpoint, config.model))
    wrong = sorted(differing - chosen - {"vocab_size", "max_positions"})
    if wrong:
        fields = "; ".join(f"model.{f} is {theirs[f]!r} there, {ours[f]!r} here" for f in wrong)
        raise UserError(f"config.init_from {checkpoint.path} is another model: {fields}")
    return [f"  model.{f} is {ours[f]!r} here, {theirs[f]!r} there" for f in sorted(chosen)]


def _tolerated(checkpoint: Checkpoint, model: ModelConfig) -> set[str]:
    """Fields of which the layout holds several values without saying which."""
    several = {field for field, values in checkpoint.layout.requires.items() if len(values) > 1}
    return {f for f in several if getattr(model, f) in checkpoint.layout.requires[f]}


def _comparable(model: ModelConfig) -> dict:
    fields = {k: v for k, v in dataclasses.asdict(model).items() if k not in _FREE}
    fields |= {name: getattr(model, resolved) for name, resolved in _RESOLVED.items()}
    if model.residual != "deepnorm":
        del fields["deepnorm_alpha"]
    else:
        fields["deepnorm_alpha"] = round(fields["deepnorm_alpha"], 6)
    return fields


def _resized(config: Config, checkpoint: Checkpoint) -> tuple[ParamSource, list[str]]:
    old, new, path = checkpoint.config, config.model, checkpoint.path
    if old.vocab_size != new.vocab_size and not config.init.resize_vocab:
        raise UserError(
            f"config.model.vocab_size is {new.vocab_size}, {path} has {old.vocab_size} rows; "
            "config.init.resize_vocab=True adds or drops the last ones"
        )
    longer = new.position == "learned_2d" and old.max_positions != new.max_positions
    if longer and not config.init.extend_positions:
        raise UserError(
            f"config.model.max_positions is {new.max_positions}, {path} has {old.max_positions}; "
            "config.init.extend_positions=True adds rows to the tables"
        )
    max_positions = new.max_positions if longer else 0
    resized = Resized(
        checkpoint.source,
        vocab_size=new.vocab_size,
        max_positions=max_positions,
        copy_rows=config.init.copy_rows,
    )
    return resized, [f"  {line}" for line in resized.describe()]
