"""An event loop in a thread of its own, and what it takes to get rid of one: shared by all that run coroutines.

What runs there is cancelled at its owner's word. A coroutine that swallows that is written off after its grace; where
it blocks the loop, with a `time.sleep` say, the loop does not even answer, and has to be replaced by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar

logger = logging.getLogger("executor_adapter.coroutine")

COROUTINE_STOP_TIMEOUT = 0.5
"""Seconds after which a coroutine that was cancelled, and goes on, is written off; a shorter grace wins."""


class Run(Protocol):
    """What a loop is given to run."""

    worker: Any
    """The loop it was given to."""

    context: contextvars.Context | None
    """The context variables that it sees; None: those of nobody."""


R = TypeVar("R", bound=Run)


class EventLoopThread(ABC, Generic[R]):
    """A loop, its thread, a daemon, and what was given to it.

    `live` and `stopping` belong to the one thread that gives, cancels and dismisses; `given` passes to the loop's
    thread, which owns `_tasks`. Both may `claim` what has not begun.
    """

    def __init__(self, name: str) -> None:
        self.live: set[R] = set()
        self.stopping: set[R] = set()
        self.submitted: deque[R] = deque()
        self._unbegun: dict[R, bool] = {}
        self._tasks: dict[R, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    async def call(self, run: R) -> Any:
        """What is to be run, on the loop."""

    @abstractmethod
    def on_end(self, run: R, value: Any, error: BaseException | None) -> None:
        """Tell the owner how it ended; on the loop. `error` may be a CancelledError."""

    def submit(self, run: R) -> None:
        """It is to begin with the next `start_submitted`."""
        run.worker = self
        self.live.add(run)
        self._unbegun[run] = True
        self.submitted.append(run)

    def start_submitted(self) -> None:
        """Begin all that was given since the last call: one wake-up of the loop for all of it."""
        self._call_soon(self._start_submitted)

    def move_unstarted(self, other: Self) -> None:
        """Let another loop have what this one has not begun, but for what it was told to end."""
        for run in list(self._unbegun):
            if run not in self.stopping and self.claim(run):
                self.live.discard(run)
                if run.context is not None:  # this loop may still enter its own, and only one can at a time
                    run.context = run.context.copy()
                other.submit(run)

    def claim(self, run: R) -> bool:
        """Whether it had not begun: who claims it says whether it ever does. One step under the GIL."""
        return self._unbegun.pop(run, False)

    def cancel(self, run: R, answered: threading.Event) -> None:
        """Cancel it; `answered` is set once the loop has come to do so."""
        self.stopping.add(run)
        self._call_soon(self._cancel, run, answered)

    def discard(self, run: R) -> None:
        """It is over, or written off."""
        self.live.discard(run)
        self.stopping.discard(run)

    def stop(self) -> None:
        """Let the thread end, as soon as it can."""
        self._call_soon(self._loop.stop)

    def stack(self) -> str:
        """Where its thread is now."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(the thread is gone)"

    def _call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: what ran on it was written off
            self._loop.call_soon_threadsafe(callback, *args)

    # --- on its own thread ---

    def _run(self) -> None:
        try:
            while not self._runs_to_its_stop():
                pass
            self._cancel_leftovers()
        finally:
            self._loop.close()

    def _runs_to_its_stop(self) -> bool:
        """False where a task that a function started, and not the function itself, raised what asyncio lets through."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            logger.warning("a task of a job raised what ends an event loop: it goes on", exc_info=True)
            return False
        return True

    def _cancel_leftovers(self) -> None:
        """Written-off coroutines, and tasks that users' functions left running, end with the loop."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=COROUTINE_STOP_TIMEOUT))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _start_submitted(self) -> None:
        for _ in range(len(self.submitted)):
            run = self.submitted.popleft()
            context = run.context  # looked at first: whoever claims it may give it another
            if run in self._unbegun:
                self._tasks[run] = self._loop.create_task(self._execute(run), context=context)

    async def _execute(self, run: R) -> None:
        if not self.claim(run):
            del self._tasks[run]
            return
        value, error = None, None
        try:
            value = await self.call(run)
        except BaseException as raised:
            error = raised
        self._tasks.pop(run, None)
        self.on_end(run, value, error)

    def _cancel(self, run: R, answered: threading.Event) -> None:
        answered.set()
        if self.claim(run):  # it never begins, and so would not say that it ended
            self.on_end(run, None, asyncio.CancelledError())
        elif (task := self._tasks.get(run)) is not None:
            task.cancel()
