"""Threads: light, and able to wait for many things at once, but not to be killed.

At its limit a function gets an exception raised in its thread, which reaches it at its next bytecode. If it is stuck
in C code or a blocking read it never does: the job then fails on time, and the thread is written off: replaced,
counted, logged with its stack. It is a daemon, so it holds up neither a flow's end nor the interpreter's.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ClassVar

from executor_adapter.exceptions import SoftTimeoutError
from executor_adapter.job import Job
from executor_adapter.pools.base import Assignment, Ending, Supervisor, WorkerPool
from executor_adapter.pools.in_process import bind, call_in_job

logger = logging.getLogger("executor_adapter.thread")

PIPELINE_DEPTH = 8
"""Short jobs that may lie ready behind a running one."""

ABANDON_AFTER = 0.2
"""Seconds after which a thread that was told to stop, and has not, is written off; a shorter grace wins."""


class _Stop(BaseException):
    """Raised in a thread to end its function. A BaseException, so that `except Exception` lets it pass."""


class ThreadPool(WorkerPool):
    """Threads made when needed, up to max_workers, and kept."""

    name: ClassVar[str] = "thread"
    can_stop_soft: ClassVar[bool] = True

    def __init__(self, supervisor: Supervisor, max_workers: int) -> None:
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

    def start_behind(self, assignment: Assignment) -> bool:
        for _ in range(len(self._busy)):
            self._busy.rotate(-1)
            worker = self._busy[-1]
            if worker.has_room():
                worker.give(assignment)
                return True
        return False

    def recall(self, assignment: Assignment) -> bool:
        if assignment.worker is None or not assignment.worker.take_back(assignment):
            return False
        self.supervisor.handed_back(assignment)
        return True

    def interrupt(self, assignment: Assignment) -> None:
        worker: _Thread = assignment.worker
        logger.warning("soft_timeout reached:\n%s", worker.stack(), extra={"job_id": assignment.job.job_id})
        worker.throw(assignment, SoftTimeoutError)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: _Thread = assignment.worker
        if not worker.stopping:
            worker.stopping = True
            worker.throw(assignment, _Stop)
            when = self.supervisor.now() + min(grace, ABANDON_AFTER)
            self.supervisor.call_at(when, functools.partial(self._abandon, worker, assignment))

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
        if worker.stopping:
            # A stop may still be on its way to this thread: it is not given another function.
            self._part_with(worker)
            self.supervisor.ended(assignment, Ending.STOPPED)
            return
        if worker.assigned:
            self.supervisor.ended(assignment, ending, value, error)
            self.supervisor.started(worker.assigned[0], assignment.ended_at or self.supervisor.now())
            return
        self.busy -= 1
        self._busy.remove(worker)
        self._idle.append(worker)
        self.supervisor.ended(assignment, ending, value, error)

    def _abandon(self, worker: _Thread, assignment: Assignment) -> None:
        if assignment not in worker.assigned or worker.abandoned:
            return
        worker.abandoned = True
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
        """Give the thread nothing more, and take back what lies ready behind what it runs."""
        self.busy -= 1
        self._busy.remove(worker)
        worker.dismiss()
        for assignment in list(worker.assigned):
            worker.take_back(assignment)
            self.supervisor.handed_back(assignment)


class _Thread:
    """One thread and what was given to it. Its own thread runs `_run`; all else is the supervisor's."""

    def __init__(self, pool: ThreadPool) -> None:
        self.assigned: deque[Assignment] = deque()
        """What was given and is not known to be over; the first runs."""
        self.stopping = False
        self.abandoned = False
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
        self._signals.put(True)

    def has_room(self) -> bool:
        return len(self.assigned) <= PIPELINE_DEPTH and not self.stopping and self.assigned[0].short

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
            while self._signals.get():
                try:  # noqa: SIM105 - once a job, and a context manager takes as long as all the rest
                    self._execute(self._todo.popleft())
                except (IndexError, SoftTimeoutError):
                    pass  # taken back; too late for its function

    def _execute(self, assignment: Assignment) -> None:
        assignment.started_at = time.monotonic()
        self._running = assignment
        ending, value, error = Ending.RETURNED, None, None
        try:
            value = self._call(assignment)
        except _Stop:
            ending = Ending.STOPPED
        except BaseException as raised:
            ending, error = Ending.RAISED, raised
        self._running = None
        assignment.ended_at = time.monotonic()
        self._report(assignment, ending, value, error)

    def _report(self, assignment: Assignment, ending: Ending, value: Any, error: BaseException | None) -> None:
        while True:
            try:
                self._pool.supervisor.call_soon(self._pool.finished, self, assignment, ending, value, error)
                return
            except SoftTimeoutError:
                continue  # it came too late for the function, and must not lose its result

    def _call(self, assignment: Assignment) -> Any:
        how = (assignment, self._pool.supervisor, self.is_stopping, assignment.payload)
        return call_in_job(*how) if assignment.context is None else assignment.context.run(call_in_job, *how)

    def is_stopping(self) -> bool:
        return self.stopping
