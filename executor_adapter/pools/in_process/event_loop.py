"""An event loop in a thread of its own, which can be replaced when a coroutine blocks it.

The owner of the loop cancels what runs on it. A coroutine that ignores the cancellation is abandoned after its grace
period. If a coroutine blocks the loop, with `time.sleep` for example, the loop does not even answer, and the owner
replaces it by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar

from executor_adapter.pools.in_process.stacks import position_in, with_own_frames

logger = logging.getLogger("executor_adapter.coroutine")

COROUTINE_STOP_TIMEOUT = 0.5
"""Seconds after which a cancelled coroutine that has not ended is abandoned; a shorter grace period wins."""


class Runnable(Protocol):
    """Something that a loop runs."""

    worker: Any
    """The loop it was submitted to."""

    context: contextvars.Context | None
    """The context variables that it sees; None for an empty context."""


R = TypeVar("R", bound=Runnable)


class EventLoopThread(ABC, Generic[R]):
    """An event loop in a daemon thread, and what was submitted to it.

    `live` and `stopping` belong to the one thread that submits, cancels and stops. `submitted` passes to the loop's
    thread, which owns `_tasks`. Both threads may `claim` what has not started.
    """

    def __init__(self, name: str) -> None:
        self.live: set[R] = set()
        """Calls that were submitted and have neither ended nor been abandoned."""
        self.stopping: set[R] = set()
        """Calls that were cancelled and have not ended."""
        self.submitted: deque[R] = deque()
        self._unstarted: dict[R, bool] = {}
        self._tasks: dict[R, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    async def call(self, run: R) -> Any:
        """Run it, on the loop, and return its value."""

    @abstractmethod
    def on_end(self, run: R, value: Any, error: BaseException | None) -> None:
        """Report to the owner how it ended, on the loop. `error` may be a CancelledError."""

    def on_cancel(self, run: R, coroutine: Any) -> None:
        """Note where `coroutine`, which runs it, is: it is cancelled next. Called on the loop."""

    def submit(self, run: R) -> None:
        """Add it to what the next `start_submitted` starts."""
        run.worker = self
        self.live.add(run)
        self._unstarted[run] = True
        self.submitted.append(run)

    def start_submitted(self) -> None:
        """Start everything that was submitted since the last call, with one wake-up of the loop."""
        self._call_soon(self._start_submitted)

    def move_unstarted(self, other: Self) -> None:
        """Submit to another loop what this one has not started, except for what was cancelled."""
        for run in list(self._unstarted):
            if run not in self.stopping and self.claim(run):
                self.live.discard(run)
                if run.context is not None:  # This loop may still enter the context, which only one can do at a time.
                    run.context = run.context.copy()
                other.submit(run)

    def claim(self, run: R) -> bool:
        """Return whether it had not started. The caller then decides whether it ever does.

        This is one step under the GIL, so only one thread can claim it.
        """
        return self._unstarted.pop(run, False)

    def cancel(self, run: R, answered: threading.Event) -> None:
        """Cancel it; `answered` is set when the loop does so."""
        self.stopping.add(run)
        self._call_soon(self._cancel, run, answered)

    def discard(self, run: R) -> None:
        """Discard a call that has ended or is abandoned."""
        self.live.discard(run)
        self.stopping.discard(run)

    def stop(self) -> None:
        """Let the thread end as soon as it can."""
        self._call_soon(self._loop.stop)

    def position(self) -> str:
        """Return where the code is that its thread runs, in the form of a traceback."""
        return position_in(self._thread)

    def _call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed, and what ran on it was abandoned.
            self._loop.call_soon_threadsafe(callback, *args)

    # --- on its own thread ---

    def _run(self) -> None:
        try:
            while not self._run_until_stopped():
                pass
            self._cancel_leftovers()
        finally:
            self._loop.close()

    def _run_until_stopped(self) -> bool:
        """Run the loop. Return False if a task that a function started raised what asyncio does not catch."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            logger.warning("a task of a job raised what ends an event loop: the loop is started again", exc_info=True)
            return False
        return True

    def _cancel_leftovers(self) -> None:
        """Cancel abandoned coroutines, and tasks that functions left running, before the loop is closed."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=COROUTINE_STOP_TIMEOUT))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _start_submitted(self) -> None:
        for _ in range(len(self.submitted)):
            run = self.submitted.popleft()
            context = run.context  # Read first: a thread that claims it may replace the context.
            if run in self._unstarted:
                self._tasks[run] = self._loop.create_task(self._execute(run), context=context)

    async def _execute(self, run: R) -> None:
        if not self.claim(run):
            del self._tasks[run]
            return
        value, error = None, None
        try:
            value = await self.call(run)
        except BaseException as raised:
            error = with_own_frames(raised)
        self._tasks.pop(run, None)
        self.on_end(run, value, error)

    def _cancel(self, run: R, answered: threading.Event) -> None:
        answered.set()
        if self.claim(run):  # It never starts, so nothing else would report its end.
            self.on_end(run, None, asyncio.CancelledError())
        elif (task := self._tasks.get(run)) is not None:
            self.on_cancel(run, task.get_coro())
            task.cancel()
