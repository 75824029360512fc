"""What processes tell each other, in threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from parallel.fake_store import make_hosts

from glm_jax.errors import UserError
from glm_jax.parallel.hosts import ALONE


def on_all(hosts, action) -> list:
    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(action, hosts))


def test_everyone_gets_everyones_value():
    hosts = make_hosts(4)

    def twice(host):
        first = host.exchange("a", f"first of {host.index}")
        return first, host.exchange("a", f"second of {host.index}")

    wanted = tuple([f"{n} of {i}" for i in range(4)] for n in ("first", "second"))
    assert on_all(hosts, twice) == [wanted] * 4
    assert ALONE.exchange("a", "mine") == ["mine"]


def test_the_first_says():
    hosts = make_hosts(3)
    told = on_all(hosts, lambda host: host.from_first("x", "this" if host.is_first else None))
    assert told == ["this"] * 3
    assert ALONE.from_first("x", "this") == "this"


def test_who_differs_is_named():
    def check(host):
        values = {"code": "abc", "seed": "1" if host.index == 2 else "0", "steps": str(host.index)}
        with pytest.raises(UserError) as caught:
            host.check_equal(values)
        return str(caught.value)

    usual = "0 on process 0 (host-0), process 1 (host-1), process 3 (host-3)"
    message = f"hosts differ in seed: {usual}; 1 on process 2 (host-2)"
    assert on_all(make_hosts(4), check) == [message] * 4


def test_a_value_that_one_does_not_have_differs():
    def check(host):
        with pytest.raises(UserError, match=r"in b: nothing on process 0 .*; 2 on process 1"):
            host.check_equal({"a": "1"} | ({"b": "2"} if host.index else {}))

    on_all(make_hosts(2), check)


def test_equal_hosts_pass():
    on_all(make_hosts(3), lambda host: host.check_equal({"a": "1", "b": "2"}))
    ALONE.check_equal({"a": "1"})
