"""One shard of a dataset from its pieces: the same bytes wherever it is written."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Sequence

from glm_jax.data.shards import VERSION, write_shard
from glm_jax.folders import sync
from glm_jax.preparation.encoded import Encoded, shuffled
from glm_jax.preparation.planning import Shard


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes shards into a dataset folder and notes which are finished."""

    dataset: pathlib.Path
    reports: pathlib.Path  # a folder on the same file system
    dedup: bool
    vocab_size: int

    def write(self, shard: Shard, pieces: Sequence[Encoded]) -> dict:
        """Writes a shard unless it is finished; returns its counts.

        Args:
          pieces: of any chunks in any order, together the documents of the shard.

        Returns:
          shard: what `data.shards.write_shard` returns; texts: characters and UTF-8 bytes of the
          documents, and the `copies` among them that were met, left out or not.
        """
        report = self.reports / f"{shard.name}.json"
        folder = self.dataset / shard.source / VERSION
        if (counts := _finished_counts(report, folder / shard.name)) is not None:
            return counts
        documents, copies = shuffled(pieces, self.dedup)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=self.reports) as name:
            scratch = pathlib.Path(name)
            counts = {
                "shard": write_shard(
                    scratch / shard.name,
                    documents.tokens,
                    documents.table["tokens"],
                    self.vocab_size,
                ),
                "texts": {
                    "characters": int(documents.table["characters"].sum()),
                    "bytes": int(documents.table["bytes"].sum()),
                    "copies": copies,
                },
            }
            (scratch / report.name).write_text(json.dumps(counts))
            _move(scratch / shard.name, folder / shard.name)
            _move(scratch / report.name, report)
        return counts


def _finished_counts(report: pathlib.Path, path: pathlib.Path) -> dict | None:
    """What a report says of a shard; None if a crash of the machine took a part of either."""
    try:
        counts = json.loads(report.read_text())
        return counts if path.stat().st_size == counts["shard"]["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _move(path: pathlib.Path, target: pathlib.Path) -> None:
    """Makes a file appear whole, also if the machine stops."""
    sync(path)
    path.rename(target)
    sync(target.parent)
