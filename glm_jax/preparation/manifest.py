"""What a dataset says about itself: the plan before it is made, the manifest when it is whole."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

from etils import epath

from glm_jax.data.shards import SPLITS, TOKENIZER_DIR, VERSION, split_metadata, write_metadata
from glm_jax.data.sources import digest
from glm_jax.folders import sync_all
from glm_jax.preparation.encoding import Encoder
from glm_jax.preparation.planning import Shard, choose_num_shards
from glm_jax.preparation.reading import CHUNK_BYTES, Reading
from glm_jax.preparation.work import MANIFEST_FILE, write_text
from glm_jax.tokenizer import Tokenizer

_TEXTS = ("characters", "bytes", "copies")


def make_plan(input_bytes: Mapping[str, int], encoder: Encoder) -> dict:
    """What decides the bytes of a dataset, as JSON; the times at which inputs were changed, too.

    Not `on_error`: what was finished while faults stop the program had none.
    """
    options = encoder.options
    decisive = dataclasses.asdict(options)
    del decisive["on_error"]
    return {
        "version": VERSION,
        "inputs": dict(input_bytes),
        "inputs_changed": {path: _changed(path) for path in input_bytes},
        "options": decisive,
        "num_shards": options.num_shards or choose_num_shards(input_bytes),
        "chunk_bytes": CHUNK_BYTES,
        "tokenizer": encoder.tokenizer.fingerprint,
        "evaluation_texts": encoder.decontaminator and encoder.decontaminator.fingerprint,
    }


def _changed(path: str) -> int:
    """When an input, or the youngest file of a TFDS folder, was changed: it may keep its size."""
    file = epath.Path(path)
    if not file.exists():
        file = epath.Path(path.rpartition("#")[0])  # FOLDER#SPLIT
    files = file.iterdir() if file.is_dir() else [file]
    return max(_nanoseconds(file) for file in files)


def _nanoseconds(file: epath.Path) -> int:
    """Buckets know seconds."""
    if "://" in str(file):
        return int(file.stat().mtime * 10**9)
    return os.stat(file).st_mtime_ns


def complete_dataset(
    folder: pathlib.Path,
    reading: Reading,
    shards: Sequence[tuple[Shard, dict]],
    plan: dict,
    encoder: Encoder,
) -> dict:
    """Writes all of a dataset but its shards; returns its manifest, which is written last."""
    tokenizer = encoder.tokenizer
    sources = {}
    for name in sorted({shard.source for shard, _ in shards}):
        metadata = _source_metadata(
            name, [(shard, counts) for shard, counts in shards if shard.source == name], tokenizer
        )
        write_metadata(folder, name, metadata)
        sources[name] = metadata | {
            "splits": {split: _brief(values) for split, values in metadata["splits"].items()}
        }
    _copy_tokenizer(tokenizer, folder / TOKENIZER_DIR)
    manifest = {
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "sources": sources,
        "inputs": [{"path": path, "bytes": size} for path, size in plan["inputs"].items()],
        "read": dataclasses.asdict(reading.counts) | {"contaminated": reading.contaminated},
        "evaluation_texts": encoder.decontaminator
        and dataclasses.asdict(encoder.decontaminator.counts),
        "options": dataclasses.asdict(encoder.options),
        "num_shards": plan["num_shards"],
    }
    sync_all(folder)  # the manifest says that all the rest is there
    path = folder / MANIFEST_FILE
    write_text(path, json.dumps(manifest, indent=2) + "\n")
    return json.loads(path.read_text())


def _source_metadata(name: str, shards: Sequence[tuple[Shard, dict]], tokenizer: Tokenizer) -> dict:
    first, _ = shards[0]
    written = {
        split: [counts for shard, counts in shards if shard.split == split] for split in SPLITS
    }
    return {
        "source": name,
        "language": first.language,
        "instructions": first.instructions,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos": tokenizer.special.eos,
        "splits": {
            split: split_metadata(
                name, split, [counts["shard"] for counts in written[split]], **_sums(written[split])
            )
            for split in SPLITS
        },
    }


def _sums(written: Sequence[dict]) -> dict:
    return {name: sum(counts["texts"][name] for counts in written) for name in _TEXTS}


def _brief(split: dict) -> dict:
    """The metadata of a split with a digest of its shards in the place of their list."""
    shards = split["shards"]
    return split | {"shards": len(shards), "digest": digest(shards)}


def _copy_tokenizer(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    directory.mkdir(exist_ok=True)
    for name in tokenizer.files:
        shutil.copyfile(tokenizer.dir / name, directory / name)
