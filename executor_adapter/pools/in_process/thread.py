"""The thread pool: runs functions in threads, which can wait for many things at once but cannot be killed.

At its limit a function gets an exception raised in its thread, which it sees at its next bytecode. A function that is
stuck in C code or a blocking read never sees it. Then the job fails on time and the thread is abandoned: replaced,
counted, and logged with its stack. Threads are daemons, so they delay neither a flow's end nor the interpreter's. A
function that has not started when it is stopped never does; one that had ended before is reported as it ended.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import ClassVar

from executor_adapter.exceptions import SoftTimeoutError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, StartingPool
from executor_adapter.pools.in_process.call import Stop, bind, call_in_job, report_abandoned
from executor_adapter.pools.in_process.stacks import is_acquiring, position_in
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.transport.envelope import STOPPED, Outcome, raised

logger = logging.getLogger("executor_adapter.thread")

RAISE_INTERVAL = 0.02
"""Seconds after which a thread that took a lock is looked at again, to raise an exception in it."""
THREAD_STOP_TIMEOUT = 0.2
"""Seconds after which a thread that was asked to stop, and has not, is abandoned; a shorter grace period wins."""


class ThreadPool(StartingPool["WorkerThread"]):
    """Starts threads when they are needed, up to max_workers, and keeps them."""

    name: ClassVar[str] = "thread"
    can_stop_soft: ClassVar[bool] = True
    needs_flush = False
    prepare = staticmethod(bind)

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.abandoned = 0
        """Threads that could not be stopped."""
        self.idle_threads: list[WorkerThread] = []
        self.busy_threads: deque[WorkerThread] = deque()

    def get_worker(self, assignment: Assignment) -> WorkerThread:
        return self.idle_threads.pop() if self.idle_threads else WorkerThread(self)

    def has_workers(self) -> bool:
        return bool(self.busy_threads)

    def use(self, worker: WorkerThread, assignment: Assignment) -> None:
        self.busy_threads.append(worker)
        worker.assign(assignment)
        self.supervisor.started(assignment, self.supervisor.now())

    def resize(self, max_workers: int) -> None:
        super().resize(max_workers)
        while len(self.idle_threads) > max_workers:
            self.idle_threads.pop().end()

    def queue_behind(self, assignment: Assignment) -> bool:
        for _ in range(len(self.busy_threads)):
            self.busy_threads.rotate(-1)
            worker = self.busy_threads[-1]
            if worker.has_room():
                worker.assign(assignment)
                return True
        return False

    def queues(self) -> Iterable[tuple[WorkerThread, Sequence[Assignment]]]:
        return ((worker, worker.assigned) for worker in self.busy_threads)

    def recall(self, assignment: Assignment) -> Recall:
        worker: WorkerThread | None = assignment.worker
        if worker is None:
            return self.recall_waiting(assignment)
        if not worker.take_back(assignment):
            return Recall.STARTED
        self.supervisor.handed_back(assignment)
        return Recall.TAKEN_BACK

    def interrupt(self, assignment: Assignment) -> bool:
        worker: WorkerThread = assignment.worker
        logger.warning(
            "the function passed its soft_timeout here:\n%s",
            worker.position(assignment),
            extra={"job_id": assignment.job.job_id},
        )
        self.hand_back_behind(worker, assignment)
        worker.interrupted = assignment
        worker.raise_in(assignment, SoftTimeoutError)
        return True

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: WorkerThread | None = assignment.worker
        if worker is None:
            self.end_waiting(assignment)
            return
        self.hand_back_behind(worker, assignment)
        if worker.take_back(assignment):
            if not worker.assigned:
                self._release(worker)
            self.supervisor.ended(assignment, STOPPED)
        elif assignment.ended_at is not None:
            assignment.stop_asked_at = None  # It ended before, and its report is on its way.
        elif worker.stopping is not assignment:
            worker.stopping = assignment
            assignment.position = worker.position(assignment)
            worker.raise_in(assignment, Stop)
            seconds = min(grace, THREAD_STOP_TIMEOUT)
            Patience(self.supervisor, seconds, functools.partial(self.abandon, worker, assignment))

    def on_blocked(self, assignment: Assignment) -> None:
        self.hand_back_behind(assignment.worker, assignment)

    def hand_back_behind(self, worker: WorkerThread, running: Assignment) -> None:
        """Hand back what has not started, and queue nothing more behind `running`.

        So an exception that is raised in its thread cannot reach another function, if it ends just now.
        """
        running.max_behind = 0
        # The last one goes first, since each goes to the front of the queue.
        for assignment in reversed(tuple(worker.assigned)):
            if assignment is not running and worker.take_back(assignment):
                self.supervisor.handed_back(assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        for worker in self.idle_threads:
            worker.end()
        self.idle_threads.clear()
        on_closed()

    # --- reports of threads, on the supervisor's thread ---

    def on_finished(self, worker: WorkerThread) -> None:
        """Report the functions that have ended, but for those that were abandoned, and then the one that runs now."""
        ended = []
        while worker.finished:
            assignment, outcome = worker.finished.popleft()
            if assignment in worker.assigned:
                worker.assigned.remove(assignment)
                ended.append((assignment, STOPPED if worker.stopping is assignment else outcome))
        if not ended:
            return
        running = worker.assigned[0] if worker.assigned else None
        if running is None:
            # A Stop may still be on its way to the thread, which then gets no other function.
            self._release(worker, keep=worker.stopping is None)
        for assignment, outcome in ended:
            self.supervisor.ended(assignment, outcome)
        if running is not None and running in worker.assigned:  # A report may have had it taken back.
            self.supervisor.started(running, ended[-1][0].ended_at or self.supervisor.now())

    def _release(self, worker: WorkerThread, *, keep: bool = True) -> None:
        """Free the slot of a thread that has no assignments left, and `keep` it for others or let it end."""
        self.busy -= 1
        self.busy_threads.remove(worker)
        if keep and len(self.idle_threads) < self.max_workers:
            self.idle_threads.append(worker)
        else:
            worker.end()
        if self.waiting:
            self.start_waiting()

    def abandon(self, worker: WorkerThread, assignment: Assignment) -> None:
        """Give up on a thread that was asked to stop, unless its function has ended."""
        if assignment.ended_at is not None:
            return  # Its report may not have arrived yet.
        worker.assigned.remove(assignment)
        self._release(worker, keep=False)
        self.abandoned += 1
        report_abandoned(assignment, self, worker.position(assignment))


class WorkerThread:
    """One thread and its assignments. Its own thread runs `_run`; the supervisor's thread calls everything else."""

    def __init__(self, pool: ThreadPool) -> None:
        self.assigned: deque[Assignment] = deque()
        """Assignments that are not reported as ended; the first one runs."""
        self.stopping: Assignment | None = None
        """The assignment that was asked to stop while it ran, always the last of `assigned`."""
        self.interrupted: Assignment | None = None
        """The assignment that passed its soft_timeout last."""
        self.finished: deque[tuple[Assignment, Outcome]] = deque()
        """What has ended and is not reported yet."""
        self.asleep = False
        self.wake_ups: SimpleQueue[bool] = SimpleQueue()
        """True when there is something to do, False when the thread should end."""
        self._pool = pool
        self._todo: deque[Assignment] = deque()
        self._running: Assignment | None = None
        self._thread = threading.Thread(target=self._run, name="executor-worker", daemon=True)
        self._thread.start()

    def assign(self, assignment: Assignment) -> None:
        """Add an assignment, and wake the thread if it sleeps."""
        assignment.worker = self
        self.assigned.append(assignment)
        self._todo.append(assignment)
        # Read after the append, while the thread sets it before it reads the list: no wake-up is missed.
        if self.asleep:
            self.asleep = False
            self.wake_ups.put(True)

    def has_room(self) -> bool:
        """Return whether another short job may be queued behind those it has."""
        return len(self.assigned) <= self.assigned[0].max_behind and self.stopping is None

    def take_back(self, assignment: Assignment) -> bool:
        """Take back an assignment. Return False if it has started."""
        try:
            self._todo.remove(assignment)  # This and the thread's popleft are each one step under the GIL.
        except ValueError:
            return False
        self.assigned.remove(assignment)
        return True

    def end(self) -> None:
        """Let the thread end when it has nothing left to do."""
        self.wake_ups.put(False)

    def raise_in(self, assignment: Assignment, kind: type[BaseException], interval: float = RAISE_INTERVAL) -> None:
        """Raise an exception in the thread, if it runs the assignment's function, and as soon as it takes no lock.

        `interval`: seconds until it is tried again; it may be abandoned, so each time they are twice as long.
        """
        if self._running is not assignment or self._thread.ident is None:
            return
        if is_acquiring(self._thread):
            again = functools.partial(self.raise_in, assignment, kind, 2 * interval)
            self._pool.supervisor.call_at(self._pool.supervisor.now() + interval, again)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(kind))

    def position(self, assignment: Assignment) -> str:
        """Return where the function of the assignment that it runs is, in the form of a traceback."""
        return position_in(self._thread, assignment.coroutine)

    # --- on its own thread ---

    def _run(self) -> None:
        # A Stop that arrives late, outside its function, ends the thread, which is not used again anyway.
        with contextlib.suppress(Stop):
            while True:
                try:
                    while self._todo:
                        self._execute(self._todo.popleft())
                    self.asleep = True
                    if not self._todo and not self.wake_ups.get():
                        return
                    self.asleep = False
                except (IndexError, SoftTimeoutError):
                    pass  # The assignment was taken back; the exception came too late for its function.

    def _execute(self, assignment: Assignment) -> None:
        assignment.started_at = time.monotonic()
        self._running = assignment
        try:
            if self.stopping is assignment:  # `raise_in` was called before `_running` was set
                raise Stop
            if self.interrupted is assignment:
                raise SoftTimeoutError
            # Without a context of its own it gets a copy of the thread's: the next function does not see what it sets.
            context = contextvars.copy_context() if assignment.context is None else assignment.context
            supervisor, call = self._pool.supervisor, assignment.payload
            outcome = context.run(call_in_job, assignment, supervisor, self.is_stopping, call)
        except Stop:
            outcome = STOPPED
        except BaseException as error:  # SoftTimeoutError, which came while the outcome was made.
            outcome = raised(error)
        self._running = None
        is_asked_again = False
        while True:
            try:
                assignment.ended_at = time.monotonic()
                self.finished.append((assignment, outcome))
                outcome = STOPPED  # The frames of an error's traceback lead to this one: it would be a cycle.
                # The supervisor reads until nothing is left, so what ended before this has asked it to.
                if len(self.finished) == 1 or is_asked_again:
                    self._pool.supervisor.call_soon(self._pool.on_finished, self)
                return
            except (Stop, SoftTimeoutError):
                is_asked_again = True  # It came too late for the function, and must not prevent the report.

    def is_stopping(self) -> bool:
        """Return whether the running function was asked to stop."""
        return self.stopping is not None and self.stopping is self._running
