"""The rows of a config: both splits of all its sources."""

import dataclasses
import functools
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from glm_jax.batch import Batch, HostShare
from glm_jax.config import Config, SourceConfig
from glm_jax.data.pipeline import BatchPlan, batches
from glm_jax.data.rows import Rows
from glm_jax.data.shards import SPLITS, TOKENIZER_DIR
from glm_jax.data.sources import open_sources, sources_in
from glm_jax.errors import UserError
from glm_jax.objective.spans import sentence_ends
from glm_jax.stages import check_stages
from glm_jax.tokenizer import Tokenizer


class Dataset(NamedTuple):
    """Rows by split, and what is known of the sources, in sorted order of their names."""

    train: Rows
    validation: Rows
    languages: dict[str, str]  # by source
    fingerprint: dict[str, list]  # JSON; equal for equal streams


def load_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that the config names, by default the one the data was prepared with."""
    if not config.data.dir and not config.data.tokenizer:
        raise UserError("config.data.dir is empty; python -m glm_jax.prepare writes such a folder")
    return Tokenizer.load(config.data.tokenizer or Path(config.data.dir) / TOKENIZER_DIR)


def with_sources(config: Config) -> Config:
    """The config with its sources named: all that `data.dir` holds, unless it names some.

    Raises:
      UserError: it names none and the folder holds none, or a stage weighs others.
    """
    if config.data.sources:
        return config
    names = sources_in(config.data.dir)
    if not names:
        raise UserError(f"config.data.dir {config.data.dir} holds no source")
    data = dataclasses.replace(config.data, sources={name: SourceConfig() for name in names})
    config = dataclasses.replace(config, data=data)
    check_stages(config)
    return config


def open_dataset(config: Config, tokenizer: Tokenizer) -> Dataset:
    """Opens and checks both splits of every source.

    Raises:
      UserError: see `open_sources` and `Rows`.
    """
    is_sentence_end = sentence_ends(tokenizer.pieces)
    streams = {split: open_sources(config.data, tokenizer, split) for split in SPLITS}
    rows = {
        split: Rows(config, streams[split], tokenizer.special, is_sentence_end, split)
        for split in SPLITS
    }
    return Dataset(
        rows["train"],
        rows["validation"],
        languages={name: stream.language for name, stream in streams["train"].items()},
        fingerprint={
            f"{name}/{split}": [
                stream.length,
                stream.documents,
                stream.fingerprint,
                stream.digest,
            ]
            for split in SPLITS
            for name, stream in streams[split].items()
        },
    )


def host_batches(
    rows: Rows, plan: BatchPlan, config: Config, share: HostShare
) -> Generator[Batch, None, None]:
    """This host's share of the batches of a plan; see `pipeline.batches`."""
    return batches(
        rows,
        plan,
        share,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
    )


def equal_batches(rows: Rows, config: Config, share: HostShare) -> Generator[Batch, None, None]:
    """This host's share of batches of `training.batch_size` rows from row 0 on."""
    return host_batches(rows, functools.partial(_batch, config.training.batch_size), config, share)


def _batch(size: int, number: int) -> range:
    return range(number * size, (number + 1) * size)
