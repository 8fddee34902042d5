"""Coroutines on one event loop, in a thread of its own: for jobs that wait for the network.

At its limit a coroutine is cancelled. One that swallows the cancellation is written off after its grace. One that
blocks the loop, with a `time.sleep` say, holds up all others of it: once it is past its limit the loop is written
off too, and the next job gets a new one; what waits on the old one goes on when it can, or ends at its own limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from executor_adapter.context import enter_job
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.functions import is_coroutine_function
from executor_adapter.job import Job
from executor_adapter.pools.base import Assignment, Ending, Supervisor, WorkerPool
from executor_adapter.pools.in_process import bind, job_context, open_scope

logger = logging.getLogger("executor_adapter.coroutine")

ABANDON_AFTER = 0.5
"""Seconds after which a coroutine that was cancelled, and goes on, is written off; a shorter grace wins."""


class CoroutinePool(WorkerPool):
    """At most max_workers coroutines at once, each holding a slot."""

    name: ClassVar[str] = "coroutine"

    def __init__(self, supervisor: Supervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.abandoned = 0
        self._loop: _LoopThread | None = None

    @classmethod
    def prepare(cls, job: Job) -> Callable[[], Any]:
        if not is_coroutine_function(job.function):
            raise InvalidJobError(f"{job.function!r} is no coroutine function: choose pool='thread' or 'process'")
        return bind(job)

    def start(self, assignment: Assignment) -> None:
        if self._loop is None:
            self._loop = _LoopThread(self)
        self.busy += 1
        assignment.worker = self._loop
        self._loop.live.add(assignment)
        self._loop.given.append(assignment)
        self.supervisor.started(assignment, self.supervisor.now())

    def flush(self) -> None:
        if self._loop is not None and self._loop.given:
            self._loop.begin_given()

    def waits(self, assignment: Assignment) -> None:
        if self._loop is assignment.worker:
            blocked, self._loop = self._loop, _LoopThread(self)
            blocked.pass_on(self._loop)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        loop: _LoopThread = assignment.worker
        if assignment not in loop.stopping:
            loop.stopping.add(assignment)
            answered = threading.Event()
            loop.cancel(assignment, answered)
            when = self.supervisor.now() + min(grace, ABANDON_AFTER)
            self.supervisor.call_at(when, functools.partial(self._abandon, loop, assignment, answered))

    def close(self, on_closed: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.dismiss()
        on_closed()

    # --- what the loop reports, on the supervisor's thread ---

    def finished(
        self, loop: _LoopThread, assignment: Assignment, ending: Ending, value: Any, error: BaseException | None
    ) -> None:
        if assignment not in loop.live:
            return  # written off
        if assignment in loop.stopping:
            ending = Ending.STOPPED
        self._part_with(loop, assignment)
        self.supervisor.ended(assignment, ending, value, error)

    def _part_with(self, loop: _LoopThread, assignment: Assignment) -> None:
        self.busy -= 1
        loop.live.discard(assignment)
        loop.stopping.discard(assignment)
        if loop is not self._loop and not loop.live:
            loop.dismiss()

    def _abandon(self, loop: _LoopThread, assignment: Assignment, answered: threading.Event) -> None:
        if assignment not in loop.live:
            return
        self.abandoned += 1
        if not answered.is_set() and loop is self._loop:
            self._loop = None
        logger.error(
            "a coroutine cannot be stopped and is written off; its event loop is here:\n%s",
            loop.stack(),
            extra={"job_id": assignment.job.job_id},
        )
        self._part_with(loop, assignment)
        assignment.ended_at = self.supervisor.now()
        self.supervisor.ended(assignment, Ending.ABANDONED)


class _LoopThread:
    """An event loop, its thread and the assignments on it.

    `live` and `stopping` are the supervisor's; `given` passes to the loop's thread, which owns `_tasks`.
    """

    def __init__(self, pool: CoroutinePool) -> None:
        self.live: set[Assignment] = set()
        self.stopping: set[Assignment] = set()
        self.given: deque[Assignment] = deque()
        self._pool = pool
        self._tasks: dict[Assignment, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="executor-coroutines", daemon=True)
        self._thread.start()

    def begin_given(self) -> None:
        """Begin all that was given since the last call: one wake-up of the loop for all of it."""
        self._call_soon(self._begin_given)

    def pass_on(self, other: _LoopThread) -> None:
        """Let another loop have what this one has not begun, but for what it was told to end."""
        for assignment in list(self.given):
            if assignment in self.stopping:
                continue
            try:
                self.given.remove(assignment)  # this and the loop's popleft are each one step under the GIL
            except ValueError:
                continue
            self.live.discard(assignment)
            assignment.worker = other
            other.live.add(assignment)
            other.given.append(assignment)

    def cancel(self, assignment: Assignment, answered: threading.Event) -> None:
        self._call_soon(self._cancel, assignment, answered)

    def dismiss(self) -> None:
        self._call_soon(self._loop.stop)

    def stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(the thread is gone)"

    def _call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: what ran on it was written off
            self._loop.call_soon_threadsafe(callback, *args)

    # --- on its own thread ---

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._cancel_leftovers()
        finally:
            self._loop.close()

    def _cancel_leftovers(self) -> None:
        """Written-off coroutines, and tasks that users' functions left running, end with the loop."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=ABANDON_AFTER))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _begin_given(self) -> None:
        for _ in range(len(self.given)):
            try:
                assignment = self.given.popleft()
            except IndexError:
                return  # passed on meanwhile
            self._tasks[assignment] = self._loop.create_task(self._execute(assignment), context=assignment.context)

    def _cancel(self, assignment: Assignment, answered: threading.Event) -> None:
        answered.set()
        task = self._tasks.get(assignment)
        if task is not None:
            task.cancel()

    async def _execute(self, assignment: Assignment) -> None:
        assignment.started_at = time.monotonic()
        ending, value = Ending.RETURNED, None
        error: BaseException | None = None
        try:
            value = await self._call(assignment)
        except BaseException as raised:
            # A CancelledError too: cancelled by itself, not by us, it is an error like any other.
            ending, error = Ending.RAISED, raised
        assignment.ended_at = time.monotonic()
        self._tasks.pop(assignment, None)
        self._pool.supervisor.call_soon(self._pool.finished, self, assignment, ending, value, error)

    async def _call(self, assignment: Assignment) -> Any:
        # A task has a context of its own: nothing to leave afterwards.
        enter_job(job_context(assignment, self._pool.supervisor, lambda: assignment in self.stopping))
        coroutine: Coroutine[Any, Any, Any] = assignment.payload()
        if assignment.scope is None:
            return await coroutine
        with open_scope(assignment):
            return await coroutine
