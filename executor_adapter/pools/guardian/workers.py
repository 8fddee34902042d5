"""The set of a process pool's workers: starts them when needed, with one to spare, and retires them."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
from collections.abc import Callable
from typing import Any

from executor_adapter.exceptions import WorkerCrashedError, WorkerUnavailableError
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.guardian.client import NO_PIDFD, GuardianClient
from executor_adapter.pools.guardian.worker_handle import ForkedWorkerHandle
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.refused_starts import REFUSED_TIMEOUT, unavailable
from executor_adapter.pools.start_watch import StartWatch
from executor_adapter.pools.transport.worker_handle import make_receive_buffer
from executor_adapter.worker import resident

logger = logging.getLogger("executor_adapter.process")

MAX_START_FAILURES = 3
"""Workers that may die in a row before they are ready. The last of them takes its first assignment with it."""

_EXIT_REPORT_TIMEOUT = 2.0
"""Seconds for the guardian to report a death that the host has seen; the worker may have left many processes."""

_LARGE_IDLE_WORKER = 32 << 20
"""Bytes that earlier jobs left in an idle worker, from which on it is ended when memory is short."""

_MAX_LEFT_BEHIND = 0.5
"""Share of a memory limit that earlier jobs of the worker may already hold. Much of it may be modules that they
imported, and a new worker that had to import them again would take far longer."""


class WorkerSet:
    """Starts workers with a guardian and retires them; implements `client.GuardianListener`.

    `on_frames(worker)` is called when a worker's socket is readable. `on_exit(worker, si_code, si_status)` is called
    once for each worker, when it and everything it started is dead, and before its descriptors are closed.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        settings: dict[str, Any],
        start_timeout: float | None,
        *,
        on_frames: Callable[[ForkedWorkerHandle], Any],
        on_exit: Callable[[ForkedWorkerHandle, int, int], None],
    ) -> None:
        self.start_failures = 0
        self.peak_busy = 0
        """The most workers that were ever busy at once."""
        self.guardian: GuardianClient | None = None
        self._supervisor = supervisor
        self._buffer = make_receive_buffer()
        self._max_workers = max_workers
        self._settings = settings
        self._on_frames = on_frames
        self._on_exit = on_exit
        self._members: dict[int, ForkedWorkerHandle] = {}
        self._idle: list[ForkedWorkerHandle] = []
        self._starting: list[ForkedWorkerHandle] = []
        """Workers without assignments that are not ready yet."""
        self._start_watch = StartWatch(supervisor, start_timeout)
        self._is_fork_refused = False
        """Whether the system refused the last fork, so that only a job may ask for another."""
        self._serving = 0
        """Number of workers that are not retired."""
        self._lease_until = math.inf
        self._closing = False
        self._on_closed: Callable[[], None] | None = None

    @property
    def members(self) -> list[ForkedWorkerHandle]:
        """All workers that have not exited, including retired ones."""
        return list(self._members.values())

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._members.values() if worker.pid is not None]

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    # --- starting ---

    def take(self, memory_limit: int | None, *, new: bool = False) -> ForkedWorkerHandle:
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

    def _take_new(self) -> ForkedWorkerHandle:
        for worker in self._idle:
            if not worker.jobs_done:
                self._idle.remove(worker)
                return worker
        if self._idle and self._serving > self._max_workers:
            self.shut_down(self._idle[0])
        return self._starting.pop(0) if self._starting else self._start()

    def _take_any(self) -> ForkedWorkerHandle:
        if self._idle:
            return self._idle.pop()
        return self._starting.pop(0) if self._starting else self._start()

    def put_back(self, worker: ForkedWorkerHandle) -> None:
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
                logger.warning("no spare worker can be started: %s", error)

    def _may_start_spare(self) -> bool:
        if self._closing or self._is_fork_refused or self.start_failures >= MAX_START_FAILURES:
            return False
        # A fork would delay the guardian's report of a killed worker. `on_worker_exit` calls `keep_spare` again.
        return not any(worker.kill_requested for worker in self._members.values())

    def on_ready(self, worker: ForkedWorkerHandle, pid: int) -> None:
        """Take note that a worker has started."""
        self._start_watch.remove(worker)
        self._is_fork_refused = False
        worker.ready = True
        worker.pid = pid
        worker.rss_when_ready = resident(pid)
        self.start_failures = 0
        if worker in self._starting:
            self._starting.remove(worker)
            self._idle.append(worker)

    def _start(self) -> ForkedWorkerHandle:
        if self.guardian is None:
            self.guardian = guardian = GuardianClient(self._supervisor, self, self._settings)
            what = f"the guardian (process {guardian.pid}) imports preload={', '.join(self._settings['preload'])}"
            self._start_watch.add(guardian, what, guardian.give_up)
            guardian.set_lease(self._lease_until)
        worker = ForkedWorkerHandle(self._supervisor, self._buffer, self.guardian)
        self._members[worker.number] = worker
        self._serving += 1
        self._supervisor.watch(worker.fd, functools.partial(self._on_frames, worker))
        return worker

    def set_lease(self, until: float) -> None:
        """Let the workers run until this `lease_time`, unless a later one is set by then."""
        self._lease_until = until
        if self.guardian is not None:
            self.guardian.set_lease(until)

    # --- retiring ---

    def retire(self, worker: ForkedWorkerHandle) -> None:
        """Assign nothing more to the worker."""
        if not worker.retired:
            worker.retired = True
            self._serving -= 1
            for group in (self._idle, self._starting):
                if worker in group:
                    group.remove(worker)

    def shut_down(self, worker: ForkedWorkerHandle) -> None:
        """Retire a worker that has no assignments, and let it exit."""
        self.retire(worker)
        worker.request_exit()

    def resize(self, max_workers: int) -> None:
        """Keep workers for so many busy ones and one to spare; idle ones beyond that are shut down."""
        self._max_workers = max_workers
        self.peak_busy = min(self.peak_busy, max_workers)
        while self._idle and self._serving > max_workers + 1:
            self.shut_down(self._idle[-1])

    def shut_down_large(self) -> None:
        """Shut down idle workers in which earlier jobs left much memory."""
        for worker in list(self._idle):
            if worker.left_behind() > _LARGE_IDLE_WORKER:
                self.shut_down(worker)

    def close(self, on_closed: Callable[[], None]) -> None:
        """Shut down all workers, then the guardian; then call `on_closed`."""
        self._closing = True
        self._on_closed = on_closed
        for worker in list(self._members.values()):
            self.shut_down(worker)
        if self.guardian is not None and not self.guardian.is_ready and self._members:
            # It may be importing for a long time, and would fork the workers only after that.
            self.guardian.kill("the pool was closed before it was ready")
        self._continue_closing()

    def _continue_closing(self) -> None:
        if self._on_closed is None or self._members:
            return
        on_closed, self._on_closed = self._on_closed, None
        if self.guardian is None:
            on_closed()
        else:
            self.guardian.stop(on_closed)

    # --- deaths ---

    def on_disconnect(self, worker: ForkedWorkerHandle) -> None:
        """Retire a worker whose socket is closed: it has died, or its function closed it and it is about to exit."""
        self.retire(worker)
        worker.stop_listening()
        if not worker.is_forked:
            self._call_later(self._require_fork, worker)

    def _on_death_seen(self, worker: ForkedWorkerHandle) -> None:
        worker.stop_watching_process()
        self.retire(worker)
        self._call_later(self._require_exit_report, worker)

    def _call_later(self, check: Callable[[ForkedWorkerHandle], None], worker: ForkedWorkerHandle) -> None:
        # The worker's own timer cannot be used, since `stop` resets it.
        Patience(self._supervisor, _EXIT_REPORT_TIMEOUT, functools.partial(check, worker))

    def _require_fork(self, worker: ForkedWorkerHandle) -> None:
        if not worker.is_forked:
            self._require_exit_report(worker)

    def _require_exit_report(self, worker: ForkedWorkerHandle) -> None:
        """Kill a guardian that has not reported an exit in time, for example because a signal stopped it."""
        if worker.number in self._members:
            worker.guardian.kill(f"it did not report the end of a worker for {_EXIT_REPORT_TIMEOUT:.0f} s")

    # --- reports of the guardian ---

    def on_worker_forked(self, number: int, pid: int, pidfd: int) -> None:
        worker = self._members.get(number)
        if worker is not None:
            worker.set_process(pid, pidfd, functools.partial(self._on_death_seen, worker))
            if not worker.ready:
                what = "runs the initializer" if self._settings["initializer"] else "starts"
                self._start_watch.add(worker, f"worker {pid} {what}", functools.partial(self._on_start_timeout, worker))
        elif pidfd != NO_PIDFD:
            os.close(pidfd)

    def on_worker_exit(self, number: int, si_code: int, si_status: int) -> None:
        worker = self._members.pop(number, None)
        if worker is None:
            return
        self._start_watch.remove(worker)
        if not worker.ready and not worker.exit_expected:
            self.start_failures += 1
        self.retire(worker)
        self._on_exit(worker, si_code, si_status)
        worker.close()
        self.keep_spare()
        self._continue_closing()

    def on_fork_failed(self, number: int, errno: int) -> None:
        worker = self._members.get(number)
        if worker is None:
            return
        self._is_fork_refused = worker.exit_expected = True
        if any(other.ready and not other.retired for other in self._members.values()):
            logger.warning("the system refuses another process (%s): jobs wait for a worker", os.strerror(errno))
        else:  # The guardian has tried for seconds already, so the assignment fails at once.
            worker.crash_cause = unavailable(os.strerror(errno), f"for {REFUSED_TIMEOUT:.0f} s")
        self.on_worker_exit(number, os.CLD_EXITED, 0)

    def on_guardian_ready(self, guardian: GuardianClient) -> None:
        self._start_watch.remove(guardian)

    def _on_start_timeout(self, worker: ForkedWorkerHandle, error: WorkerUnavailableError) -> None:
        worker.crash_cause = error
        self.retire(worker)
        worker.kill()

    def on_lease_expired(self) -> None:
        ended = [worker for worker in self._members.values() if worker.is_forked]
        for worker in ended:
            worker.lease_expired = worker.exit_expected = True
            self.retire(worker)
        logger.warning(
            "the guardian has ended %d workers, whose jobs start again: the lease on the store was not renewed, since "
            "that could not be written in time, or this program was stopped, or its machine suspended",
            len(ended),
        )

    def on_log(self, text: str) -> None:
        logger.warning("%s", text)

    def on_guardian_lost(self, lost: GuardianClient) -> None:
        if self.guardian is lost:
            self.guardian = None
        self._start_watch.remove(lost)
        workers = [worker for worker in self._members.values() if worker.guardian is lost]
        message = lost.end
        # A pool that is closed kills a guardian that is not ready yet, and has no job there.
        level = logging.INFO if self._closing else logging.WARNING
        logger.log(level, "%s, and its %d workers with it", message, len(workers))
        for worker in workers:
            worker.exit_expected = lost.is_ready
            worker.crash_cause = worker.crash_cause or lost.failure() or WorkerCrashedError(message)
            self.on_worker_exit(worker.number, os.CLD_KILLED, signal.SIGKILL)
        self._continue_closing()
