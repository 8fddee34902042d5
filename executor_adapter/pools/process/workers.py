"""The set of a process pool's workers: starts them when needed, with one to spare, and retires them."""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.process.start_watch import StartWatch
from executor_adapter.pools.process.worker_handle import WorkerHandle, make_receive_buffer

logger = logging.getLogger("executor_adapter.process")

MAX_START_FAILURES = 3
"""Workers that may die in a row before they are ready. The last of them takes its first assignment with it."""

_MAX_LEFT_BEHIND = 0.5
"""Share of a memory limit that earlier jobs of the worker may already hold. Much of it may be modules that they
imported, and a new worker that had to import them again would take far longer."""

W = TypeVar("W", bound=WorkerHandle)


class WorkerSet(ABC, Generic[W]):
    """Starts workers and retires them; how a worker is launched, and how its end is seen, is up to its subclass.

    `on_frames(worker)` is called when a worker's socket is readable. `on_exit(worker, returncode)` is called once for
    each worker, when it and what it started is dead, and before its descriptors are closed.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        settings: dict[str, Any],
        start_timeout: float | None,
        *,
        on_frames: Callable[[W], Any],
        on_exit: Callable[[W, int], None],
    ) -> None:
        self.start_failures = 0
        self.peak_busy = 0
        """The most workers that were ever busy at once."""
        self._supervisor = supervisor
        self._buffer = make_receive_buffer()
        self._max_workers = max_workers
        self._settings = settings
        self._on_frames = on_frames
        self._on_exit = on_exit
        self._members: dict[int, W] = {}
        """All workers that have not exited, by number, the retired ones included."""
        self._idle: list[W] = []
        self._starting: list[W] = []
        """Workers without assignments that are not ready yet."""
        self._start_watch = StartWatch(supervisor, start_timeout)
        self._is_refused = False
        """Whether the system refused the last worker, so that only a job may ask for another."""
        self._serving = 0
        """Number of workers that are not retired."""
        self._closing = False
        self._on_closed: Callable[[], None] | None = None

    @property
    def members(self) -> list[W]:
        """All workers that have not exited, including retired ones."""
        return list(self._members.values())

    @property
    def pids(self) -> list[int]:
        """The pids of all living workers, the spare one included."""
        return [worker.pid for worker in self._members.values() if worker.pid is not None]

    @property
    def idle_count(self) -> int:
        """Number of workers that are ready and have no assignment."""
        return len(self._idle)

    # --- for subclasses ---

    @abstractmethod
    def _launch(self) -> W:
        """Start a worker.

        Raises:
            OSError: the system refuses one.
        """

    @abstractmethod
    def _on_disconnected(self, worker: W) -> None:
        """Make sure that the end of a worker whose socket is closed is seen."""

    def _end_launching(self, on_closed: Callable[[], None]) -> None:
        """Release what launches workers, of which none is left, and call `on_closed`."""
        on_closed()

    def set_lease(self, until: float) -> None:
        """Let the workers run until this `lease_time`, unless a later one is set by then."""

    # --- starting ---

    def take(self, memory_limit: int | None, *, new: bool = False) -> W:
        """Return a worker without assignments, or else a new one.

        With a memory limit, it is a worker in which earlier jobs left little: the next job must not be killed for them.
        With `new`, it is one that has run none.

        Raises:
            OSError: no worker can be started.
        """
        if new:
            return self._take_new()
        worker = self._take_any()
        while memory_limit is not None and worker.left_behind() > _MAX_LEFT_BEHIND * memory_limit:
            self.shut_down(worker)
            worker = self._take_any()
        return worker

    def _take_new(self) -> W:
        for worker in self._idle:
            if not worker.jobs_done:
                self._idle.remove(worker)
                return worker
        if self._idle and self._serving > self._max_workers:
            self.shut_down(self._idle[0])
        return self._starting.pop(0) if self._starting else self._start()

    def _take_any(self) -> W:
        if self._idle:
            return self._idle.pop()
        return self._starting.pop(0) if self._starting else self._start()

    def put_back(self, worker: W) -> None:
        """Keep a worker that has no assignments for later, or shut it down if there are enough."""
        if self._serving > self._max_workers + 1:
            self.shut_down(worker)
        else:
            (self._idle if worker.ready else self._starting).append(worker)

    def keep_spare(self) -> None:
        """Start workers until there is one more than were ever busy at once."""
        if self._serving <= self.peak_busy and self._may_start_spare():
            try:
                self._starting.append(self._start())
            except OSError as error:
                self._is_refused = True
                logger.warning("no spare worker can be started: %s", error)

    def _may_start_spare(self) -> bool:
        return not (self._closing or self._is_refused or self.start_failures >= MAX_START_FAILURES)

    def _start(self) -> W:
        worker = self._launch()
        self._members[worker.number] = worker
        self._serving += 1
        self._supervisor.watch(worker.fd, functools.partial(self._on_frames, worker))
        return worker

    def _watch_start(self, worker: W, what: str) -> None:
        """Give up the worker unless it is ready in time; `what` says in words what it does until then."""
        self._start_watch.add(worker, what, functools.partial(self._on_start_timeout, worker))

    def _on_start_timeout(self, worker: W, error: WorkerUnavailableError) -> None:
        worker.crash_cause = error
        self.retire(worker)
        worker.kill()

    def on_ready(self, worker: W, pid: int) -> None:
        """Take note that a worker has started."""
        self._start_watch.remove(worker)
        self._is_refused = False
        worker.on_ready(pid)
        self.start_failures = 0
        if worker in self._starting:
            self._starting.remove(worker)
            self.put_back(worker)

    # --- retiring ---

    def retire(self, worker: W) -> None:
        """Assign nothing more to the worker."""
        if not worker.retired:
            worker.retired = True
            self._serving -= 1
            for group in (self._idle, self._starting):
                if worker in group:
                    group.remove(worker)

    def shut_down(self, worker: W) -> None:
        """Retire a worker that has no assignments, and let it exit."""
        self.retire(worker)
        worker.request_exit()

    def resize(self, max_workers: int) -> None:
        """Keep workers for so many busy ones and one to spare; idle ones beyond that are shut down."""
        self._max_workers = max_workers
        self.peak_busy = min(self.peak_busy, max_workers)
        while self._idle and self._serving > max_workers + 1:
            self.shut_down(self._idle[-1])

    def on_disconnect(self, worker: W) -> None:
        """Retire a worker whose socket is closed: it has died, or its function closed it and it is about to exit."""
        self.retire(worker)
        worker.stop_listening()
        self._on_disconnected(worker)

    def on_worker_exit(self, number: int, returncode: int) -> None:
        """Report that a worker has exited; the code is that of `subprocess.Popen.returncode`."""
        worker = self._members.pop(number, None)
        if worker is None:
            return
        self._start_watch.remove(worker)
        if not worker.ready and not worker.exit_expected:
            self.start_failures += 1
        self.retire(worker)
        self._on_exit(worker, returncode)
        worker.close()
        self.keep_spare()
        self._continue_closing()

    def close(self, on_closed: Callable[[], None]) -> None:
        """Shut down all workers and what launches them; then call `on_closed`."""
        self._closing = True
        self._on_closed = on_closed
        for worker in self.members:
            self.shut_down(worker)
        self._continue_closing()

    def _continue_closing(self) -> None:
        if self._on_closed is not None and not self._members:
            on_closed, self._on_closed = self._on_closed, None
            self._end_launching(on_closed)
