"""What was met in reading the inputs, added up over chunks."""

import dataclasses

from glm_jax.documents import Counts
from glm_jax.preparation.census import Census, Grid, Part
from glm_jax.preparation.encoding import EncodedChunk

CHUNK_BYTES = 16 << 20
"""Text that a worker encodes at a time."""


READING_FILE = "reading.json"
"""Of a chunk, or of all; what `Reading.to_json` gives."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Of all that was read, or of a part."""

    counts: Counts
    contaminated: int  # documents left out for what they share with evaluation files
    censuses: dict[str, Census]  # by language

    @staticmethod
    def nothing() -> "Reading":
        """What to add others to."""
        return Reading(Counts(), 0, {})

    @staticmethod
    def of(chunk: EncodedChunk, grid: Grid) -> "Reading":
        """The reading of a chunk."""
        censuses = {
            language: grid.census(documents) for language, documents in chunk.by_language.items()
        }
        return Reading(chunk.counts, chunk.contaminated, censuses)

    def __add__(self, later: "Reading") -> "Reading":
        censuses = dict(self.censuses)
        for language, census in later.censuses.items():
            censuses[language] = censuses[language] + census if language in censuses else census
        contaminated = self.contaminated + later.contaminated
        return Reading(self.counts + later.counts, contaminated, censuses)

    def to_json(self) -> dict:
        """JSON values that `from_json` reads."""
        return {
            "counts": dataclasses.asdict(self.counts),
            "contaminated": self.contaminated,
            "censuses": {
                language: {
                    "documents": census.documents,
                    "instructions": census.instructions,
                    "train": _part_to_json(census.train),
                    "validation": _part_to_json(census.validation),
                }
                for language, census in self.censuses.items()
            },
        }

    @staticmethod
    def from_json(values: dict) -> "Reading":
        """What `to_json` gave."""
        censuses = {
            language: Census(
                census["documents"],
                census["instructions"],
                _part_from_json(census["train"]),
                _part_from_json(census["validation"]),
            )
            for language, census in values["censuses"].items()
        }
        return Reading(Counts(**values["counts"]), values["contaminated"], censuses)


def _part_to_json(part: Part) -> dict:
    return {"buckets": sorted(part.buckets), "ends": part.ends}


def _part_from_json(values: dict) -> Part:
    return Part(frozenset(values["buckets"]), tuple(values["ends"]))
