"""Calls of one function in worker processes that end with their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from glm_jax.errors import UserError

_WAITING = 2  # items by process that are ready to be worked on


def map_unordered(function: Callable, items: Iterable, num_processes: int) -> Iterator:
    """Yields `function(item)` as they are finished, reading few items ahead.

    Args:
      function: a picklable object with a `__call__`, sent to each process once.
      num_processes: 1 calls it here.

    Raises:
      UserError: a worker was killed.
    """
    if num_processes == 1:
        yield from map(function, items)
        return
    # Not forked from here, where libraries may have threads; and what the preloaded module imports
    # is imported once, not in every worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([type(function).__module__])
    pool = ProcessPoolExecutor(num_processes, context, _start, (function,))
    pending = set()
    try:
        for item in items:
            pending.add(pool.submit(_call, item))
            if len(pending) >= _WAITING * num_processes:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, maybe for lack of memory; the same command goes on, "
            "--num_processes takes fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(function: Callable) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(item):
    return _function(item)
