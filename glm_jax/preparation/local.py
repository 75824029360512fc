"""The dataset of one machine: chunks encoded by processes, then shards gathered by processes."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import console, progress

from glm_jax.documents import Chunk, chunks
from glm_jax.errors import UserError
from glm_jax.folders import sync
from glm_jax.preparation.census import Grid
from glm_jax.preparation.encoded import load, save
from glm_jax.preparation.encoding import Encoder
from glm_jax.preparation.planning import Shard, plan_shards, text_bytes
from glm_jax.preparation.reading import CHUNK_BYTES, READING_FILE, Reading
from glm_jax.preparation.shard_writer import ShardWriter
from glm_jax.preparation.work import Work, finished, write_text
from glm_jax.preparation.workers import map_unordered

_WORTH_PROCESSES = 64 << 20  # bytes of text


def make_shards(
    inputs: Sequence[str], encoder: Encoder, num_processes: int, grid: Grid, work: Work
) -> tuple[Reading, list[tuple[Shard, dict]]]:
    """Writes what is not yet written of the shards of a dataset.

    Returns:
      What was read, and every shard with its counts (`ShardWriter.write`).

    Raises:
      UserError: a faulty input; see also `plan_shards`.
    """
    options = encoder.options
    with _progress() as bar:
        encode = _EncodeChunk(encoder, grid, work.chunks)
        unfinished = encode.unfinished(_numbered_chunks(inputs))
        encoded = map_unordered(encode, unfinished, num_processes)
        for _ in bar.track(encoded, description="chunks encoded"):
            pass
        reading = _whole_reading(work.chunks)
        if options.on_error == "fail" and reading.counts.first_fault:
            raise UserError(reading.counts.first_fault)  # left out by an earlier process
        shards = plan_shards(reading.censuses, options.source, grid)
        writer = ShardWriter(work.dataset, work.shards, options.dedup, encoder.tokenizer.vocab_size)
        gather = _GatherShard(writer, work.chunks)
        reports = map_unordered(gather, shards, min(num_processes, len(shards)))
        by_name = dict(bar.track(reports, len(shards), description="shards written"))
    return reading, [(shard, by_name[shard.name]) for shard in shards]


def with_threads_or_processes(
    encoder: Encoder, input_bytes: Mapping[str, int], num_processes: int | None
) -> tuple[Encoder, int]:
    """The encoder and the number of processes of a machine; see `prepare.prepare`.

    Little text is encoded by threads of this process: workers take a second to start.
    """
    cores = len(os.sched_getaffinity(0))
    if num_processes is None and text_bytes(input_bytes) < _WORTH_PROCESSES:
        return dataclasses.replace(encoder, num_threads=cores), 1
    return encoder, num_processes or cores


def _numbered_chunks(inputs: Sequence[str]) -> Iterator[tuple[int, Chunk]]:
    return enumerate(itertools.chain.from_iterable(chunks(path, CHUNK_BYTES) for path in inputs))


@dataclasses.dataclass(frozen=True)
class _EncodeChunk:
    """Encodes a numbered chunk into a folder."""

    encoder: Encoder
    grid: Grid
    chunks: pathlib.Path

    def unfinished(self, items: Iterable[tuple[int, Chunk]]) -> Iterator[tuple[int, Chunk]]:
        return (item for item in items if not self._is_finished(item[0]))

    def __call__(self, item: tuple[int, Chunk]) -> None:
        number, chunk = item
        encoded = self.encoder(chunk)
        folder = self._folder(number)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        partial.mkdir()
        for language, documents in encoded.by_language.items():
            save(partial, language, documents)
        reading = Reading.of(encoded, self.grid)
        write_text(partial / READING_FILE, json.dumps(reading.to_json()))
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(partial)  # a worker that outlived its killed parent was faster
        sync(self.chunks)

    def _is_finished(self, number: int) -> bool:
        """Whether a chunk is there; one that a crash of the machine left damaged is removed."""
        folder = self._folder(number)
        if not folder.exists():
            return False
        if not _is_whole(folder):
            shutil.rmtree(folder)
            return False
        return True

    def _folder(self, number: int) -> pathlib.Path:
        return self.chunks / f"{number:07d}"


@dataclasses.dataclass(frozen=True)
class _GatherShard:
    """Writes a shard from all chunks."""

    writer: ShardWriter
    chunks: pathlib.Path

    def __call__(self, shard: Shard) -> tuple[str, dict]:
        found = (load(folder, shard.language) for folder in finished(self.chunks))
        pieces = [documents.between(shard.start, shard.end) for documents in found if documents]
        return shard.name, self.writer.write(shard, pieces)


def _whole_reading(folders: pathlib.Path) -> Reading:
    return sum(map(_reading, finished(folders)), Reading.nothing())


def _reading(folder: pathlib.Path) -> Reading:
    return Reading.from_json(json.loads((folder / READING_FILE).read_text()))


def _is_whole(folder: pathlib.Path) -> bool:
    """Whether a chunk has the documents that it says, and their tokens."""
    try:
        for language, census in _reading(folder).censuses.items():
            documents = load(folder, language)
            if documents is None or len(documents.table) != census.documents:
                return False
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return False
    return True


def _progress() -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console.Console(stderr=True),
    )
