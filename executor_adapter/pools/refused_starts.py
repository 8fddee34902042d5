"""Assignments that wait because the system refuses what their worker needs: a process, a thread, a descriptor."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.exceptions.display import repr_of, text_of
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.transport.envelope import crashed

logger = logging.getLogger("executor_adapter")

RETRY_INTERVAL = 0.25
"""Seconds between two attempts to start what was refused."""
REFUSED_TIMEOUT = 5.0
"""Seconds for which a pool without any worker tries; then what waits fails. With a worker, it waits for that one."""

REFUSALS = (OSError, RuntimeError)
"""What a refused descriptor or process raises, and a refused thread."""


W = TypeVar("W")


class RefusedStarts(Generic[W]):
    """Starts assignments in order, and keeps those for which the system refuses a worker now.

    They are tried again in intervals, and when `retry` is called because a worker has become free. While the pool has
    workers, they wait for as long as it takes; otherwise they fail after REFUSED_TIMEOUT.

    Args:
        supervisor: the supervisor.
        get_worker: returns a worker for an assignment; raises one of REFUSALS if none can be started.
        use: gives the assignment to the worker.
        has_workers: whether the pool has a worker that may become free.
        forget: frees what the pool holds for an assignment that fails.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        get_worker: Callable[[Assignment], W],
        use: Callable[[W, Assignment], None],
        has_workers: Callable[[], bool],
        forget: Callable[[], None],
    ) -> None:
        self._supervisor = supervisor
        self._get_worker = get_worker
        self._use = use
        self._has_workers = has_workers
        self._forget = forget
        self._waiting: deque[Assignment] = deque()
        self._refused_since = 0.0
        self._timer: Timer | None = None

    def start(self, assignment: Assignment) -> None:
        """Start an assignment, or let it wait."""
        if self._waiting:
            self._waiting.append(assignment)
            return
        try:
            worker = self._get_worker(assignment)
        except REFUSALS as error:
            logger.warning("the system refuses another worker (%s): jobs wait for one", text_of(error))
            self._refused_since = self._supervisor.now()
            self._waiting.append(assignment)
            self._try_later()
        else:
            self._use(worker, assignment)

    def retry(self) -> None:
        """Start as many as possible of those that wait."""
        while self._waiting:
            try:
                worker = self._get_worker(self._waiting[0])
            except REFUSALS as error:
                self._on_refused_again(error)
                return
            self._refused_since = self._supervisor.now()
            self._use_later(worker, self._waiting.popleft())

    def _use_later(self, worker: W, assignment: Assignment) -> None:
        try:
            self._use(worker, assignment)
        except Exception as error:  # In `start`, the supervisor sees it itself.
            logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
            self._fail(assignment, WorkerUnavailableError(f"no worker could be started: {repr_of(error)}"))

    def _on_refused_again(self, error: BaseException) -> None:
        if self._has_workers():
            self._refused_since = self._supervisor.now()
        elif self._supervisor.now() - self._refused_since >= REFUSED_TIMEOUT:
            waiting, self._waiting = self._waiting, deque()
            for assignment in waiting:
                self._forget()
                self._fail(assignment, unavailable(error, f"for {REFUSED_TIMEOUT:.0f} s"))

    def take_back(self, assignment: Assignment) -> bool:
        """Remove an assignment that waits; return False if it does not."""
        if assignment not in self._waiting:
            return False
        self._waiting.remove(assignment)
        self._forget()
        return True

    def _try_later(self) -> None:
        if self._timer is None:
            self._timer = self._supervisor.call_at(self._supervisor.now() + RETRY_INTERVAL, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.retry()
        if self._waiting:
            self._try_later()

    def _fail(self, assignment: Assignment, error: WorkerUnavailableError) -> None:
        self._supervisor.ended(assignment, crashed(error))


def unavailable(refusal: BaseException | str, when: str) -> WorkerUnavailableError:
    """Return the error of a job for which the system refused a worker."""
    why = refusal if isinstance(refusal, str) else text_of(refusal)
    return WorkerUnavailableError(
        f"no worker could be started {when}, since the system refused it: {why}: raise the limit (ulimit -u for "
        "processes and threads, -n for descriptors), or lower max_workers"
    )
