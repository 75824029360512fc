import json
import pathlib
import re
import subprocess
import sys

import pytest

from glm_jax.almanac import generate
from glm_jax.almanac.generate import BLANK, BOOKS, AlmanacConfig

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = AlmanacConfig(copies=2)

each_book = pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.language)


def corpus_text(book, config=CONFIG) -> str:
    return "\n".join(record["text"] for record in generate.corpus(book, config))


def stated(question) -> str:
    return question["text"].replace(BLANK, question["answer"])


@each_book
def test_same_config_same_corpus(book):
    assert list(generate.corpus(book, CONFIG)) == list(generate.corpus(book, CONFIG))


@each_book
@pytest.mark.parametrize(
    "config", [CONFIG, AlmanacConfig(facts=12, copies=1), AlmanacConfig(wordings=3, copies=1)]
)
def test_held_out_statements_are_nowhere_in_the_corpus(book, config):
    text = corpus_text(book, config).lower()
    for relation in book.relations:
        for fact, wording in generate.pairs(relation, config, held_out=True):
            question, answer = relation.facts[fact]
            clause = relation.wordings[wording].format(question=question, answer=answer)
            assert f"{clause.lower()}{book.full_stop}" not in text


@each_book
@pytest.mark.parametrize("wordings", range(3, generate.MAX_WORDINGS + 1))
def test_held_out_facts_and_wordings_are_each_learned_elsewhere(book, wordings):
    config = AlmanacConfig(wordings=wordings)
    for relation in book.relations:
        learned = generate.pairs(relation, config, held_out=False)
        held_out = generate.pairs(relation, config, held_out=True)
        assert len(held_out) == config.held_out_wordings * config.facts
        assert not set(learned) & set(held_out)
        assert {fact for fact, _ in held_out} <= {fact for fact, _ in learned}
        assert {wording for _, wording in held_out} <= {wording for _, wording in learned}


@each_book
def test_every_statement_is_printed_copies_times(book):
    text = corpus_text(book)
    relation = book.relations[0]
    for fact, wording in generate.pairs(relation, CONFIG, held_out=False):
        for statement in generate.statements(book, relation, fact, wording)[1:]:
            assert text.count(statement.text) == CONFIG.copies


@each_book
def test_a_question_has_one_answer(book):
    config = AlmanacConfig(facts=generate.MAX_FACTS)
    answers = {}
    for relation in book.relations:
        for fact, wording in generate.pairs(relation, config, held_out=True) + generate.pairs(
            relation, config, held_out=False
        ):
            for statement in generate.statements(book, relation, fact, wording):
                assert answers.setdefault(statement.prompt, statement.answer) == statement.answer


@each_book
def test_wordings_hold_the_question_and_one_answer(book):
    for relation in book.relations:
        questions = [question for question, _ in relation.facts]
        assert len(set(questions)) == len(questions)
        assert len(set(relation.wordings)) == len(relation.wordings)
        for wording in relation.wordings:
            assert wording.count("{question}") == wording.count("{answer}") == 1
            assert not wording.startswith("{answer}")
        for question, answer in relation.facts:
            assert answer not in question
            assert question not in answer


def test_english_answers_follow_a_space():
    english = BOOKS[0]
    for record in generate.held_out(english, AlmanacConfig(facts=generate.MAX_FACTS)):
        assert f" {BLANK}" in record["text"]


def test_the_books_are_parallel():
    english, chinese = BOOKS
    assert (english.language, chinese.language) == ("en", "zh")
    assert len(english.openings) == len(chinese.openings)
    assert english.openings[0] == chinese.openings[0] == ""
    for ours, theirs in zip(english.relations, chinese.relations, strict=True):
        assert ours.name == theirs.name
        assert len(ours.facts) == len(theirs.facts)
        assert len(ours.wordings) == len(theirs.wordings)


@each_book
def test_passages_have_up_to_max_statements(book):
    stop = re.escape(book.full_stop)
    sizes = set()
    for record in generate.corpus(book, AlmanacConfig(max_statements=4)):
        assert record["language"] == book.language
        text = record["text"]
        for connection in book.connections:
            text = text.replace(connection, "")
        sizes.add(len(re.findall(stop, text)))
    assert sizes == {0, 1, 2, 3, 4}  # none: a passage of connecting prose


def run_almanac(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "glm_jax.almanac", *map(str, arguments)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command(tmp_path):
    run = run_almanac(f"--out={tmp_path / 'a'}", "--copies=1", "--facts=3")
    assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    questions = [
        json.loads(line)
        for line in (tmp_path / "a" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for language in ("en", "zh"):
        lines = (tmp_path / "a" / f"corpus_{language}.jsonl").read_text(encoding="utf-8")
        assert lines.count("\n") == manifest["records"]["corpus"][language]
        asked = [q for q in questions if q["language"] == language]
        assert len(asked) == manifest["records"]["heldout"][language] == 8 * 3 * 2
        assert all(q["text"].count(BLANK) == 1 for q in asked)
        assert all(stated(q) not in lines for q in asked)

    run = run_almanac(f"--out={tmp_path / 'a'}")
    assert run.returncode == 2
    assert run.stderr == f"error: --out={tmp_path / 'a'} already exists\n"
