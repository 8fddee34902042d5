"""The supervisor's thread, which starts when it is first needed and can be waited for, and threads for users' code."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from executor_adapter.pools.loop import SupervisorLoop

logger = logging.getLogger("executor_adapter")

CATCH_UP_INTERVAL = 0.05
"""Seconds between two checks whether the supervisor has ended while a caller waits for it."""
FIRST_WORD, WORD_INTERVAL = 2.0, 10.0
"""Seconds after which the log says what a shutdown waits for, and between two such lines."""
MAX_CALLBACK_SECONDS = 10.0
"""Max seconds that one callback may delay the end of an executor."""

supervisor_threads: set[int] = set()
"""The identifiers of the threads that run the loops of this process."""


def wait_saying(wait: Callable[[float], bool], what: str, count: Callable[[], int]) -> None:
    """Call `wait(seconds)` until it returns True, and let the log say meanwhile for what, and for how many."""
    pause = FIRST_WORD
    while not wait(pause):
        logger.info("waiting for %s: %d", what, count())
        pause = WORD_INTERVAL


class CallThread:
    """Calls users' code on a thread of its own, one call after another, since a slow one must not delay the supervisor.

    The thread starts with the first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._called = 0
        self._lock = threading.RLock()  # Re-entrant: a signal handler may add a call while its thread holds it.
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread in time: at the interpreter's exit, when callbacks still run, no thread can be started.

        Raises:
            RuntimeError: the system cannot start a thread.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
                    raise

    def call(self, callback: Callable[[], object]) -> None:
        """Run `callback` on the thread, after those before it."""
        self.start()
        self._calls.put(callback)

    def close(self) -> None:
        """Let the thread end once it has called what it was given."""
        self._calls.put(None)

    def is_calling_here(self) -> bool:
        """Return whether the caller is a callback on this thread."""
        return threading.current_thread() is self._thread

    def wait(self, patience: float) -> bool:
        """Wait, once closed, until all are called; return False where one takes longer than `patience` seconds."""
        thread, seen = self._thread, -1
        if thread is None or self.is_calling_here():
            return True
        while thread.is_alive() and seen != self._called:
            seen = self._called
            thread.join(patience)
        return not thread.is_alive()

    def _run(self) -> None:
        while (callback := self._calls.get()) is not None:
            try:
                callback()
            except BaseException:  # SystemExit too: the callbacks after it are called all the same.
                logger.exception("a callback of a job's future failed")
            callback = None  # Otherwise it would keep its job alive until the next call.
            self._called += 1


class Discard(CallThread):
    """Drops the last references to users' objects on a thread of its own. Supervisor thread only.

    Whoever drops the last reference to an object runs its `__del__`, which may be slow. The supervisor holds the
    arguments, values and errors of jobs, and often is the last to do so. What it is done with is collected here during
    a turn, while functions of that turn may still refer to it, and is dropped by the thread afterwards.

    What a worker process returned or raised is bytes here, and objects of plain types have no code of users, so a job
    that has nothing else costs nothing. Objects in reference cycles are beyond control: Python's garbage collector
    frees them on whichever thread it happens to run.

    `is_off` returns whether there is no other thread to drop things on: jobs run inline, or this process was forked.
    """

    def __init__(self, is_off: Callable[[], bool]) -> None:
        super().__init__("executor-discard")
        self._is_off = is_off
        self.collected: list[Any] = []
        """What is dropped after the turn."""

    def add(self, *things: Any) -> None:
        """Drop these after the turn."""
        if not self._is_off():
            self.collected.append(things)

    def flush(self) -> None:
        """Hand over what was collected, at the end of a turn; at the next one if the system starts no thread now."""
        if self.collected:
            with contextlib.suppress(RuntimeError):
                self.start()
                batch, self.collected = self.collected, []
                self.call(batch.clear)  # The thread empties the list, so this reference to it keeps nothing alive.

    def close(self) -> None:
        """Hand over the rest, and let the thread end."""
        self.flush()
        super().close()

    def join(self, seconds: float) -> None:
        """Wait after `close` until all is dropped, for at most so many seconds: a `__del__` may hang."""
        if self._thread is not None:
            self._thread.join(seconds)


class SupervisorThread:
    """Runs the supervisor's loop in a thread. Starts no thread before there is something to do.

    `fail_all` is called if the loop itself fails, so that no caller waits forever. `count_jobs` returns how many jobs
    are not finished, for whoever waits.
    """

    is_inline = False
    """Whether the loop runs on its callers' threads, which must not wait for another thread."""

    def __init__(
        self,
        loop: SupervisorLoop,
        fail_all: Callable[[BaseException], None],
        count_jobs: Callable[[], int],
    ) -> None:
        self.callbacks = CallThread("executor-callbacks")
        self.closed = threading.Event()
        """Set once nothing runs any more."""
        self.on_closed: list[Callable[[], object]] = []
        """Called in order once nothing runs any more."""
        self.on_released: list[Callable[[], object]] = []
        """Called in order after those, and after all callbacks of futures."""
        self.belongs_to_parent = False
        """It was made by the process that this one was forked from, and runs there."""
        self.running_in: int | None = None
        """The identifier of the thread that runs the loop now."""
        self.wake: Callable[[], None] = self.start
        """Lets the loop look at once at what was submitted; starts the thread if needed."""
        self._loop = loop
        self._fail_all = fail_all
        self._count_jobs = count_jobs
        self._released = threading.Event()
        self._started = False
        self._start_lock = threading.RLock()  # Re-entrant: a signal handler may submit or shut down while it is held.
        self._right_to_run = [True]
        """Taken by the thread that runs the loop, or by the caller who closes it unused: popping is atomic."""

    def is_started(self) -> bool:
        """Return whether the loop runs, or is about to."""
        return self._started

    def is_current(self) -> bool:
        """Return whether the caller runs on this thread."""
        return threading.get_ident() == self.running_in and not self.is_inline

    def may_wait(self) -> bool:
        """Return whether the caller may wait for what the loop does: it does not run on it, as observers do."""
        return threading.get_ident() != self.running_in

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call `callback(*args)` on the thread."""
        self._loop.call_soon(callback, *args)

    def start(self) -> None:
        """Start the thread, unless it was started before, and wake the loop.

        Raises:
            RuntimeError: the system cannot start a thread; the next submission tries again.
        """
        with self._start_lock:
            if not self._started:
                self._started = True
                try:
                    self._launch()
                except RuntimeError:
                    self._started = False
                    raise
                self.wake = self._loop.wake
        self._loop.wake()

    def close(self, request: Callable[[], None], *, needed: bool) -> None:
        """Run `request`, which closes the supervisor, on the thread; without a thread where none is `needed`."""
        started = self.is_started()
        if started or needed:
            self.call_soon(request)
            if not started:
                self.start()  # As the caller who submitted the first job is about to.
            elif self._right_to_run:
                self._launch()  # This is a signal handler in the middle of `start`, and will wait for the end.
        elif self._take_right_to_run():
            self._loop.close()
            self.notify_end()

    def wait(self) -> None:
        """Wait until the thread has ended and all callbacks were called, but for none that hangs or calls this.

        On the thread itself, where observers run, it returns at once.
        """
        if not self.may_wait():
            return
        wait_saying(self.closed.wait, "unfinished jobs", self._count_jobs)
        if not self.callbacks.is_calling_here():
            self._released.wait()

    def catch_up(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until all that was asked for before is done, and return whether it is."""
        if not self.is_started() or self.belongs_to_parent or self.is_current():
            return True
        done, ends = threading.Event(), time.monotonic() + timeout
        self.call_soon(done.set)
        while not (done.wait(CATCH_UP_INTERVAL) or self.closed.is_set() or time.monotonic() >= ends):
            pass
        return done.is_set() or self.closed.is_set()

    def detach_after_fork(self) -> None:
        """Run nothing in a forked process, wait for nothing, and touch nothing of the parent's."""
        self.belongs_to_parent = True
        self._loop.detach_after_fork()
        self.closed, self._released = threading.Event(), threading.Event()
        self.closed.set()
        self._released.set()

    def notify_end(self) -> None:
        """Notify everybody that nothing runs any more."""
        self.callbacks.close()
        for callback in self.on_closed:
            try:
                callback()
            except BaseException:  # Otherwise a caller that waits for the end would wait forever.
                logger.exception("a callback at the end of an executor failed")
        self.closed.set()
        if not self.callbacks.wait(MAX_CALLBACK_SECONDS):
            logger.warning("a callback of a future takes longer than %s s: not waiting for it", MAX_CALLBACK_SECONDS)
        for callback in self.on_released:
            callback()
        self._released.set()

    def _launch(self) -> None:
        threading.Thread(target=self._run, name="executor-supervisor", daemon=True).start()

    def _take_right_to_run(self) -> bool:
        with contextlib.suppress(IndexError):
            return self._right_to_run.pop()
        return False

    def _run(self) -> None:
        if not self._take_right_to_run():
            return
        self.running_in = threading.get_ident()
        supervisor_threads.add(self.running_in)
        try:
            self._loop.run()
        except BaseException as error:
            logger.critical("the supervisor has failed: its jobs fail", exc_info=True)
            self._fail_all(error)
            raise
        finally:
            self.notify_end()
            supervisor_threads.discard(threading.get_ident())
            self.running_in = None
