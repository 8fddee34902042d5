"""The set of a spawned pool's workers: starts them when needed, with one to spare, and retires them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.spawned.worker_handle import SpawnedWorkerHandle, WorkerListener
from executor_adapter.pools.start_watch import StartWatch
from executor_adapter.pools.transport.worker_handle import make_receive_buffer

MAX_START_FAILURES = 3
"""Workers that may die in a row before they are ready. The last of them takes an assignment with it."""
LIVENESS_INTERVAL = 1.0
"""Seconds between two checks whether busy workers live, and before a process that the system refused is tried again."""


class SpawnedWorkerSet:
    """Starts spawned workers and retires them. The `listener` is notified of what they do."""

    def __init__(
        self,
        supervisor: PoolSupervisor,
        listener: WorkerListener,
        max_workers: int,
        settings: dict[str, Any],
        start_timeout: float | None,
    ) -> None:
        self.start_failures = 0
        self._supervisor = supervisor
        self._listener = listener
        self._max_workers = max_workers
        self._settings = settings
        self._buffer = make_receive_buffer()
        self._start_watch = StartWatch(supervisor, start_timeout)
        self._members: set[SpawnedWorkerHandle] = set()
        self._serving: set[SpawnedWorkerHandle] = set()
        """The members that are not retired."""
        self._idle: list[SpawnedWorkerHandle] = []
        self._next_start_at = 0.0
        """The time at which the next start is tried after the system refused a process."""
        self._liveness_check: Timer | None = None
        self._closing = False
        self._on_closed: Callable[[], None] | None = None

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._members]

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    @property
    def are_all_retired(self) -> bool:
        """Whether no worker can get an assignment, now or later."""
        return not self._serving

    def is_serving(self, worker: SpawnedWorkerHandle) -> bool:
        """Return whether the worker is not retired."""
        return worker in self._serving

    # --- starting ---

    def take_idle(self, *, new: bool = False) -> SpawnedWorkerHandle | None:
        """Return a worker that is ready and has no assignment, if there is one; with `new`, one that never had any."""
        while self._idle:
            worker = self._idle.pop()
            if not (new and worker.jobs_done):
                return worker
            self.shut_down(worker)
        return None

    def put_back(self, worker: SpawnedWorkerHandle) -> None:
        """Keep a worker that has no assignment for the next one."""
        self._idle.append(worker)

    def start_enough(self, waiting: int) -> None:
        """Start a worker for each of the `waiting` assignments, and one to spare.

        Raises:
            OSError: no further worker can be started; the next attempt is made after LIVENESS_INTERVAL.
        """
        if self._closing or (self._serving and self._supervisor.now() < self._next_start_at):
            return
        try:
            while self._count_starting() + len(self._idle) < waiting + self._may_start_spare():
                self._start()
        except OSError:
            self._next_start_at = self._supervisor.now() + LIVENESS_INTERVAL
            raise

    def _may_start_spare(self) -> bool:
        return len(self._serving) <= self._max_workers and self.start_failures < MAX_START_FAILURES

    def _count_starting(self) -> int:
        return sum(not worker.ready for worker in self._serving)

    def _start(self) -> None:
        worker = SpawnedWorkerHandle(self._supervisor, self._buffer, self._listener, self._settings)
        self._members.add(worker)
        self._serving.add(worker)
        preload = ", ".join(self._settings["preload"])
        what = f"worker {worker.pid} imports preload={preload} and runs the initializer, if there is one"
        self._start_watch.add(worker, what, worker.give_up)

    def on_ready(self, worker: SpawnedWorkerHandle) -> None:
        """Take note that a worker has started."""
        worker.ready = True
        self.start_failures = 0
        self._start_watch.remove(worker)

    # --- retiring ---

    def retire(self, worker: SpawnedWorkerHandle) -> None:
        """Give the worker no further assignment."""
        self._serving.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)

    def resize(self, max_workers: int) -> None:
        """Keep workers for so many busy ones and one to spare; idle ones beyond that are shut down."""
        self._max_workers = max_workers
        while self._idle and len(self._serving) > max_workers + 1:
            self.shut_down(self._idle[-1])

    def shut_down(self, worker: SpawnedWorkerHandle) -> None:
        """Retire a worker that has no assignment, and let it exit."""
        self.retire(worker)
        if worker.ready:
            worker.request_exit()
        else:
            worker.kill()  # It has run no function that might clean up.

    def remove(self, worker: SpawnedWorkerHandle) -> None:
        """Release a worker that has exited."""
        self._members.discard(worker)
        self._start_watch.remove(worker)
        worker.close()

    def close(self, on_closed: Callable[[], None]) -> None:
        """Shut down all workers, then call `on_closed`."""
        self._closing = True
        self._on_closed = on_closed
        for worker in list(self._members):
            self.shut_down(worker)
        self.continue_closing()

    def continue_closing(self) -> None:
        """Finish closing, if it was asked for and no worker is left."""
        if self._on_closed is not None and not self._members:
            on_closed, self._on_closed = self._on_closed, None
            if self._liveness_check is not None:
                self._liveness_check.cancel()
            on_closed()

    # --- liveness ---

    def watch_busy(self) -> None:
        """Check regularly whether busy workers live, as long as there are any."""
        if self._liveness_check is None:
            at = self._supervisor.now() + LIVENESS_INTERVAL
            self._liveness_check = self._supervisor.call_at(at, self._check_liveness)

    def _check_liveness(self) -> None:
        self._liveness_check = None
        busy = [worker for worker in self._members if worker.queue]
        for worker in busy:
            if worker.has_exited():
                worker.check_exit()
        if any(worker.queue for worker in self._members):
            self.watch_busy()
