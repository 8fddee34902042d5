"""The spawned process pool: gives assignments to spawned workers, and takes their results (see `pools.spawned`)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from executor_adapter.exceptions import WorkerCrashedError, WorkerUnavailableError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, Timer
from executor_adapter.pools.refused_starts import REFUSED_TIMEOUT, RETRY_INTERVAL, unavailable
from executor_adapter.pools.spawned.worker_handle import SpawnedWorkerHandle
from executor_adapter.pools.spawned.workers import MAX_START_FAILURES, SpawnedWorkerSet
from executor_adapter.pools.transport.envelope import STOPPED, crashed, received
from executor_adapter.pools.transport.exit_errors import crash_error, record_returncode
from executor_adapter.pools.transport.payload import attempt_part, worker_settings
from executor_adapter.pools.transport.process_pool import WorkerProcessPool
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import values, wire

if TYPE_CHECKING:
    from executor_adapter.job import Job

logger = logging.getLogger("executor_adapter.process")


class SpawnedPool(WorkerProcessPool[SpawnedWorkerHandle]):
    """Spawned worker processes; implements `worker_handle.WorkerListener`.

    `preload`: modules that each worker imports before its first job. `initializer`: a function and its arguments,
    called in each worker before its first job. `max_jobs_per_worker`: a worker is replaced after so many jobs. `nice`,
    `cpu_affinity`: apply to every worker. `start_timeout`: seconds that each worker may take until it is ready.
    """

    workers: SpawnedWorkerSet

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        preload: str | tuple[str, ...] = (),
        initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
        start_timeout: float | None = None,
        max_jobs_per_worker: int | None = None,
        nice: int | None = None,
        cpu_affinity: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(supervisor, max_workers)
        settings = worker_settings(preload=preload, initializer=initializer, nice=nice, cpu_affinity=cpu_affinity)
        self.workers = SpawnedWorkerSet(supervisor, self, max_workers, settings, start_timeout)
        self._max_jobs = max_jobs_per_worker or sys.maxsize
        self._path = SharedPath()
        self._waiting: dict[Assignment, bytes] = {}
        """Assignments that no worker has yet, in order, each with what belongs to this attempt only, pickled."""
        self._reserved: dict[Job, SpawnedWorkerHandle] = {}
        """Workers without an assignment that are kept for the next attempt of a job."""
        self._unreserved: dict[Job, Callable[[], None]] = {}
        """Jobs for which a worker is to be kept once one is ready, in order, and what is called then."""
        self._refused_since: float | None = None
        """Since when the system has refused the only worker."""
        self._start_retry: Timer | None = None
        self._logged: set[str] = set()
        """Warnings of starting workers that are logged already."""

    def unstarted(self) -> list[Assignment]:
        return list(self._waiting)

    # --- assigning ---

    def reserve_worker(self, job: Job, on_ready: Callable[[], None]) -> None:
        self._unreserved[job] = on_ready
        self._assign_next()

    def release_worker(self, job: Job) -> None:
        self._unreserved.pop(job, None)
        worker = self._reserved.pop(job, None)
        if worker is not None and self.workers.is_serving(worker):
            self._put_back(worker)

    def start(self, assignment: Assignment) -> None:
        worker = self._reserved.pop(assignment.job, None)
        if worker is not None and self.workers.is_serving(worker):
            self.workers.put_back(worker)
        part = attempt_part(assignment)
        self.busy += 1
        self._waiting[assignment] = part
        self._assign_next()

    def flush(self) -> None:
        self._start_workers()

    def _assign_next(self) -> None:
        """Give an idle worker to the first waiting assignment, or keep it for a job that is to have its attempt."""
        if not self._waiting and not self._unreserved:
            return
        assignment = next(iter(self._waiting), None)
        job = next(iter(self._unreserved)) if assignment is None else assignment.job
        worker = self.workers.take_idle(new=job.live.payload.own_worker)
        if worker is None:
            return
        if assignment is None:
            self._reserved[job] = worker
            self._unreserved.pop(job)()
            return
        assignment.worker = worker
        assignment.pid = worker.pid
        assignment.started_at = self.supervisor.now()
        worker.send(assignment, self._waiting.pop(assignment), self._path)
        self.workers.watch_busy()
        self.supervisor.started(assignment, assignment.started_at)

    def _put_back(self, worker: SpawnedWorkerHandle) -> None:
        """Give a worker without an assignment what waits, or keep it, unless `max_workers` was lowered meanwhile."""
        self.workers.put_back(worker)
        self._assign_next()
        self.workers.resize(self.max_workers)

    def _start_workers(self) -> None:
        """Start as many workers as are needed now."""
        try:
            self.workers.start_enough(len(self._waiting) + len(self._unreserved))
        except OSError as error:
            if (self._waiting or self._unreserved) and self.workers.are_all_retired:
                self._on_refused(error)
            else:  # What waits is for the workers that there are.
                logger.warning("no further worker can be started: %s", error)
        else:
            self._refused_since = None

    def _give_up_reserving(self) -> None:
        """Let the attempts begin for which no worker gets ready: they fail for the same reason."""
        for job in list(self._unreserved):
            self._unreserved.pop(job)()

    def _on_refused(self, error: OSError) -> None:
        """Try again for a while to start the only worker; then fail what waits for it."""
        now = self.supervisor.now()
        if self._refused_since is None:
            self._refused_since = now
            logger.warning("the system refuses a worker (%s): jobs wait for one", error)
        if now - self._refused_since >= REFUSED_TIMEOUT:
            self._refused_since = None
            for assignment in list(self._waiting):
                self._crash_waiting(assignment, unavailable(error, f"for {REFUSED_TIMEOUT:.0f} s"))
            self._give_up_reserving()
        elif self._start_retry is None:
            self._start_retry = self.supervisor.call_at(now + RETRY_INTERVAL, self._retry_start)

    def _retry_start(self) -> None:
        self._start_retry = None
        if self._waiting or self._unreserved:
            self._start_workers()

    def _crash_waiting(self, assignment: Assignment, error: WorkerCrashedError) -> None:
        self._remove_waiting(assignment)
        self.supervisor.ended(assignment, crashed(error))

    def _remove_waiting(self, assignment: Assignment) -> None:
        del self._waiting[assignment]
        self.busy -= 1

    def _take_from(self, worker: SpawnedWorkerHandle) -> Assignment | None:
        """Remove the worker's assignment, if it has one, and free its slot."""
        if not worker.queue:
            return None
        assignment = worker.queue.popleft()
        assignment.worker = None
        self.busy -= 1
        return assignment

    # --- frames ---

    def _on_disconnect(self, worker: SpawnedWorkerHandle) -> None:
        self.workers.retire(worker)
        worker.on_disconnect()

    def _on_ready(self, worker: SpawnedWorkerHandle, pid: int, at: float) -> None:
        self.workers.on_ready(worker)
        if self.workers.is_serving(worker):
            self._put_back(worker)

    def _on_notice(self, worker: SpawnedWorkerHandle, kind: int) -> None:
        if kind == wire.STARTED:
            worker.call_started = True

    def _on_message(self, worker: SpawnedWorkerHandle, flags: int, seq: int, body: bytes) -> None:
        if worker.ready:
            super()._on_message(worker, flags, seq, body)
        else:
            self._log_warning(body)

    def _log_warning(self, body: bytes) -> None:
        """Log a warning of a worker that is starting, which belongs to no job; only once, as each worker sends it."""
        (topic, content), _ = values.load_plain(body)
        if topic == "log" and content["level"] >= logging.WARNING and content["message"] not in self._logged:
            self._logged.add(content["message"])
            logger.warning("%s", content["message"])

    def _on_result(
        self, worker: SpawnedWorkerHandle, kind: int, flags: int, peak: int, started: float, ended: float, body: bytes
    ) -> None:
        fd = worker.reader.fds.popleft() if flags & wire.IN_FILE else -1
        if flags & wire.HAS_OUTPUT:
            worker.read_output()
        worker.output.finish()
        assignment = worker.queue[0]
        assignment.started_at = started
        assignment.ended_at = ended
        assignment.peak_rss = peak << 10
        if worker.stopping is not None and not worker.ended_before_stop(ended):
            if fd >= 0:
                os.close(fd)
            return  # `on_exit` reports the end
        worker.jobs_done += 1
        self._take_from(worker)
        if self.workers.is_serving(worker):
            if worker.jobs_done >= self._max_jobs or assignment.payload.own_worker:
                self.workers.shut_down(worker)
            else:
                self._put_back(worker)
        self.supervisor.ended(assignment, received(kind, flags, body, fd, assignment.job.job_id))

    # --- taking back and stopping ---

    def recall(self, assignment: Assignment) -> Recall:
        if assignment not in self._waiting:
            return Recall.STARTED
        self._remove_waiting(assignment)
        self.supervisor.handed_back(assignment)
        return Recall.TAKEN_BACK

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: SpawnedWorkerHandle | None = assignment.worker
        if assignment in self._waiting:
            self._remove_waiting(assignment)
            self.supervisor.ended(assignment, STOPPED)
        elif worker is not None and worker.stopping is assignment:
            worker.shorten_grace(grace)
        elif worker is not None:
            self.workers.retire(worker)
            worker.terminate(assignment, grace)

    # --- deaths ---

    def on_exit(self, worker: SpawnedWorkerHandle, returncode: int) -> None:
        """Report a worker's exit: its call crashed or was stopped, or is handed back if it had not started."""
        self.workers.retire(worker)
        output_tail = self._read_rest(worker)
        assignment = self._take_from(worker)
        self.workers.remove(worker)
        if assignment is not None:
            self._report_exit(worker, assignment, returncode, output_tail)
        elif worker.start_error is not None:
            self._on_start_timeout(worker.start_error, output_tail)
        elif not worker.ready and not worker.exit_expected:
            self._on_start_failure(returncode, output_tail)
        self._start_workers()
        self.workers.continue_closing()

    def _report_exit(
        self, worker: SpawnedWorkerHandle, assignment: Assignment, returncode: int, output_tail: str
    ) -> None:
        if assignment is worker.stopping:
            self._report_death(worker, assignment, output_tail)
        elif worker.call_started:
            record_returncode(assignment, returncode)
            self._report_death(worker, assignment, output_tail)
        else:
            self.supervisor.handed_back(assignment)

    def _on_start_timeout(self, error: WorkerUnavailableError, output_tail: str) -> None:
        error.output_tail = output_tail
        if self._waiting:
            self._crash_waiting(next(iter(self._waiting)), error)
        else:
            self._give_up_reserving()

    def _on_start_failure(self, returncode: int, output_tail: str) -> None:
        self.workers.start_failures += 1
        if self.workers.start_failures >= MAX_START_FAILURES and self._waiting:
            assignment = next(iter(self._waiting))
            record_returncode(assignment, returncode)
            self._crash_waiting(assignment, crash_error(assignment, output_tail, was_ready=False))
        elif self.workers.start_failures >= MAX_START_FAILURES:
            self._give_up_reserving()
