"""One shard of a dataset from its pieces: the same bytes wherever it is written."""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence

from etils import epath

from glm_jax.data.shards import VERSION, write_shard
from glm_jax.preparation.encoded import Encoded, shuffled
from glm_jax.preparation.planning import Shard


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes shards into a dataset folder, here or in a bucket, and notes which are finished."""

    dataset: epath.Path
    reports: epath.Path  # a folder on the same file system
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
        if report.exists():
            return json.loads(report.read_text())
        documents, copies = shuffled(pieces, self.dedup)
        folder = self.dataset / shard.source / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        with self._scratch() as scratch:
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
            self._move(scratch / shard.name, folder / shard.name)
            self._move(scratch / report.name, report)
        return counts

    def _scratch(self) -> "_Folder":
        return _Folder(None if self._is_remote() else self.reports)

    def _move(self, path: pathlib.Path, target: epath.Path) -> None:
        """Makes a whole file appear: objects of a bucket do, files do by a rename."""
        if self._is_remote():
            epath.Path(path).copy(target, overwrite=True)
            return
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(target)

    def _is_remote(self) -> bool:
        return "://" in os.fspath(self.dataset)


class _Folder(tempfile.TemporaryDirectory):
    """A temporary folder, hidden in another one, as a path."""

    def __init__(self, parent: epath.Path | None):
        super().__init__(prefix=".", dir=parent)

    def __enter__(self) -> pathlib.Path:
        return pathlib.Path(super().__enter__())
