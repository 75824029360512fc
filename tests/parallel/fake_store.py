"""The key-value store of JAX's coordination service, for threads of one process."""

import threading

import jax

from glm_jax.parallel.hosts import Hosts


class FakeStore:
    def __init__(self):
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self._changed:
            if key in self._values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self._values[key]

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        with self._changed:
            return [(k, v) for k, v in self._values.items() if k.startswith(f"{key}/")]


def make_hosts(count: int) -> list[Hosts]:
    """The processes of a run, each for a thread of its own."""
    store, names = FakeStore(), tuple(f"host-{i}" for i in range(count))
    return [Hosts(index, names, store) for index in range(count)]
