"""Whether all hosts of a run are about to run the same program on the same data.

JAX does not notice if they are not: hosts whose programs differ compute something, each its own.
"""

import dataclasses
import json

from glm_jax.config import Config, SourceConfig, to_dict
from glm_jax.data.dataset import Dataset
from glm_jax.parallel.hosts import Hosts
from glm_jax.tokenizer import Tokenizer
from glm_jax.versions import code_digest, versions


def check_same_program(
    hosts: Hosts, config: Config, dataset: Dataset, tokenizer: Tokenizer, max_steps: int | None
) -> None:
    """Compares code, packages, config, tokenizer and data of all hosts, before any compilation.

    Raises:
      UserError: they differ, naming in what and who has what.
    """
    hosts.check_equal(
        {
            "code of glm_jax": code_digest(),
            **{f"version of {name}": version for name, version in versions().items()},
            **_flat(to_dict(_without_places(config)), "config"),
            "tokenizer": tokenizer.fingerprint,
            **{f"data of {name}": json.dumps(mark) for name, mark in dataset.fingerprint.items()},
            "--max_steps": str(max_steps),
        }
    )


def _without_places(config: Config) -> Config:
    """The config without where a host keeps its copy of the data, and how it reads it."""
    sources = {
        name: dataclasses.replace(source, dir=SourceConfig().dir)
        for name, source in config.data.sources.items()
    }
    data = dataclasses.replace(
        config.data, dir="", tokenizer="", sources=sources, num_workers=0, prefetch=1
    )
    return dataclasses.replace(config, data=data)


def _flat(value, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        return {name: json.dumps(value)}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}").items()}
