"""Waits until every process of a run is there, before JAX joins them.

JAX's own way to join aborts the process without a word of who is missing, and crashes where its
port is taken. So the processes first meet at the same port over plain TCP: each says its number and
host, process 0 tells all of them who is there, or what is wrong, and the port is free again.
"""

import contextlib
import json
import os
import socket
import time
from typing import NamedTuple

from glm_jax.errors import RestartError, UserError
from glm_jax.parallel.place import Place

_RETRY_SECONDS = 0.2
_MAX_LINE = 1 << 20


class _Present(NamedTuple):
    connection: socket.socket
    name: str


def call_roll(place: Place, timeout: float) -> tuple[str, ...]:
    """The names of the hosts by number of process, once all are there.

    Raises:
      UserError: the port is taken, or two processes have one number or differ in their count.
      RestartError: somebody did not come in so many seconds, naming who; or process 0 ended.
    """
    deadline = time.monotonic() + timeout
    if place.index == 0:
        return _receive(place, deadline, timeout)
    return _report(place, deadline, timeout)


def _receive(place: Place, deadline: float, timeout: float) -> tuple[str, ...]:
    """Process 0: waits for the others and tells all of them."""
    with _listening(place) as listener, contextlib.ExitStack() as connections:
        present, came = {0: _Present(listener, socket.gethostname())}, []
        error = None
        while len(present) < place.count and error is None:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                error = RestartError(_absent(present, place.count, timeout))
                break
            connections.enter_context(connection)
            came.append(connection)
            error = _enter(connection, place, present, deadline)
        names = [present[i].name for i in sorted(present)]
        answer = {"names": names} if error is None else {"error": str(error)}
        if isinstance(error, UserError):
            answer["is_user_error"] = True
        _tell(came, answer)
    if error is not None:
        raise error
    return tuple(names)


def _listening(place: Place) -> socket.socket:
    port = place.address[1]
    try:
        return socket.create_server(("", port), backlog=max(128, place.count))
    except OSError as error:
        raise UserError(
            f"port {port} of --coordinator_address {place.coordinator} cannot be used on "
            f"{socket.gethostname()}: {os.strerror(error.errno)}"
        ) from error


def _enter(
    connection: socket.socket, place: Place, present: dict[int, _Present], deadline: float
) -> UserError | None:
    """Enters who came; what is no process of ours is not heard."""
    connection.settimeout(min(5.0, max(0.01, deadline - time.monotonic())))
    try:
        said = json.loads(_read_line(connection))
        index, count, name = int(said["index"]), int(said["count"]), str(said["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    before = present.get(index)
    present[index] = _Present(connection, name)
    if count != place.count:
        return UserError(
            f"process {index} ({name}) was started as one of {count}, process 0 "
            f"({present[0].name}) as one of {place.count}"
        )
    if before is not None and not (index and _has_left(before.connection)):
        return UserError(f"{name} and {before.name} are both --process_id {index}")
    return None


def _has_left(connection: socket.socket) -> bool:
    """Whether the process at the other end is gone: one that was started again comes twice."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _absent(present: dict[int, _Present], count: int, timeout: float) -> str:
    absent = ", ".join(str(i) for i in range(count) if i not in present)
    there = ", ".join(f"{i} ({present[i].name})" for i in sorted(present))
    return f"process {absent} of {count} did not come in {timeout:.0f} s; there are {there}"


def _tell(connections: list[socket.socket], answer: dict) -> None:
    line = json.dumps(answer).encode() + b"\n"
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.settimeout(5.0)
            connection.sendall(line)
    for connection in connections:  # who closes first keeps the port for a while
        with contextlib.suppress(OSError):
            connection.recv(1)


def _report(place: Place, deadline: float, timeout: float) -> tuple[str, ...]:
    """Every other process: says that it is there, and hears who else is."""
    said = {"index": place.index, "count": place.count, "name": socket.gethostname()}
    while True:
        try:
            answer = _ask(place, said, deadline)
            break
        except (OSError, ValueError) as error:  # not there yet, or gone again: a quick restart
            if time.monotonic() >= deadline:
                raise RestartError(
                    f"process 0 at {place.coordinator} did not answer process {place.index} in "
                    f"{timeout:.0f} s: {error}"
                ) from error
            time.sleep(_RETRY_SECONDS)
    if "error" in answer:
        raise (UserError if answer.get("is_user_error") else RestartError)(answer["error"])
    return tuple(answer["names"])


def _ask(place: Place, said: dict, deadline: float) -> dict:
    left = max(0.1, deadline - time.monotonic())
    with socket.create_connection(place.address, timeout=left) as connection:
        connection.sendall(json.dumps(said).encode() + b"\n")
        # Process 0 has the same limit, and answers at it.
        connection.settimeout(left + 10.0)
        return json.loads(_read_line(connection))


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part or len(line) > _MAX_LINE:
            raise OSError("the connection was closed")
        line += part
    return line
