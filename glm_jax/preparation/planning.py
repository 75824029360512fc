"""Names of the sources, splits and ranges of the shards: decided when all documents are counted."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from glm_jax.data.shards import TOKENIZER_DIR, shard_name
from glm_jax.errors import UserError
from glm_jax.preparation.census import Census, Grid, Part
from glm_jax.preparation.encoded import PLACES

_SOURCE_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
_SHARD_BYTES = 256 << 20  # of text, about; sorting one takes three times as much memory
_COMPRESSION = 4  # bytes of text in one of a compressed file, about
_COMPRESSED = (".gz", ".zst", ".parquet")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: the documents of a language whose places are in [start, end)."""

    source: str
    language: str
    instructions: bool
    split: str
    index: int
    count: int  # of shards in the split
    bucket: int
    start: int
    end: int

    @property
    def name(self) -> str:
        """Of the file."""
        return shard_name(self.source, self.split, self.index, self.count)


def text_bytes(input_bytes: Mapping[str, int]) -> int:
    """Bytes of text in inputs of these sizes on disk, about."""
    return sum(
        size * (_COMPRESSION if path.endswith(_COMPRESSED) else 1)
        for path, size in input_bytes.items()
    )


def choose_num_shards(input_bytes: Mapping[str, int]) -> int:
    """Shards of a source for inputs of these sizes on disk: each is put in order in memory."""
    return max(1, round(text_bytes(input_bytes) / _SHARD_BYTES))


def plan_shards(censuses: Mapping[str, Census], source: str, grid: Grid) -> list[Shard]:
    """The shards of all sources.

    Args:
      censuses: by language.
      source: the option of that name.

    Raises:
      UserError: no document, a source of one, or of plain text and instructions.
    """
    if not censuses:
        raise UserError("no document in the inputs")
    shards = []
    for language, name in source_names(sorted(censuses), source).items():
        census = censuses[language]
        _check_source(name, census)
        boundary, train, validation = _with_both_splits(census, grid)
        for split, part, start, end in (
            ("train", train, boundary, PLACES),
            ("validation", validation, 0, boundary),
        ):
            for index, bucket in enumerate(sorted(part.buckets)):
                first, last = grid.range(bucket)
                shards.append(
                    Shard(
                        source=name,
                        language=language,
                        instructions=census.instructions > 0,
                        split=split,
                        index=index,
                        count=len(part.buckets),
                        bucket=bucket,
                        start=max(start, first),
                        end=min(end, last),
                    )
                )
    return shards


def check_source_name(source: str) -> None:
    """Refuses what is no name of a TFDS dataset, or taken.

    Raises:
      UserError: naming it.
    """
    if source and (not _SOURCE_NAME.fullmatch(source) or source == TOKENIZER_DIR):
        raise UserError(
            "--source must be letters, digits and _ after a letter, and not "
            f"{TOKENIZER_DIR!r}, got {source!r}"
        )


def source_names(languages: Sequence[str], source: str) -> dict[str, str]:
    """By language the name of its source: the language, or `source`, ending in it if need be."""
    if not source:
        return {language: language for language in languages}
    if len(languages) == 1:
        return {languages[0]: source}
    return {language: f"{source}_{language}" for language in languages}


def _check_source(name: str, census: Census) -> None:
    if len({*census.train.ends, *census.validation.ends}) < 2:
        copies = f" in {census.documents} copies" if census.documents > 1 else ""
        raise UserError(
            f"source {name} has 1 document{copies}; train and validation need one each "
            "(--language puts all documents into one source)"
        )
    if 0 < census.instructions < census.documents:
        raise UserError(
            f"source {name} would mix {census.instructions} instructions with "
            f"{census.documents - census.instructions} documents of plain text; prepare them one "
            "by one, each with a --source and an --out of its own"
        )


def _with_both_splits(census: Census, grid: Grid) -> tuple[int, Part, Part]:
    """First place of the training split, and the splits, of which none is empty.

    Where one would be, the document at the boundary moves into it.
    """
    train, validation = census.train, census.validation
    if not validation.ends:
        moved, following = train.ends[:2]
        return moved + 1, _without(train, moved, following, grid), _only(moved, grid)
    if not train.ends:
        preceding, moved = validation.ends[-2:]
        return moved, _only(moved, grid), _without(validation, moved, preceding, grid)
    return grid.boundary, train, validation


def _only(place: int, grid: Grid) -> Part:
    return Part(frozenset({grid.bucket(place)}), (place,))


def _without(part: Part, place: int, neighbour: int, grid: Grid) -> Part:
    """The part without the first or last place, whose neighbour says whether its bucket stays."""
    emptied = {grid.bucket(place)} - {grid.bucket(neighbour)}
    return Part(part.buckets - emptied, tuple(end for end in part.ends if end != place))
