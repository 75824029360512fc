"""What must be known of all documents before any shard is written; small, and added up."""

import dataclasses
from typing import NamedTuple

import numpy as np

from glm_jax.preparation.encoded import PLACES, Encoded


class Part(NamedTuple):
    """The documents of one language that fall into one split."""

    buckets: frozenset[int]  # that hold any
    ends: tuple[int, ...]  # the two first and the two last places that hold any, ascending

    def __or__(self, other: "Part") -> "Part":
        places = sorted({*self.ends, *other.ends})
        return Part(self.buckets | other.buckets, tuple(_outer(places)))


@dataclasses.dataclass(frozen=True)
class Census:
    """The documents of one language."""

    documents: int
    instructions: int  # of the documents, those with an answer
    train: Part
    validation: Part

    def __add__(self, other: "Census") -> "Census":
        return Census(
            self.documents + other.documents,
            self.instructions + other.instructions,
            self.train | other.train,
            self.validation | other.validation,
        )


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where splits and shards are cut, as long as no split of a source is empty.

    Validation are the first places, so that a smaller share is a part of a larger one.
    """

    validation_share: float
    num_buckets: int

    @property
    def boundary(self) -> int:
        """First place of the training split."""
        return round(self.validation_share * PLACES)

    def bucket(self, place: int) -> int:
        """Number of the bucket of a place."""
        return min(place // self._width, self.num_buckets - 1)

    def range(self, bucket: int) -> tuple[int, int]:
        """The places [start, end) of a bucket."""
        last = bucket == self.num_buckets - 1
        return bucket * self._width, PLACES if last else (bucket + 1) * self._width

    def census(self, documents: Encoded) -> Census:
        """Counts encoded documents of one language."""
        return Census(
            len(documents.table),
            int(documents.table["has_answer"].sum()),
            self._part(documents.between(self.boundary, PLACES)),
            self._part(documents.between(0, self.boundary)),
        )

    def filled_buckets(self, documents: Encoded) -> list[int]:
        """Numbers of the buckets that hold any of the documents."""
        numbers = documents.table["place"] // np.uint64(min(self._width, PLACES - 1))
        return np.unique(np.minimum(numbers, np.uint64(self.num_buckets - 1))).tolist()

    def _part(self, documents: Encoded) -> Part:
        places = np.unique(documents.table["place"]).tolist()
        return Part(frozenset(self.filled_buckets(documents)), tuple(_outer(places)))

    @property
    def _width(self) -> int:
        return PLACES // self.num_buckets


def _outer(places: list[int]) -> list[int]:
    return places if len(places) <= 4 else places[:2] + places[-2:]
