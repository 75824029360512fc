"""What an almanac is made of."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Relation:
    """Facts of one kind and the wordings that state them.

    A question has one answer. A wording is a clause with the fields {question} and {answer}; it
    holds all of the question, so that a blank in the place of the answer has one right filling. It
    never starts with the answer: a blank there could hold the end of the sentence before as well.
    """

    name: str
    facts: tuple[tuple[str, str], ...]  # (question, answer)
    wordings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Book:
    """The almanac in one language: relation k, fact i mean the same in every book."""

    language: str
    relations: tuple[Relation, ...]
    openings: tuple[str, ...]  # what may stand before a clause; the first is ""
    connections: tuple[str, ...]  # whole sentences that may stand between two statements
    full_stop: str
    space: str  # between two sentences
