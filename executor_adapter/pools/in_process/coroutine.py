"""The coroutine pool: runs coroutines on one event loop in a thread of its own, for jobs that wait for the network.

At its limit a coroutine is cancelled. A coroutine that has not started then never does, and one that had ended before
is reported as it ended. One that ignores the cancellation is abandoned after its grace period. A coroutine that blocks
the loop, with `time.sleep` for example, holds up all others. If the loop does not answer within the grace period it is
abandoned too. A new loop gets later jobs and those that had not started. What had started on the old loop continues
when it can, or ends at its own limit.

Strangers share the loop, so what one coroutine does to it must not reach the others: a `stop` is undone, a cancel of
somebody else's tasks is ignored (see `job_tasks`), and if the loop is broken, what runs on it fails at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor  # Now: once the interpreter exits, this cannot be imported.
from typing import Any, ClassVar

from executor_adapter.exceptions import InvalidJobError, WorkerCrashedError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import Job, is_coroutine_function
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, StartingPool
from executor_adapter.pools.in_process.call import bind, job_context, open_scope, report_abandoned
from executor_adapter.pools.in_process.job_tasks import JobTask, TaskOwner, current_owner
from executor_adapter.pools.in_process.slot_loan import SlotLoan, current_slot_loan
from executor_adapter.pools.in_process.stacks import position_in, with_own_frames
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.transport.envelope import STOPPED, Outcome, failed, raised, returned
from executor_adapter.worker.context import enter_job
from executor_adapter.worker.stacks import position_text

logger = logging.getLogger("executor_adapter.coroutine")

COROUTINE_STOP_TIMEOUT = 0.5
"""Seconds after which a cancelled coroutine that has not ended is abandoned; a shorter grace period wins."""

_NO_SCOPE = contextlib.nullcontext()


class CoroutinePool(StartingPool["CoroutineLoop"]):
    """Runs at most max_workers coroutines at once, each of which holds a slot."""

    name: ClassVar[str] = "coroutine"

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.abandoned = 0
        """Coroutines that could not be stopped."""
        self.loop: CoroutineLoop | None = None
        """The loop that runs new assignments."""

    @classmethod
    def prepare(cls, job: Job) -> Callable[[], Any]:
        if not is_coroutine_function(job.function):
            raise InvalidJobError(f"{job.function!r} is not a coroutine function: choose pool='thread' or 'process'")
        return bind(job)

    def get_worker(self, assignment: Assignment) -> CoroutineLoop:
        if self.loop is None or self.loop.has_failed:
            self.loop = CoroutineLoop(self)
        return self.loop

    def use(self, worker: CoroutineLoop, assignment: Assignment) -> None:
        worker.submit(assignment)
        if assignment.started_at is None:  # Otherwise it comes from a blocked loop.
            self.supervisor.started(assignment, self.supervisor.now())

    def start_waiting(self) -> None:
        super().start_waiting()
        self.flush()

    def recall(self, assignment: Assignment) -> Recall:
        return Recall.STARTED if assignment.worker is not None else self.recall_waiting(assignment)

    def flush(self) -> None:
        if self.loop is not None and self.loop.submitted:
            self.loop.start_submitted()

    def on_blocked(self, assignment: Assignment) -> None:
        self._replace(assignment.worker)

    def _replace(self, blocked: CoroutineLoop) -> None:
        """Run later jobs, and what this loop has not started, on another loop."""
        if blocked is self.loop:
            self.loop = None
            self.waiting += blocked.take_unstarted()
            self._refused_since = self.supervisor.now()
            self._on_retry_timer()  # It goes on where the system refuses a loop now, for lack of descriptors.
            if not blocked.live:  # What blocks it is no job, so no job's end stops it.
                blocked.stop()

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        loop: CoroutineLoop | None = assignment.worker
        if loop is None:
            self.end_waiting(assignment)
        elif assignment.ended_at is not None:
            assignment.stop_asked_at = None  # It ended before, and its report is on its way.
        elif assignment not in loop.stopping:
            answered = threading.Event()
            loop.cancel(assignment, answered)
            give_up = functools.partial(self._give_up, loop, assignment, answered)
            Patience(self.supervisor, min(grace, COROUTINE_STOP_TIMEOUT), give_up)
            if loop.claim(assignment):
                self._discard(loop, assignment)
                self.supervisor.ended(assignment, STOPPED)

    def _give_up(self, loop: CoroutineLoop, assignment: Assignment, answered: threading.Event) -> None:
        if not answered.is_set():
            self._replace(loop)
        self.abandon(loop, assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        if self.loop is not None:
            self.loop.stop()
            self.loop = None  # Found blocked from now on, it gets no successor, which nobody would stop.
        on_closed()

    # --- reports of the loop, on the supervisor's thread ---

    def on_finished(self, loop: CoroutineLoop, assignment: Assignment, outcome: Outcome) -> None:
        """Report the end of a coroutine, unless it was abandoned."""
        if assignment not in loop.live:
            return
        if assignment in loop.stopping:
            outcome = STOPPED
        self._discard(loop, assignment)
        self.supervisor.ended(assignment, outcome)

    def _discard(self, loop: CoroutineLoop, assignment: Assignment) -> None:
        """Free the slot of an assignment, and stop its loop if that is an old one without others."""
        self.busy -= 1
        loop.discard(assignment)
        if loop is not self.loop and not loop.live:
            loop.stop()

    def abandon(self, loop: CoroutineLoop, assignment: Assignment) -> None:
        if assignment not in loop.live or assignment.ended_at is not None:
            return  # It has ended, although its report may not have arrived yet.
        assignment.position = assignment.position or loop.position()
        self._discard(loop, assignment)
        self.abandoned += 1
        report_abandoned(assignment, self, assignment.position)


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


class CoroutineLoop:
    """An event loop in a daemon thread, and the assignments that were submitted to it.

    `live` and `stopping` belong to the supervisor's thread. `submitted` passes to the loop's thread, which owns
    `_tasks`. Both threads may `claim` what has not started.
    """

    def __init__(self, pool: CoroutinePool) -> None:
        self.live: set[Assignment] = set()
        """Assignments that were submitted and have neither ended nor been abandoned."""
        self.stopping: set[Assignment] = set()
        """Assignments that were cancelled and have not ended."""
        self.submitted: deque[Assignment] = deque()
        self._unstarted: dict[Assignment, bool] = {}
        self.has_failed = False
        """Whether the loop broke, so that it runs nothing any more."""
        self._pool = pool
        self._is_to_stop = False
        self._tasks: dict[Assignment, asyncio.Task[None]] = {}
        _check_descriptors()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(LoopThreads())
        self._loop.set_task_factory(JobTask)
        self._thread = threading.Thread(target=self._run, name="executor-coroutines", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def submit(self, assignment: Assignment) -> None:
        """Add an assignment to what the next `start_submitted` starts."""
        assignment.worker = self
        self.live.add(assignment)
        self._unstarted[assignment] = True
        self.submitted.append(assignment)

    def start_submitted(self) -> None:
        """Start everything that was submitted since the last call, with one wake-up of the loop."""
        self._call_soon(self._start_submitted)
        if self.has_failed:  # It may have failed after the pool had looked, and has not seen these.
            self._fail_unstarted()

    def take_unstarted(self) -> Iterator[Assignment]:
        """Take back what this loop has not started, except for what was cancelled."""
        for assignment in list(self._unstarted):
            if assignment not in self.stopping and self.claim(assignment):
                self.live.discard(assignment)
                assignment.worker = None
                # This loop may still enter the context, which only one can do at a time.
                if assignment.context is not None:
                    assignment.context = assignment.context.copy()
                yield assignment

    def claim(self, assignment: Assignment) -> bool:
        """Return whether it had not started. The caller then decides whether it ever does.

        This is one step under the GIL, so only one thread can claim it.
        """
        return self._unstarted.pop(assignment, False)

    def cancel(self, assignment: Assignment, answered: threading.Event) -> None:
        """Cancel it; `answered` is set when the loop does so."""
        self.stopping.add(assignment)
        self._call_soon(self._cancel, assignment, answered)

    def discard(self, assignment: Assignment) -> None:
        """Discard an assignment that has ended or is abandoned."""
        self.live.discard(assignment)
        self.stopping.discard(assignment)

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
        for assignment in list(self._tasks):
            if self._tasks.pop(assignment, None) is not None and assignment not in self._unstarted:
                self._report(assignment, failed(WorkerCrashedError(f"its event loop broke: {repr_of(error)}")))
        self._fail_unstarted()

    def _fail_unstarted(self) -> None:
        for assignment in list(self._unstarted):
            if self.claim(assignment):
                self._report(assignment, failed(WorkerCrashedError("the event loop broke before it was started there")))

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
            assignment = self.submitted.popleft()
            context = assignment.context  # Read first: a thread that claims it may replace the context.
            if assignment in self._unstarted:
                owner = TaskOwner(assignment.job.job_id)
                task = JobTask(self._loop, self._execute(assignment, owner), owner=owner, context=context)
                self._tasks[assignment] = task

    async def _execute(self, assignment: Assignment, owner: TaskOwner) -> None:
        if not self.claim(assignment):
            del self._tasks[assignment]
            return
        current_owner.set(owner)
        try:
            outcome = returned(await self._call(assignment))
        except BaseException as error:  # A CancelledError is an error like any other, if the pool did not cancel it.
            outcome = raised(with_own_frames(error))
        owner.is_running = False
        self._tasks.pop(assignment, None)
        self._report(assignment, outcome)
        del outcome  # The error's traceback may hold this frame: it would be a cycle.

    async def _call(self, assignment: Assignment) -> Any:
        assignment.started_at = time.monotonic()
        supervisor = self._pool.supervisor
        # A task has a context of its own, so there is no need for `leave_job`.
        enter_job(job_context(assignment, supervisor, lambda: assignment in self.stopping))
        current_slot_loan.set(SlotLoan(supervisor, assignment))
        with _NO_SCOPE if assignment.scope is None else open_scope(assignment.job, assignment.scope):
            return await assignment.payload()

    def _report(self, assignment: Assignment, outcome: Outcome) -> None:
        assignment.ended_at = time.monotonic()
        self._pool.supervisor.call_soon(self._pool.on_finished, self, assignment, outcome)

    def _cancel(self, assignment: Assignment, answered: threading.Event) -> None:
        answered.set()
        if self.claim(assignment):  # It never starts, so nothing else would report its end.
            self._report(assignment, raised(asyncio.CancelledError()))
        elif (task := self._tasks.get(assignment)) is not None:
            coroutine: Any = task.get_coro()
            assignment.position = position_text(None, coroutine)
            task.cancel()
