"""Notices what a run's own loop cannot: that it hangs, or that another process ended or hangs.

One thread looks at clocks, and so works where nobody answers any more. Another talks with the other
processes: it gives and reads signs of life, and hears of failures. A process that cannot go on says
why and ends with exit code 42, for its supervisor to start it again; JAX would let it wait, or
abort it without a word.
"""

import contextlib
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import jax

from glm_jax.config import HostsConfig
from glm_jax.errors import EXIT_RESTART, EXIT_USER_ERROR, RestartError, UserError
from glm_jax.parallel.agreement import Agreement
from glm_jax.parallel.hosts import Hosts, joined
from glm_jax.parallel.place import Place
from glm_jax.parallel.signs import STEP, Sign, SignFile, Signs

_FAILURE, _GONE = "glm_jax/failure", "glm_jax/gone"
_TICK, _QUICK_TICK = 1.0, 0.1
_LAST_WORDS = 5.0  # that process 0, whom the others ask, waits for them to go
_CAUSE = 2.0  # that the process which caused an exception here has to say so

STARTING, COMPILING = "starting", "compiling"
READING, VALIDATION, SAVING = "waiting for input", "validation", "saving"
_SHORT = (STEP, READING, VALIDATION)  # phases that are renewed with every batch


@contextlib.contextmanager
def watched(
    place: Place | None, config: HostsConfig, wish: Callable[[], str | None], timeout: float
) -> Iterator[tuple[Hosts, "Watch"]]:
    """The processes of a run, joined and watched; they end together.

    A `UserError` of the only process is raised; every other exception ends the process here.

    Args:
      place: of this process; None: it is alone.
      timeout: seconds for all to come.

    Raises:
      UserError, RestartError: see `joined`.
    """
    with contextlib.ExitStack() as stack:
        # Our own limit is the shorter one: JAX aborts without a word of who is missing.
        heartbeat_timeout = 2 * config.silent_seconds + 10
        hosts = stack.enter_context(
            joined(place, timeout=timeout, heartbeat_timeout=heartbeat_timeout)
        )
        if not hosts.is_first:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        watch = stack.enter_context(Watch(hosts, config, wish))
        with watch.guarding():
            yield hosts, watch


class Watch:
    """Watches over this process and, with the others' watches, over all of them."""

    def __init__(self, hosts: Hosts, config: HostsConfig, wish: Callable[[], str | None]):
        """`wish` is that of an `Agreement`, and says too when to end before there is a loop."""
        self._hosts, self._config, self._wish = hosts, config, wish
        self._sign, self._file = Sign(STARTING, 0, None, time.time()), SignFile(hosts)
        self._signs = Signs(hosts)
        self._answered_at = time.monotonic()
        self._ended, self._ending = threading.Event(), threading.Lock()
        self._interrupt: Callable[[str], None] = lambda _: None
        self._may_interrupt = True
        self.agreement = Agreement(hosts, wish)

    def __enter__(self) -> "Watch":
        threading.Thread(target=self._look_at_clocks, daemon=True).start()
        if self._hosts.store is not None:
            threading.Thread(target=self._talk, daemon=True).start()
        return self

    def __exit__(self, _, error, __) -> None:
        """Without an error, all processes leave together."""
        if error is None:
            self._hosts.wait("done")
        self._ended.set()

    def sign(self, phase: str, step: int | None = None, rows: range | None = None) -> None:
        """The run's own loop is here now: its sign of life.

        Args:
          step: in flight, or the next one; None: as before.
          rows: of its batch; None: as before.
        """
        before = self._sign
        step = before.step if step is None else step
        span = before.rows if rows is None else (rows.start, rows.stop)
        self._sign = Sign(phase, step, span, time.time(), before.input_wait)

    def slow_input(self, input_wait: float) -> dict[str, object]:
        """What to report of a process whose input holds up the others; nothing if none does.

        Args:
          input_wait: of this process, see `Sign`.
        """
        self._sign = dataclasses.replace(self._sign, input_wait=input_wait)
        slowest = self._signs.slowest_input()
        return {} if slowest is None else {"process": slowest[0], "input_wait": slowest[1]}

    def keep_signs_in(self, folder: Path) -> None:
        """From now on `folder` has the last sign of life, for supervisors and people."""
        self._file.folder = folder
        self._file.write(self._sign)

    def when_interrupted(self, interrupt: Callable[[str], None]) -> None:
        """`interrupt` says why, where the processes end at once as one of them is asked to end.

        That is until `nothing_may_be_lost`: there is nothing to save, and a compilation may take
        longer than whoever asks is ready to wait.
        """
        self._interrupt = interrupt

    def nothing_may_be_lost(self) -> None:
        """From now on the loop saves before it ends."""
        self._may_interrupt = False

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Ends all processes where an exception leaves the block.

        Of several none may wait for others on its way out, as to close what it opened: they do not
        come. The only process closes everything, and a `UserError` is raised.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self._hosts.store is not None:
                self._fail(error)
            self._file.write(self._sign, failure=_one_line(error))
            raise

    def _fail(self, error: Exception | KeyboardInterrupt) -> NoReturn:
        if isinstance(error, UserError | RestartError):
            code = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_RESTART
            self._end(_one_line(error), code)
        if self._cause_is_elsewhere():
            time.sleep(2 * _LAST_WORDS)  # the thread that talks ends the process
        traceback.print_exception(error)
        self._end(_one_line(error), EXIT_RESTART)

    def _cause_is_elsewhere(self) -> bool:
        """Whether another process has ended and said why: without it steps fail here too."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return bool(self._hosts.store.blocking_key_value_get(_FAILURE, round(1000 * _CAUSE)))
        return False

    # The thread that looks at clocks.

    def _look_at_clocks(self) -> None:
        while not self._ended.wait(_TICK):
            sign, now = self._sign, time.time()
            self._file.write(sign)
            self._check_interrupt()
            is_short = sign.phase in _SHORT
            limit = self._config.hang_seconds if is_short else self._config.start_seconds
            if now - sign.since > limit:
                who = self._signs.first_to_stand_still(now)
                self._end(f"hangs: {sign.describe(now)}{who}", EXIT_RESTART, stacks=True)
            silence = time.monotonic() - self._answered_at
            if self._hosts.store is not None and silence > self._config.silent_seconds:
                where = f"; here: {sign.describe(now)}"
                silent = f"{self._hosts.describe(0)} has not answered for {silence:.0f} s{where}"
                self._end(silent, EXIT_RESTART, stacks=True)

    def _check_interrupt(self) -> None:
        reason = self._wish() if self._may_interrupt else None
        is_signal = reason in signal.Signals.__members__  # nobody waits for the others
        if not is_signal or not self._ending.acquire(blocking=False):
            return
        self._interrupt(reason)
        self._tell(reason, 0, stacks=False)
        self._exit(0)

    # The thread that talks.

    def _talk(self) -> None:
        store = self._hosts.store
        while not self._ended.is_set():
            tick = _QUICK_TICK if self.agreement.is_pending else _TICK
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is none
                self._hear(store.blocking_key_value_get(_FAILURE, round(1000 * tick)))
            if self._ended.is_set():
                return
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._signs.exchange(self._sign)
                self._answered_at = time.monotonic()
                self.agreement.talk()
                self._check_silence()

    def _check_silence(self) -> None:
        """Process 0 speaks for all: who does not hear from it ends by itself."""
        silent = self._signs.silent(self._config.silent_seconds) if self._hosts.is_first else None
        if silent is not None:
            self._end(f"{silent} gives no sign of life", EXIT_RESTART, stacks=True)

    def _hear(self, failure: str) -> None:
        """Another process ends, and so does this one, having said that it knows."""
        told = json.loads(failure)
        if told["index"] == self._hosts.index or not self._ending.acquire(blocking=False):
            return
        message = f"{self._hosts.describe(told['index'])} ended the run: {told['message']}"
        if told["code"] == 0:
            self._interrupt(told["message"])
        self._conclude(message, told["code"], told["stacks"])

    # How a process ends.

    def _end(self, message: str, code: int, *, stacks: bool = False) -> NoReturn:
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending the process
        self._tell(message, code, stacks)
        self._conclude(message, code, stacks)

    def _tell(self, message: str, code: int, stacks: bool) -> None:
        values = {"index": self._hosts.index, "message": message, "code": code, "stacks": stacks}
        self._say(_FAILURE, json.dumps(values))

    def _say(self, key: str, value: str) -> None:
        """Tells the others, if process 0 still answers, and nobody said it before."""
        if self._hosts.store is not None:
            arguments = (self._hosts.store.key_value_set, key, value)
            teller = threading.Thread(target=_quietly, args=arguments, daemon=True)
            teller.start()
            teller.join(_LAST_WORDS)

    def _conclude(self, message: str, code: int, stacks: bool) -> NoReturn:
        if stacks:
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        if code:
            self._file.write(self._sign, failure=message)
            print(f"error: {message}", file=sys.stderr)
        self._exit(code)

    def _exit(self, code: int) -> NoReturn:
        """At once: JAX would wait for processes that do not come any more."""
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        if self._hosts.is_first and self._hosts.store is not None:
            self._let_the_others_go()
        else:
            self._say(f"{_GONE}/{self._hosts.index}", "")
        os._exit(code)

    def _let_the_others_go(self) -> None:
        """JAX aborts those that are still there when process 0 is gone."""
        deadline, others = time.monotonic() + _LAST_WORDS, self._signs.others_alive(_LAST_WORDS)
        while others and time.monotonic() < deadline:
            time.sleep(_QUICK_TICK)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                gone = self._hosts.store.key_value_dir_get(_GONE)
                others -= {int(key.rpartition("/")[2]) for key, _ in gone}


def _quietly(action: Callable, *arguments) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        action(*arguments)


def _one_line(error: BaseException) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    is_for_people = isinstance(error, UserError | RestartError)
    return str(error) if is_for_people else f"{type(error).__name__}: {first_line}"
