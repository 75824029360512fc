"""How processes that run the same steps agree at which of them to do what only one has asked for.

A signal may reach one process alone, and no two clocks are equal; but a step needs all of them. So
their loops ask at the same places, and count. Who is asked for something tells the others; then
each stops counting and says how far it got, and what was asked for is due at the next place that
none of them has passed. (JAX's `multihost_utils.reached_preemption_sync_point` does this for
SIGTERM alone.)
"""

import contextlib
import json
import threading
from collections.abc import Callable

import jax

from glm_jax.parallel.hosts import Hosts


class Agreement:
    """What is due at the place where a loop asks.

    `poll` is called by the loop, at the same places of every process; `talk` by another thread,
    again and again.
    """

    def __init__(self, hosts: Hosts, wish: Callable[[], str | None]):
        """`wish` says, at any time and on any thread, what this process is asked for."""
        self._hosts, self._wishes = hosts, [wish]
        self._round = self._count = 0
        self._due: tuple[int, str] | None = None
        self._is_counting = True
        self._changed = threading.Condition()

    def add(self, wish: Callable[[], str | None]) -> None:
        """Another thing that may be asked for, after those before it."""
        self._wishes.append(wish)

    def _wish(self) -> str | None:
        return next(filter(None, (wish() for wish in self._wishes)), None)

    def poll(self) -> str | None:
        """What is due here, once; None to go on."""
        if self._hosts.store is None:
            return self._wish()
        with self._changed:
            self._changed.wait_for(lambda: self._is_counting)
            self._count += 1
            if self._due is None or self._count < self._due[0]:
                return None
            (_, what), self._due = self._due, None
            self._round += 1
            return what

    @property
    def is_pending(self) -> bool:
        """Whether `talk` should be called again soon."""
        return not self._is_counting

    def talk(self) -> None:
        """Goes on with what is asked for; never waits for others."""
        with self._changed:
            if self._due is not None:
                return
            folder = f"glm_jax/asked/{self._round}"
            what = self._asked_for(folder)
            if what is None:
                return
            self._is_counting = False
            counts = self._counts(f"{folder}/counts")
            if len(counts) == self._hosts.count:
                self._due = max(counts) + 1, what
                self._is_counting = True
                self._changed.notify_all()

    def _asked_for(self, folder: str) -> str | None:
        store, wish = self._hosts.store, self._wish()
        if wish is not None and self._is_counting:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # somebody was asked before
                store.key_value_set(f"{folder}/what", wish)
        return dict(store.key_value_dir_get(folder)).get(f"{folder}/what")

    def _counts(self, folder: str) -> list[int]:
        mine = f"{folder}/{self._hosts.index}"
        given = dict(self._hosts.store.key_value_dir_get(folder))
        if mine not in given:
            self._hosts.store.key_value_set(mine, json.dumps(self._count))
            given[mine] = str(self._count)
        return [int(count) for count in given.values()]
