"""Threads: light, and able to wait for many things at once, but not to be killed.

At its limit a function gets an exception raised in its thread, which reaches it at its next bytecode. If it is stuck
in C code or a blocking read it never does: the job then fails on time, and the thread is written off: replaced,
counted, logged with its stack. It is a daemon, so it holds up neither a flow's end nor the interpreter's. A function
that its thread has not come to when it is stopped never begins; one that had ended before is reported as it ended.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar

from executor_adapter.exceptions import SoftTimeoutError
from executor_adapter.job.model import Job
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor, WorkerPool
from executor_adapter.pools.in_process.call import bind, call_in_job

logger = logging.getLogger("executor_adapter.thread")

PIPELINE_DEPTH = 32
PIPELINE_SECONDS = 0.016
"""So many short jobs may lie ready behind a running one, and no more than take so long together."""

THREAD_STOP_TIMEOUT = 0.2
"""Seconds after which a thread that was told to stop, and has not, is written off; a shorter grace wins."""


class _Stop(BaseException):
    """Raised in a thread to end its function. A BaseException, so that `except Exception` lets it pass."""


class ThreadPool(WorkerPool):
    """Threads made when needed, up to max_workers, and kept."""

    name: ClassVar[str] = "thread"
    can_stop_soft: ClassVar[bool] = True

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.abandoned = 0
        self._idle: list[_Thread] = []
        self._busy: deque[_Thread] = deque()

    @classmethod
    def prepare(cls, job: Job) -> Callable[[], Any]:
        return bind(job)

    def start(self, assignment: Assignment) -> None:
        worker = self._idle.pop() if self._idle else _Thread(self)
        self.busy += 1
        self._busy.append(worker)
        worker.give(assignment)
        self.supervisor.started(assignment, self.supervisor.now())

    def queue_behind(self, assignment: Assignment) -> bool:
        for _ in range(len(self._busy)):
            self._busy.rotate(-1)
            worker = self._busy[-1]
            if worker.has_room():
                worker.give(assignment)
                return True
        return False

    def queues(self) -> Iterable[tuple[_Thread, Sequence[Assignment]]]:
        return ((worker, worker.assigned) for worker in self._busy)

    def recall(self, assignment: Assignment) -> bool:
        if assignment.worker is None or not assignment.worker.take_back(assignment):
            return False
        self.supervisor.handed_back(assignment)
        return True

    def interrupt(self, assignment: Assignment) -> None:
        worker: _Thread = assignment.worker
        logger.warning("soft_timeout reached:\n%s", worker.stack(), extra={"job_id": assignment.job.job_id})
        self.hand_back_behind(worker, assignment)
        worker.throw(assignment, SoftTimeoutError)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: _Thread = assignment.worker
        self.hand_back_behind(worker, assignment)
        if worker.take_back(assignment):
            if not worker.assigned:
                self._emptied(worker)
            self.supervisor.ended(assignment, Ending.STOPPED)
        elif assignment.ended_at is not None:
            assignment.stop_asked_at = None  # too late: how it ended is on its way
        elif worker.stopping is not assignment:
            worker.stopping = assignment
            worker.throw(assignment, _Stop)
            when = self.supervisor.now() + min(grace, THREAD_STOP_TIMEOUT)
            self.supervisor.call_at(when, functools.partial(self._abandon, worker, assignment))

    def hand_back_behind(self, worker: _Thread, running: Assignment) -> None:
        """Take back what has not begun, and let no more be laid behind `running`: an exception that is thrown at it
        cannot hit another then, should it end just now."""
        running.short = False
        for assignment in reversed(tuple(worker.assigned)):  # the last first: each goes back to the front of the queue
            if assignment is not running and worker.take_back(assignment):
                self.supervisor.handed_back(assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        for worker in self._idle:
            worker.dismiss()
        self._idle.clear()
        on_closed()

    # --- what threads report, on the supervisor's thread ---

    def finished(
        self, worker: _Thread, assignment: Assignment, ending: Ending, value: Any, error: BaseException | None
    ) -> None:
        if assignment not in worker.assigned:
            return  # written off, or reported twice
        worker.assigned.remove(assignment)
        if worker.stopping is assignment:
            # The stop may still be on its way to this thread: it is not given another function.
            self._part_with(worker)
            self.supervisor.ended(assignment, Ending.STOPPED)
        elif worker.assigned:
            self.supervisor.ended(assignment, ending, value, error)
            self.supervisor.started(worker.assigned[0], assignment.ended_at or self.supervisor.now())
        else:
            self._emptied(worker)
            self.supervisor.ended(assignment, ending, value, error)

    def _emptied(self, worker: _Thread) -> None:
        """It has no assignment left, and can be given another."""
        self.busy -= 1
        self._busy.remove(worker)
        self._idle.append(worker)

    def _abandon(self, worker: _Thread, assignment: Assignment) -> None:
        if assignment.ended_at is not None:
            return  # it has told so, though we may not have heard it yet
        self.abandoned += 1
        logger.error(
            "a thread cannot be stopped and is written off; it is stuck here:\n%s",
            worker.stack(),
            extra={"job_id": assignment.job.job_id},
        )
        worker.assigned.remove(assignment)
        self._part_with(worker)
        assignment.ended_at = self.supervisor.now()
        self.supervisor.ended(assignment, Ending.ABANDONED)

    def _part_with(self, worker: _Thread) -> None:
        """Give the thread nothing more."""
        self.busy -= 1
        self._busy.remove(worker)
        worker.dismiss()


class _Thread:
    """One thread and what was given to it. Its own thread runs `_run`; all else is the supervisor's."""

    def __init__(self, pool: ThreadPool) -> None:
        self.assigned: deque[Assignment] = deque()
        """What was given and is not known to be over; the first runs."""
        self.stopping: Assignment | None = None
        """The one that was told to stop while it ran: always the last of `assigned`."""
        self._asleep = False
        self._pool = pool
        self._todo: deque[Assignment] = deque()
        self._signals: SimpleQueue[bool] = SimpleQueue()
        self._running: Assignment | None = None
        self._thread = threading.Thread(target=self._run, name="executor-worker", daemon=True)
        self._thread.start()

    def give(self, assignment: Assignment) -> None:
        assignment.worker = self
        self.assigned.append(assignment)
        self._todo.append(assignment)
        if self._asleep:  # looked at after the append, and set before it looks at its list: no wake-up is missed
            self._asleep = False
            self._signals.put(True)

    def has_room(self) -> bool:
        running, laid = self.assigned[0], len(self.assigned)
        return (
            running.short
            and laid <= PIPELINE_DEPTH
            and laid * running.run_time.seconds <= PIPELINE_SECONDS
            and self.stopping is None
        )

    def take_back(self, assignment: Assignment) -> bool:
        try:
            self._todo.remove(assignment)  # the thread's popleft and this are each one step under the GIL
        except ValueError:
            return False
        self.assigned.remove(assignment)
        return True

    def dismiss(self) -> None:
        self._signals.put(False)

    def throw(self, assignment: Assignment, kind: type[BaseException]) -> None:
        if self._running is assignment and self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(kind))

    def stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(the thread is gone)"

    # --- on its own thread ---

    def _run(self) -> None:
        # A _Stop that arrives late, outside its function, ends the thread: it was to end anyway.
        with contextlib.suppress(_Stop):
            while True:
                try:
                    while self._todo:
                        self._execute(self._todo.popleft())
                    self._asleep = True
                    if not self._todo and not self._signals.get():
                        return
                    self._asleep = False
                except (IndexError, SoftTimeoutError):
                    pass  # taken back; too late for its function

    def _execute(self, assignment: Assignment) -> None:
        assignment.started_at = time.monotonic()
        self._running = assignment
        ending, value, error = Ending.RETURNED, None, None
        try:
            if self.stopping is assignment:  # told so when `throw` did not see it run yet
                raise _Stop
            value = self._call(assignment)
        except _Stop:
            ending = Ending.STOPPED
        except BaseException as raised:
            ending, error = Ending.RAISED, raised
        self._running = None
        while True:
            try:
                assignment.ended_at = time.monotonic()
                self._pool.supervisor.call_soon(self._pool.finished, self, assignment, ending, value, error)
                return
            except (_Stop, SoftTimeoutError):
                continue  # it came too late for the function, and must not lose its result

    def _call(self, assignment: Assignment) -> Any:
        # Without one it has a copy of its thread's: what it sets is not seen by the next.
        context = contextvars.copy_context() if assignment.context is None else assignment.context
        return context.run(call_in_job, assignment, self._pool.supervisor, self.is_stopping, assignment.payload)

    def is_stopping(self) -> bool:
        return self.stopping is not None and self.stopping is self._running
