"""The workers of a guardian: it forks them when they are asked for, and reports their ends."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
from collections.abc import Callable

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.process.forked_worker import ForkedWorkerHandle
from executor_adapter.pools.process.guardian import NO_PIDFD, GuardianClient
from executor_adapter.pools.process.workers import WorkerSet
from executor_adapter.pools.refused_starts import REFUSED_TIMEOUT, unavailable

logger = logging.getLogger("executor_adapter.process")

_EXIT_REPORT_TIMEOUT = 2.0
"""Seconds for the guardian to report a death that the host has seen; the worker may have left many processes."""

_LARGE_IDLE_WORKER = 32 << 20
"""Bytes that earlier jobs left in an idle worker, from which on it is ended when memory is short."""


class ForkedWorkers(WorkerSet[ForkedWorkerHandle]):
    """Starts workers with a guardian, which is started with the first; implements `client.GuardianListener`."""

    guardian: GuardianClient | None = None
    _lease_until = math.inf

    # --- starting ---

    def _launch(self) -> ForkedWorkerHandle:
        if self.guardian is None:
            self.guardian = guardian = GuardianClient(self._supervisor, self, self._settings)
            what = f"the guardian (process {guardian.pid}) imports preload={', '.join(self._settings['preload'])}"
            self._start_watch.add(guardian, what, guardian.give_up)
            guardian.set_lease(self._lease_until)
        return ForkedWorkerHandle(self._supervisor, self._buffer, self.guardian)

    def _may_start_spare(self) -> bool:
        # A fork would delay the guardian's report of a killed worker. `on_worker_exit` calls `keep_spare` again.
        return super()._may_start_spare() and not any(worker.kill_requested for worker in self._members.values())

    def set_lease(self, until: float) -> None:
        self._lease_until = until
        if self.guardian is not None:
            self.guardian.set_lease(until)

    # --- retiring ---

    def shut_down_large(self) -> None:
        """Shut down idle workers in which earlier jobs left much memory."""
        for worker in list(self._idle):
            if worker.left_behind() > _LARGE_IDLE_WORKER:
                self.shut_down(worker)

    def close(self, on_closed: Callable[[], None]) -> None:
        super().close(on_closed)
        if self.guardian is not None and not self.guardian.is_ready and self._members:
            # It may be importing for a long time, and would fork the workers only after that.
            self.guardian.kill("the pool was closed before it was ready")

    def _end_launching(self, on_closed: Callable[[], None]) -> None:
        if self.guardian is None:
            on_closed()
        else:
            self.guardian.stop(on_closed)

    # --- deaths ---

    def _on_disconnected(self, worker: ForkedWorkerHandle) -> None:
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
                self._watch_start(worker, f"worker {pid} {what}")
        elif pidfd != NO_PIDFD:
            os.close(pidfd)

    def on_fork_failed(self, number: int, errno: int) -> None:
        worker = self._members.get(number)
        if worker is None:
            return
        self._is_refused = worker.exit_expected = True
        if any(other.ready and not other.retired for other in self._members.values()):
            logger.warning("the system refuses another process (%s): jobs wait for a worker", os.strerror(errno))
        else:  # The guardian has tried for seconds already, so the assignment fails at once.
            worker.crash_cause = unavailable(os.strerror(errno), f"for {REFUSED_TIMEOUT:.0f} s")
        self.on_worker_exit(number, 0)

    def on_guardian_ready(self, guardian: GuardianClient) -> None:
        self._start_watch.remove(guardian)

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
            worker.crash_cause = worker.crash_cause or lost.failure() or WorkerCrashedError(message, guardian=lost.pid)
            self.on_worker_exit(worker.number, -signal.SIGKILL)
        self._continue_closing()
