"""Processes whose loops are at different places agree on one of them."""

import random
import threading
import time

import pytest
from parallel.fake_store import make_hosts

from glm_jax.parallel.agreement import Agreement
from glm_jax.parallel.hosts import ALONE


class Loop:
    """A process: a loop that polls until it is told what it waits for, and a thread that talks."""

    def __init__(self, hosts, number_of_answers: int):
        self.wish: str | None = None
        self.agreement = Agreement(hosts, lambda: self.wish)
        self.answers: list[tuple[int, str]] = []
        self._wanted, self._rng = number_of_answers, random.Random(hosts.index)
        self._polling = threading.Thread(target=self._poll, daemon=True)
        self._talking = threading.Thread(target=self._talk, daemon=True)
        for thread in (self._polling, self._talking):
            thread.start()

    def _poll(self) -> None:
        place = 0
        while len(self.answers) < self._wanted:
            place += 1
            if what := self.agreement.poll():
                self.answers.append((place, what))
                self.wish = None
            time.sleep(self._rng.uniform(0, 0.004))

    def _talk(self) -> None:
        while self._polling.is_alive():
            self.agreement.talk()
            time.sleep(self._rng.uniform(0, 0.01))

    def join(self) -> list[tuple[int, str]]:
        self._polling.join(20)
        assert not self._polling.is_alive()
        return self.answers


@pytest.mark.parametrize("count", [2, 5])
def test_all_stop_at_one_place(count):
    loops = [Loop(hosts, 1) for hosts in make_hosts(count)]
    time.sleep(0.05)
    loops[-1].wish = "SIGTERM"
    answers = [loop.join() for loop in loops]
    assert answers[0][0][1] == "SIGTERM"
    assert answers == [answers[0]] * count


def test_of_two_wishes_at_once_one_comes_first_and_then_the_other():
    loops = [Loop(hosts, 2) for hosts in make_hosts(2)]
    loops[0].wish, loops[1].wish = "save again", "SIGTERM"
    # Whose wish came second wishes on.
    time.sleep(0.3)
    for loop in loops:
        loop.wish = "the end" if len(loop.answers) < 2 else None
    answers = [loop.join() for loop in loops]
    assert answers[0] == answers[1]
    assert answers[0][0][1] in ("save again", "SIGTERM")
    assert answers[0][0][0] < answers[0][1][0]


def test_the_only_process_is_asked_at_once():
    wishes = ["first", None]
    agreement = Agreement(ALONE, wishes.pop)
    assert agreement.poll() is None
    assert agreement.poll() == "first"


def test_the_first_of_several_wishes_goes_first():
    agreement = Agreement(ALONE, lambda: None)
    agreement.add(lambda: "later")
    assert agreement.poll() == "later"
    agreement = Agreement(ALONE, lambda: "sooner")
    agreement.add(lambda: "later")
    assert agreement.poll() == "sooner"
