"""Who is there, before JAX is asked to join them."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from glm_jax.errors import RestartError, UserError
from glm_jax.parallel.place import Place
from glm_jax.parallel.roll_call import call_roll


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def outcomes(places: list[Place], timeout: float = 10.0) -> list:
    """Names or the error of every process; they come one after another."""

    def call(number: int):
        time.sleep(0.05 * number)
        try:
            return call_roll(places[number], timeout)
        except (UserError, RestartError) as error:
            return error

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(call, range(len(places))))


def place(port: int, index: int, count: int) -> Place:
    return Place(f"localhost:{port}", count, index)


def test_all_hear_who_is_there_whoever_comes_first(port):
    names = (socket.gethostname(),) * 4
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        assert outcomes([place(port, i, 4) for i in order]) == [names] * 4


def test_all_hear_who_is_absent(port):
    found = outcomes([place(port, i, 5) for i in (0, 2, 4)], timeout=0.5)
    name = socket.gethostname()
    message = f"process 1, 3 of 5 did not come in 0 s; there are 0 ({name}), 2 ({name}), 4 ({name})"
    assert [type(error) for error in found] == [RestartError] * 3
    assert {str(error) for error in found} == {message}


def test_without_process_0_the_others_say_so(port):
    (error,) = outcomes([place(port, 1, 2)], timeout=0.5)
    assert isinstance(error, RestartError)
    assert str(error).startswith(f"process 0 at localhost:{port} did not answer process 1 in 0 s")


def test_two_with_one_number_are_refused(port):
    found = outcomes([place(port, i, 3) for i in (0, 1, 1)])
    assert [type(error) for error in found] == [UserError] * 3
    assert "are both --process_id 1" in str(found[0])


def test_another_count_is_refused(port):
    found = outcomes([place(port, 0, 3), place(port, 1, 2)])
    assert "process 1 (" in str(found[0])
    assert "was started as one of 2, process 0 (" in str(found[0])
    assert str(found[0]) == str(found[1])


def test_who_was_started_again_comes_twice(port):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call_roll, place(port, 0, 3), 10.0)
        time.sleep(0.1)
        with socket.create_connection(("localhost", port)) as gone:
            said = {"index": 1, "count": 3, "name": "gone"}
            gone.sendall(json.dumps(said).encode() + b"\n")
            time.sleep(0.1)
        found = outcomes([place(port, 1, 3), place(port, 2, 3)])
        assert first.result() == found[0] == found[1] == (socket.gethostname(),) * 3


def test_strangers_are_not_heard(port):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call_roll, place(port, 0, 2), 10.0)
        time.sleep(0.1)
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b'{"index": 1}\n', b""):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(nonsense)
        assert outcomes([place(port, 1, 2)]) == [first.result()]


def test_a_taken_port_is_a_mistake():
    with socket.create_server(("", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {taken} of --coordinator_address localhost"):
            call_roll(place(taken, 0, 2), 1.0)
