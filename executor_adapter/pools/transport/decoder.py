"""Unpickles what workers send, on a thread of its own where that may run users' code.

Unpickling calls `__reduce__`, `__setstate__` and the like of users' classes. They may be slow or never end, and the
supervisor's thread enforces everybody's limits. So that thread unpickles plain data alone: a pickle that refers to no
code. All else is unpickled by a thread, in the order of its arrival. One that takes longer than SLOW_SECONDS keeps its
thread for itself, and those behind it get another.

A value that is being unpickled still belongs to its attempt: the time counts into its limits, and where the attempt is
stopped meanwhile it is abandoned, like a function in a stuck thread.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor, Timer
from executor_adapter.pools.patience import Patience

logger = logging.getLogger("executor_adapter.process")

SLOW_SECONDS = 0.1
"""Seconds after which an unpickling counts as slow."""
STOP_TIMEOUT = 0.2
"""Seconds after which the unpickling of a stopped attempt is abandoned; a shorter grace wins."""

Decode = Callable[[], Callable[[], None]]
"""Unpickles something, and returns a call that reports it to the supervisor."""


class Decoder:
    """Runs the decoding of one pool. Its thread starts when it is first needed. Supervisor thread only."""

    def __init__(self, supervisor: PoolSupervisor) -> None:
        self.abandoned = 0
        """Values that could not be unpickled in time."""
        self._supervisor = supervisor
        self.pending: dict[_Task, None] = {}
        """What is not decoded yet, in order."""
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = 0
        """Threads that take further tasks: one, or none before it is needed."""
        self._check: Timer | None = None

    def is_decoding(self, assignment: Assignment | None) -> bool:
        """Return whether anything of the attempt is not decoded yet, so that what follows must queue behind it."""
        return any(task.assignment is assignment for task in self.pending)

    def decode(self, assignment: Assignment | None, decode: Decode) -> None:
        """Run `decode` on the thread, and then what it returns on the supervisor's."""
        task = _Task(assignment, decode)
        self.pending[task] = None
        self._queue.put(task)
        if not self._threads:
            self._start_thread()
        if self._check is None:
            self._check_later()

    def stop(self, assignment: Assignment, grace: float) -> None:
        """Abandon the decoding of a stopped attempt, unless it is done within the grace."""
        if self.is_decoding(assignment):
            assignment.stop_asked_at = None  # The function had ended before.
            give_up = functools.partial(self._abandon, assignment)
            Patience(self._supervisor, min(grace, STOP_TIMEOUT), give_up)

    def close(self) -> None:
        """Let the thread end."""
        if self._threads:
            self._queue.put(None)
        if self._check is not None:
            self._check.cancel()

    def _abandon(self, assignment: Assignment) -> None:
        tasks = [task for task in self.pending if task.assignment is assignment]
        if tasks:
            for task in tasks:
                del self.pending[task]
            self.abandoned += 1
            logger.error("a value takes too long to unpickle and is abandoned", extra={"job_id": assignment.job.job_id})
            assignment.ended_at = self._supervisor.now()
            self._supervisor.ended(assignment, Ending.ABANDONED)

    # --- threads ---

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._run, name="executor-decoder", daemon=True).start()
        except RuntimeError:
            logger.warning("the system refuses a thread: results wait for it")
        else:
            self._threads += 1

    def _check_later(self) -> None:
        self._check = self._supervisor.call_at(self._supervisor.now() + SLOW_SECONDS, self._look)

    def _look(self) -> None:
        """Start a thread where there is none, or where the one there is takes long."""
        self._check = None
        for task in self.pending:
            if task.is_running and task.was_seen_running and not task.keeps_thread:
                task.keeps_thread = True
                self._threads -= 1
            task.was_seen_running = task.is_running
        if self.pending:
            if not self._threads:
                self._start_thread()
            self._check_later()

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            task.is_running = True
            report = task.decode()
            self._supervisor.call_soon(self._report, task, report)
            keeps_thread = task.keeps_thread
            del task, report  # Otherwise they would keep the value alive until the next one.
            if keeps_thread:
                return  # Another thread has taken its place.

    def _report(self, task: _Task, report: Callable[[], None]) -> None:
        if task in self.pending:  # Otherwise it was abandoned.
            del self.pending[task]
            report()


class _Task:
    __slots__ = ("assignment", "decode", "is_running", "keeps_thread", "was_seen_running")

    def __init__(self, assignment: Assignment | None, decode: Decode) -> None:
        self.assignment = assignment
        self.decode = decode
        self.is_running = self.was_seen_running = self.keeps_thread = False
