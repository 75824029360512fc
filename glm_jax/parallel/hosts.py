"""The processes of a run, and what they tell each other without their devices.

It goes through the key-value store of JAX's coordination service, at process 0. That of JAX's own
`multihost_utils` goes through the devices: it hangs where one process is somewhere else in its
program, and names nobody.
"""

import collections
import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax
from jax._src import distributed  # JAX has no public name for its key-value store

from glm_jax.errors import UserError
from glm_jax.parallel.place import Place
from glm_jax.parallel.roll_call import call_roll

_POLL_MS = 10_000


class Store(Protocol):
    """The part of JAX's client that is used; keys are paths."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class Hosts:
    """This process and the others of its run, of which each host has one or more.

    What all of them call must be called by all of them, for each topic in the same order.

    Attributes:
      index: of this process, 0 <= index < count.
      names: of their machines, by index.
      store: None where there is one process.
    """

    def __init__(self, index: int, names: tuple[str, ...], store: Store | None = None):
        self.index, self.names, self.store = index, names, store
        self._calls: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def is_first(self) -> bool:
        """The one that writes what is written once."""
        return self.index == 0

    def describe(self, index: int) -> str:
        """As in "process 1 (host-b)"."""
        return f"process {index} ({self.names[index]})"

    def exchange(self, topic: str, value: str = "") -> list[str]:
        """Every process's value by index, once all have given theirs."""
        if self.store is None:
            return [value]
        folder = self._folder(topic)
        keys = [f"{folder}/{index}" for index in range(self.count)]
        self.store.key_value_set(keys[self.index], value)
        while True:
            given = dict(self.store.key_value_dir_get(folder))
            if len(given) == self.count:
                return [given[key] for key in keys]
            self._wait_for(next(key for key in keys if key not in given))

    def wait(self, topic: str) -> None:
        """Until all are here."""
        self.exchange(topic)

    def from_first(self, topic: str, value: str | None) -> str:
        """What process 0 says; the others give None."""
        if self.store is None:
            return value
        key = f"{self._folder(topic)}/0"
        if self.is_first:
            self.store.key_value_set(key, value)
            return value
        return self._wait_for(key)

    def check_equal(self, values: Mapping[str, str]) -> None:
        """Refuses processes that differ in what should be equal.

        Args:
          values: by what people call them.

        Raises:
          UserError: on all of them, naming the first value that differs and who has what.
        """
        text = json.dumps(values, sort_keys=True)
        digests = self.exchange("digest", hashlib.sha256(text.encode()).hexdigest())
        if len(set(digests)) == 1:
            return
        everyone = [json.loads(given) for given in self.exchange("values", text)]
        for name in dict.fromkeys(name for given in everyone for name in given):
            given = [of_one.get(name, "nothing") for of_one in everyone]
            if len(set(given)) > 1:
                raise UserError(f"hosts differ in {name}: {self.who_has_what(given)}")

    def who_has_what(self, values: list[str]) -> str:
        """Each value with those that have it, the most common first."""
        shown = 3
        parts = []
        for value, _ in collections.Counter(values).most_common():
            holders = [self.describe(i) for i, other in enumerate(values) if other == value]
            more = f" and {len(holders) - shown} others" if len(holders) > shown else ""
            parts.append(f"{value} on {', '.join(holders[:shown])}{more}")
        return "; ".join(parts)

    def _folder(self, topic: str) -> str:
        self._calls[topic] += 1
        return f"glm_jax/{topic}/{self._calls[topic]}"

    def _wait_for(self, key: str) -> str:
        """Without a limit: `Watch` ends the process if somebody is gone or hangs."""
        while True:
            try:
                return self.store.blocking_key_value_get(key, _POLL_MS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


ALONE = Hosts(0, ("this host",))
"""The only process of a run."""


@contextlib.contextmanager
def joined(place: Place | None, *, timeout: float, heartbeat_timeout: float) -> Iterator[Hosts]:
    """The processes of a run, joined; `ALONE` without a place.

    Args:
      timeout: seconds for all of them to come.
      heartbeat_timeout: seconds after which JAX aborts all of them if it does not hear from one.

    Raises:
      UserError, RestartError: see `call_roll`.
    """
    if place is None:
        yield ALONE
        return
    names = call_roll(place, timeout)
    # Its handler of SIGTERM would keep the signal from ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=round(timeout),
        heartbeat_timeout_seconds=round(heartbeat_timeout),
    )
    hosts = Hosts(place.index, names, distributed.global_state.client)
    yield hosts
    hosts.wait("leave")
    jax.distributed.shutdown()
