"""The loop of the supervisor's thread: file descriptors, timers, and calls from other threads.

It sleeps in a selector until the next thing is due, so an idle executor never wakes up. One byte on a pipe wakes it,
written only while it sleeps, so a burst of submissions costs one write.

**What has arrived comes before what is due.** The process may be paused at any point, for seconds. So before anything
that depends on the time, the loop reads what has arrived, and acts on the time at which it began to read: nothing that
somebody did in time is taken for late.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("executor_adapter.loop")

MAX_CALLS_PER_TURN = 4096
"""Calls from other threads run in one turn, so that a burst of them cannot starve the messages of workers."""

MAX_SLEEP_SECONDS = 86_400.0
"""Max seconds that the loop sleeps: selectors do not accept any number."""

RECOVERY_SECONDS = 0.1
"""Seconds that the loop waits after a failed turn, since the next one may fail too."""


class LoopTimer:
    """A call at the time `when`. Cancelled timers stay in the heap until they are due or outnumber the rest."""

    __slots__ = ("callback", "loop", "when")

    def __init__(self, loop: SupervisorLoop, when: float, callback: Callable[[], None]) -> None:
        self.loop, self.when = loop, when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Cancel the call."""
        if self.callback is not None:
            self.callback = None
            self.loop.timer_cancelled()


class _Watched:
    __slots__ = ("on_readable", "on_writable")

    def __init__(self, on_readable: Callable[[], object]) -> None:
        self.on_readable = on_readable
        self.on_writable: Callable[[], None] | None = None


class SupervisorLoop:
    """A selector, a heap of timers and an inbox. All but `call_soon` and `wake` are for the thread in `run` only.

    `on_turn` is called in each turn, once what has arrived is read. It does what must come first, calls `run_calls`,
    and returns the time at which it must be called again.
    """

    def __init__(self, on_turn: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._on_turn = on_turn
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, _Watched] = {}
        self.timers: list[tuple[float, int, LoopTimer]] = []
        """A heap, by time and then by age."""
        self.arrived = 0
        """The number of calls of other threads that had arrived when this turn began."""
        self._cancelled_timers = 0
        self._order = itertools.count()
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._sleeps = 0
        self._asleep = 0
        """The number of the current sleep; 0 while it is awake."""
        self._ended_sleep = 0
        """The number of the last sleep that a written byte has ended."""
        self._woken = False
        self.read_until: float = clock()
        """All that had arrived by this time has been read. What is due is judged by it, not by `now`."""
        self._wanted_at = float("inf")
        self.stopped = False
        self._wake_reader, self._wake_writer = os.pipe()
        for fd in (self._wake_reader, self._wake_writer):
            os.set_blocking(fd, False)
        self.watch(self._wake_reader, self._drain_wake_pipe)

    # --- from any thread ---

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call `callback(*args)` in the loop's thread."""
        self._inbox.append((callback, args))
        self.wake()

    def wake(self) -> None:
        """Make another turn follow: end the loop's sleep, or keep it from sleeping."""
        self._woken = True
        sleep = self._asleep
        if sleep and sleep != self._ended_sleep:
            with contextlib.suppress(OSError):
                # A full pipe means that it is awake already, a closed one that it has ended.
                os.write(self._wake_writer, b"\0")
            self._ended_sleep = sleep  # Only now: a signal handler that runs before this must write for itself.

    # --- from the loop's own thread ---

    def watch(self, fd: int, on_readable: Callable[[], object]) -> None:
        """Call `on_readable` while the descriptor is readable."""
        watched = _Watched(on_readable)
        self._selector.register(fd, selectors.EVENT_READ, watched)
        self._watched[fd] = watched

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Call `on_writable` while a watched descriptor is writable; None stops that."""
        watched = self._watched[fd]
        if (watched.on_writable is None) != (on_writable is None):
            self._selector.modify(fd, selectors.EVENT_READ | (selectors.EVENT_WRITE if on_writable else 0), watched)
        watched.on_writable = on_writable

    def unwatch(self, fd: int) -> None:
        """Stop watching the descriptor."""
        if self._watched.pop(fd, None) is not None:
            self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> LoopTimer:
        """Call `callback` at the time `when` of the clock."""
        timer = LoopTimer(self, when, callback)
        heapq.heappush(self.timers, (when, next(self._order), timer))
        return timer

    def timer_cancelled(self) -> None:
        """Count a cancelled timer, and drop such timers once they outnumber the rest."""
        self._cancelled_timers += 1
        if self._cancelled_timers > 64 and self._cancelled_timers * 2 > len(self.timers):
            self.timers = [due for due in self.timers if due[2].callback is not None]
            heapq.heapify(self.timers)
            self._cancelled_timers = 0

    def stop(self) -> None:
        """End `run` after the current turn."""
        self.stopped = True

    def run(self) -> None:
        """Run turns until `stop`, then close."""
        try:
            while not self.stopped:
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        """Close the selector and the pipe; `run` does so itself."""
        self.stopped = True
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def detach_after_fork(self) -> None:
        """Hold none of the descriptors in a forked process, and leave what they stand for as it is.

        They are replaced, not closed: their owners here would later close whatever has got the same number.
        """
        if self.stopped:
            return
        self.stopped = True
        self._selector.close()  # Not unregistered: that would unregister the descriptors of the parent too.
        with open(os.devnull, "rb") as nothing:
            for fd in (*self._watched, self._wake_writer):
                os.dup2(nothing.fileno(), fd, inheritable=False)

    def run_due(self) -> None:
        """Run turns without sleeping until nothing more is due: for tests, which move the clock in between."""
        due = True
        while due and not self.stopped:
            self._turn(may_sleep=False)
            due = self._woken or bool(self._inbox) or bool(self.timers and self.timers[0][0] <= self.now())

    def _turn(self, *, may_sleep: bool = True) -> None:
        self._woken = False
        self.read_until = began = self.now()
        if self._next_due() <= began:
            self._read(0.0)
        self.arrived = min(len(self._inbox), MAX_CALLS_PER_TURN)
        try:
            self._wanted_at = self._on_turn()
        except Exception:
            logger.exception("a turn of the supervisor's loop failed")
            self._wanted_at = self.now() + RECOVERY_SECONDS
        due = self._next_due()
        timeout = None if due == float("inf") else min(max(0.0, due - self.now()), MAX_SLEEP_SECONDS)
        self._sleeps += 1
        self._asleep = self._sleeps
        # Checked after _asleep is set, so that no wake-up is missed.
        if self._woken or self._inbox or self.stopped or not may_sleep:
            timeout = 0.0
        self._read(timeout)

    def _read(self, timeout: float | None) -> None:
        """Wait for descriptors, and call those who watch them."""
        events = self._selector.select(timeout)
        self._asleep = 0
        for key, mask in events:
            self._run_watched(key.fd, key.data, mask)

    def _run_watched(self, fd: int, watched: _Watched, mask: int) -> None:
        # An earlier callback of this turn may have closed it, and its number may belong to another descriptor by now,
        # which the selector has reported nothing of: a worker that was just started would count as dead.
        if mask & selectors.EVENT_READ and self._watched.get(fd) is watched:
            self._call(watched.on_readable)
        if mask & selectors.EVENT_WRITE and self._watched.get(fd) is watched and watched.on_writable is not None:
            self._call(watched.on_writable)

    def run_calls(self) -> None:
        """Make the calls that had arrived when this turn began, then those that were due by then."""
        for _ in range(self.arrived):
            callback, args = self._inbox.popleft()
            self._call(callback, *args)
        now = self.read_until
        while self.timers and (self.timers[0][0] <= now or self.timers[0][2].callback is None):
            timer = heapq.heappop(self.timers)[2]
            if timer.callback is None:
                self._cancelled_timers -= 1
                continue
            callback, timer.callback = timer.callback, None
            self._call(callback)

    def _next_due(self) -> float:
        return min(self.timers[0][0], self._wanted_at) if self.timers else self._wanted_at

    def _drain_wake_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    @staticmethod
    def _call(callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            # An error here must not end the loop: every other job depends on it.
            logger.exception("a call of the supervisor's loop failed")
