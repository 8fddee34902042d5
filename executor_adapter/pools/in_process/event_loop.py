"""An event loop in a thread of its own, which can be replaced when a coroutine blocks it.

The owner of the loop cancels what runs on it. A coroutine that ignores the cancellation is abandoned after its grace
period. If a coroutine blocks the loop, with `time.sleep` for example, the loop does not even answer, and the owner
replaces it by another.

Strangers share the loop, so what one coroutine does to it must not reach the others: a `stop` is undone, a cancel of
somebody else's tasks is ignored (see `job_tasks`), and if the loop is broken, what runs on it fails at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor  # Now: once the interpreter exits, this cannot be imported.
from typing import Any, Generic, Protocol, Self, TypeVar

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.pools.in_process.job_tasks import JobTask, TaskOwner, current_owner, task_of_current_owner
from executor_adapter.pools.in_process.stacks import position_in, with_own_frames
from executor_adapter.pools.transport.envelope import Outcome, failed, raised, returned

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


def _check_descriptors() -> None:
    """Check that there are descriptors for a loop: a half-made one raises again when it is collected.

    Raises:
        OSError: there are not.
    """
    with contextlib.ExitStack() as undo:
        for fd in (fd for _ in range(2) for fd in os.pipe()):
            undo.callback(os.close, fd)


class LoopThreads(ThreadPoolExecutor):
    """The threads of a loop for `asyncio.to_thread` and name look-ups, also while the interpreter exits.

    Jobs run to their end then, but the threads of the standard library take nothing more: a hook that needs one would
    fail again and again, and the program would wait for all of the delays between its retries.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call in a thread of the pool, or in one of its own once the pool takes nothing more."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
        future: Future[Any] = Future()
        threading.Thread(target=_run_into, args=(future, fn, args, kwargs), name="executor-loop", daemon=True).start()
        return future


def _run_into(future: Future[Any], fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)


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
        self.has_failed = False
        """Whether the loop broke, so that it runs nothing any more."""
        self._is_to_stop = False
        self._tasks: dict[R, asyncio.Task[None]] = {}
        _check_descriptors()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(LoopThreads())
        self._loop.set_task_factory(task_of_current_owner)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    @abstractmethod
    async def call(self, run: R) -> Any:
        """Run it, on the loop, and return its value."""

    @abstractmethod
    def job_id_of(self, run: R) -> str:
        """Return the id of the job that it belongs to."""

    @abstractmethod
    def on_end(self, run: R, outcome: Outcome) -> None:
        """Report to the owner how it ended, on the loop; an error may be a CancelledError."""

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
        if self.has_failed:  # It may have failed after its owner had looked, and has not seen these.
            self._fail_unstarted()

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
        self._is_to_stop = True
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
            while not self._is_to_stop:
                self._run_until_stopped()
            self._cancel_leftovers()
        except Exception as error:
            logger.exception("an event loop is broken: what runs on it fails, and later jobs run on another")
            self._fail_all(error)
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._loop.close()
        except Exception:
            logger.exception("a broken event loop cannot be closed")

    def _run_until_stopped(self) -> None:
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            logger.warning("a task of a job raised what ends an event loop: the loop is started again", exc_info=True)
        else:
            if not self._is_to_stop:
                logger.warning("a job stopped the event loop that it shares with other jobs: it is started again")

    def _fail_all(self, error: Exception) -> None:
        """Report the end of everything on a loop that runs no more."""
        self.has_failed = True
        for run in list(self._tasks):
            if self._tasks.pop(run, None) is not None and run not in self._unstarted:
                self.on_end(run, failed(WorkerCrashedError(f"its event loop broke: {repr_of(error)}")))
        self._fail_unstarted()

    def _fail_unstarted(self) -> None:
        for run in list(self._unstarted):
            if self.claim(run):
                self.on_end(run, failed(WorkerCrashedError("the event loop broke before it was started there")))

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
                owner = TaskOwner(self.job_id_of(run))
                self._tasks[run] = JobTask(self._execute(run, owner), owner=owner, loop=self._loop, context=context)

    async def _execute(self, run: R, owner: TaskOwner) -> None:
        if not self.claim(run):
            del self._tasks[run]
            return
        current_owner.set(owner)
        try:
            outcome = returned(await self.call(run))
        except BaseException as error:
            outcome = raised(with_own_frames(error))
        owner.is_running = False
        self._tasks.pop(run, None)
        self.on_end(run, outcome)
        del outcome  # The error's traceback may hold this frame: it would be a cycle.

    def _cancel(self, run: R, answered: threading.Event) -> None:
        answered.set()
        if self.claim(run):  # It never starts, so nothing else would report its end.
            self.on_end(run, raised(asyncio.CancelledError()))
        elif (task := self._tasks.get(run)) is not None:
            self.on_cancel(run, task.get_coro())
            task.cancel()
