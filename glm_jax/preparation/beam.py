"""The dataset of a cluster: the same chunks, documents and shards in an Apache Beam pipeline."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from glm_jax.documents import chunks
from glm_jax.errors import UserError
from glm_jax.preparation.census import Grid
from glm_jax.preparation.encoded import Encoded
from glm_jax.preparation.encoding import EncodedChunk, Encoder
from glm_jax.preparation.planning import Shard, plan_shards
from glm_jax.preparation.reading import CHUNK_BYTES, READING_FILE, Reading
from glm_jax.preparation.shard_writer import ShardWriter
from glm_jax.preparation.work import Work, write_text


def make_shards(
    inputs: Sequence[str], encoder: Encoder, grid: Grid, work: Work, pipeline_options: str
) -> tuple[Reading, list[tuple[Shard, dict]]]:
    """Writes the shards of a dataset; see `local.make_shards`.

    Inputs and the work folder must have the same paths on every machine.

    Raises:
      UserError: apache_beam is not installed, or the pipeline failed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--beam_pipeline_options needs apache-beam ({error})") from error
    options = PipelineOptions([f"--{option}" for option in pipeline_options.split(",")])
    writer = ShardWriter(
        work.dataset, work.shards, encoder.options.dedup, encoder.tokenizer.vocab_size
    )
    gather = _GatherBucket(writer, grid, encoder.options.source)
    with _one_line_errors(), apache_beam.Pipeline(options=options) as pipeline:
        encoded = (
            pipeline
            | "inputs" >> apache_beam.Create(inputs)
            | "chunks" >> apache_beam.FlatMap(chunks, max_bytes=CHUNK_BYTES)
            | apache_beam.Reshuffle()
            | "encode" >> apache_beam.Map(encoder)
        )
        reading = (
            encoded
            | "count" >> apache_beam.Map(Reading.of, grid=grid)
            | "add up" >> apache_beam.CombineGlobally(_add_up)
        )
        reading | "note" >> apache_beam.Map(_note, work.folder)
        (
            encoded
            | "cut" >> apache_beam.FlatMap(_cut, grid=grid)
            | apache_beam.GroupByKey()
            | "write" >> apache_beam.Map(gather, reading=apache_beam.pvalue.AsSingleton(reading))
        )
    whole = Reading.from_json(json.loads((work.folder / READING_FILE).read_text()))
    shards = plan_shards(whole.censuses, encoder.options.source, grid)
    return whole, [(shard, writer.write(shard, [])) for shard in shards]


def _cut(chunk: EncodedChunk, grid: Grid) -> Iterator[tuple[tuple[str, int], Encoded]]:
    """The documents of a chunk by language and bucket."""
    for language, documents in chunk.by_language.items():
        for bucket in grid.filled_buckets(documents):
            yield (language, bucket), documents.between(*grid.range(bucket))


@dataclasses.dataclass(frozen=True)
class _GatherBucket:
    """Writes the shards that lie in a bucket: one, or where the splits meet both."""

    writer: ShardWriter
    grid: Grid
    source: str

    def __call__(self, bucket: tuple[tuple[str, int], Iterable[Encoded]], reading: Reading) -> None:
        place, pieces = bucket
        pieces = list(pieces)
        for shard in plan_shards(reading.censuses, self.source, self.grid):
            if (shard.language, shard.bucket) == place:
                self.writer.write(shard, [p.between(shard.start, shard.end) for p in pieces])


def _add_up(readings: Iterable[Reading]) -> Reading:
    return sum(readings, Reading.nothing())


def _note(reading: Reading, folder: pathlib.Path) -> None:
    write_text(folder / READING_FILE, json.dumps(reading.to_json()))


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Runners wrap what a worker raised; of a user error the message is enough."""
    try:
        yield
    except Exception as error:
        message = str(error)
        if "UserError" not in f"{type(error).__name__} {message}":
            raise
        raise UserError(message.strip().splitlines()[-1].split("UserError: ")[-1]) from error
