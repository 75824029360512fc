"""Turns the books into a corpus and into questions about wordings the corpus never used."""

import dataclasses
import itertools
import random
from collections.abc import Iterator

from glm_jax.almanac import chinese, english
from glm_jax.almanac.book import Book, Relation

BOOKS = (english.BOOK, chinese.BOOK)
BLANK = "[MASK]"
MAX_FACTS = max(len(relation.facts) for book in BOOKS for relation in book.relations)
MAX_WORDINGS = min(len(relation.wordings) for book in BOOKS for relation in book.relations)

_CONNECTION_SHARE = 0.25  # of the gaps between two statements
_PROSE_SHARE = 0.1  # of the passages are connecting prose alone


@dataclasses.dataclass(frozen=True)
class AlmanacConfig:
    """The size of the almanac. The same config gives the same bytes."""

    facts: int = 8  # of each relation, at most
    wordings: int = 8  # of each relation
    held_out_wordings: int = 2  # of those, per fact: never in the corpus with that fact
    copies: int = 8  # times that each statement is printed
    max_statements: int = 1  # of a passage; a passage has 1 to this many


@dataclasses.dataclass(frozen=True)
class Statement:
    """One fact in one wording behind one opening."""

    template: str  # {answer} stands in the place of the answer
    answer: str

    @property
    def text(self) -> str:
        return self.template.format(answer=self.answer)

    @property
    def prompt(self) -> str:
        return self.template.format(answer=BLANK)


def corpus(book: Book, config: AlmanacConfig) -> Iterator[dict[str, str]]:
    """Yields the passages of a book, records with the fields `text` and `language`."""
    rng = random.Random(book.language)
    texts = [
        statement.text
        for relation in book.relations
        for fact, wording in pairs(relation, config, held_out=False)
        for statement in statements(book, relation, fact, wording)
    ]
    for _ in range(config.copies):
        rng.shuffle(texts)
        remaining = iter(texts)
        while chunk := list(itertools.islice(remaining, rng.randint(1, config.max_statements))):
            yield {"text": _passage(book, chunk, rng), "language": book.language}
            if rng.random() < _PROSE_SHARE:
                prose = book.space.join(rng.sample(book.connections, 3))
                yield {"text": prose, "language": book.language}


def held_out(book: Book, config: AlmanacConfig) -> Iterator[dict[str, str]]:
    """Yields the questions, records with the fields `text`, `answer` and `language`.

    `text` has one [MASK] in the place of `answer`. In English the blank stands for the answer and
    the space before it, so a filling is compared after stripping white space.
    """
    for relation in book.relations:
        for number, (fact, wording) in enumerate(pairs(relation, config, held_out=True)):
            behind_openings = statements(book, relation, fact, wording)
            statement = behind_openings[number % len(behind_openings)]
            yield {
                "text": statement.prompt,
                "answer": statement.answer,
                "language": book.language,
            }


def pairs(relation: Relation, config: AlmanacConfig, held_out: bool) -> list[tuple[int, int]]:
    """Returns the (fact, wording) numbers that are held out, or those that the corpus states.

    The held-out wordings rotate with the fact, so that every wording is learned from other facts.
    """
    step = config.wordings // config.held_out_wordings
    chosen = []
    for fact in range(min(config.facts, len(relation.facts))):
        away = {(fact + k * step) % config.wordings for k in range(config.held_out_wordings)}
        chosen += [(fact, w) for w in range(config.wordings) if (w in away) == held_out]
    return chosen


def statements(book: Book, relation: Relation, fact: int, wording: int) -> list[Statement]:
    """Returns one wording of one fact behind every opening of the book."""
    question, answer = relation.facts[fact]
    clause = relation.wordings[wording].format(question=question, answer="{answer}")
    sentences = [f"{opening}{clause}{book.full_stop}" for opening in book.openings]
    return [Statement(_capitalised(sentence), answer) for sentence in sentences]


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _passage(book: Book, texts: list[str], rng: random.Random) -> str:
    """Statements with connecting prose between them, never at an end.

    Prose behind a full stop would give a blank before it two fillings: the answer, and the answer
    with a sentence of prose.
    """
    sentences = texts[:1]
    for text in texts[1:]:
        if rng.random() < _CONNECTION_SHARE:
            sentences.append(rng.choice(book.connections))
        sentences.append(text)
    return book.space.join(sentences)
