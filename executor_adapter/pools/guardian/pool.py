"""The process pool: gives assignments to workers under a guardian, and takes their results (see `pools.guardian`)."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from executor_adapter.exceptions import MemoryLimitError, WorkerUnavailableError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall
from executor_adapter.pools.guardian.memory_watch import MemoryWatch, largest_attempt
from executor_adapter.pools.guardian.worker_handle import CallState, ForkedWorkerHandle
from executor_adapter.pools.guardian.workers import MAX_START_FAILURES, WorkerSet
from executor_adapter.pools.memory.oom_kills import oom_kills
from executor_adapter.pools.refused_starts import RefusedStarts
from executor_adapter.pools.transport.envelope import STOPPED, received
from executor_adapter.pools.transport.exit_errors import kernel_kill_error, memory_error, record_exit
from executor_adapter.pools.transport.payload import Initializer, worker_settings
from executor_adapter.pools.transport.process_pool import WorkerProcessPool
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import wire

if TYPE_CHECKING:
    from executor_adapter.job import Job


class ProcessPool(WorkerProcessPool[ForkedWorkerHandle]):
    """Worker processes under a guardian.

    `preload`: modules that the guardian imports, so that no worker needs to. `initializer`: a function and its
    arguments, called in each worker before its first job. `max_jobs_per_worker`: a worker is replaced after so many
    jobs. `max_rss_growth`: a worker is replaced when it has grown by so many bytes since it was ready. `nice`,
    `cpu_affinity`: apply to every worker. `start_timeout`: seconds that the preload may take, and then each worker
    until it is ready. `held_fds`: descriptors that guardian and workers hold, so that the kernel closes them when
    nothing of the pool is alive.
    """

    can_limit_memory: ClassVar[bool] = True
    workers: WorkerSet

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        preload: str | tuple[str, ...] = (),
        initializer: Initializer | bytes | None = None,
        start_timeout: float | None = None,
        max_jobs_per_worker: int | None = None,
        max_rss_growth: int | None = None,
        nice: int | None = None,
        cpu_affinity: tuple[int, ...] | None = None,
        held_fds: tuple[int, ...] = (),
    ) -> None:
        super().__init__(supervisor, max_workers)
        settings = worker_settings(preload=preload, initializer=initializer, nice=nice, cpu_affinity=cpu_affinity)
        settings["held_fds"] = held_fds
        self.workers = WorkerSet(
            supervisor, max_workers, settings, start_timeout, on_frames=self.read_frames, on_exit=self._on_exit
        )
        self._starts = RefusedStarts(supervisor, self._take_worker, self._use, self._has_workers, self.free_slot)
        self._max_jobs = max_jobs_per_worker or sys.maxsize
        self._max_rss_growth = max_rss_growth
        self._path = SharedPath()
        self._memory = MemoryWatch(supervisor, self._on_memory_exceeded)
        oom_kills.observe()  # From now on a rise of the count is a death of this time.
        self._workers_to_write: list[ForkedWorkerHandle] = []
        """Workers with assignments that the next `flush` sends."""
        self._reserved: dict[Job, ForkedWorkerHandle] = {}
        """Workers without assignments that are kept for the next attempt of a job."""
        self._busy_workers: deque[ForkedWorkerHandle] = deque()
        self._may_have_room = True
        """Whether a call may be queued behind another; False until a worker is known to have room again."""

    def set_lease(self, until: float) -> None:
        self.workers.set_lease(until)

    # --- assigning ---

    def reserve_worker(self, job: Job, on_ready: Callable[[], None]) -> None:
        try:
            worker = self.workers.take(job.live.memory_limit, new=job.live.payload.own_worker)
        except OSError:
            on_ready()
            return
        self._reserved[job] = worker
        if worker.ready:
            on_ready()
        else:
            worker.on_usable = on_ready

    def release_worker(self, job: Job) -> None:
        worker = self._reserved.pop(job, None)
        if worker is not None and not worker.retired:
            worker.on_usable = None
            self.workers.put_back(worker)

    def _take_worker(self, assignment: Assignment) -> ForkedWorkerHandle:
        reserved = self._reserved.pop(assignment.job, None)
        if reserved is not None and not reserved.retired:
            return reserved
        return self.workers.take(assignment.memory_limit, new=assignment.payload.own_worker)

    def _has_workers(self) -> bool:
        return any(worker.ready for worker in self._busy_workers)

    def start(self, assignment: Assignment) -> None:
        self.busy += 1
        self._starts.start(assignment)

    def _use(self, worker: ForkedWorkerHandle, assignment: Assignment) -> None:
        self._busy_workers.append(worker)
        busy = len(self._busy_workers)
        if busy > self.workers.peak_busy:
            self.workers.peak_busy = busy
        self._may_have_room = True
        try:
            self._assign(worker, assignment)
        except Exception:
            self._release(worker)
            raise

    def queue_behind(self, assignment: Assignment) -> bool:
        if not self._may_have_room or assignment.memory_limit is not None:
            return False
        busy = self._busy_workers
        for _ in range(len(busy)):
            worker = busy[0]
            busy.rotate(-1)
            if worker.has_room(self._max_jobs):
                self._assign(worker, assignment)
                return True
        self._may_have_room = False
        return False

    def _assign(self, worker: ForkedWorkerHandle, assignment: Assignment) -> None:
        worker.assign(assignment)
        if worker.unsent == 1:
            self._workers_to_write.append(worker)

    def flush(self) -> None:
        if self._workers_to_write:
            self._path.refresh()
            to_write, self._workers_to_write = self._workers_to_write, []
            for worker in to_write:
                self._write(worker)
            self.workers.keep_spare()

    def _write(self, worker: ForkedWorkerHandle) -> None:
        if not worker.unsent:  # All of them were taken back.
            return
        nothing_before = worker.unsent == len(worker.queue)
        worker.write(self._path)
        if nothing_before and worker.ready:
            self._report_start(worker, self.supervisor.now())

    def _report_start(self, worker: ForkedWorkerHandle, at: float) -> None:
        assignment = worker.queue[0]
        assignment.pid = worker.pid
        assignment.started_at = at
        if assignment.memory_limit is not None:
            self._memory.add(worker, assignment, assignment.memory_limit)
        self.supervisor.started(assignment, at)

    def _release(self, worker: ForkedWorkerHandle) -> None:
        """Free the slot of a worker that has no assignments left."""
        self.busy -= 1
        self._busy_workers.remove(worker)
        if worker.retired:
            return
        if worker.is_worn(self._max_jobs, self._max_rss_growth):
            self.workers.shut_down(worker)
            self.workers.keep_spare()
        elif not worker.dropping:
            self.workers.put_back(worker)
            self._starts.retry()

    # --- frames ---

    def _on_disconnect(self, worker: ForkedWorkerHandle) -> None:
        self.workers.on_disconnect(worker)

    def _on_ready(self, worker: ForkedWorkerHandle, pid: int, at: float) -> None:
        self.workers.on_ready(worker, pid)
        if len(worker.queue) > worker.unsent:
            self._report_start(worker, at)
        _call_once(worker)

    def _on_notice(self, worker: ForkedWorkerHandle, kind: int) -> None:
        if kind == wire.DROPPED:
            worker.dropping = False
            if not worker.queue and not worker.retired:
                self.workers.put_back(worker)
                self._starts.retry()

    def _on_result(
        self, worker: ForkedWorkerHandle, kind: int, flags: int, peak: int, started: float, ended: float, body: bytes
    ) -> None:
        queue = worker.queue
        fd = worker.reader.fds.popleft() if flags & wire.IN_FILE else -1
        if flags & wire.HAS_OUTPUT:
            worker.read_output()
        worker.output.finish()
        assignment = queue[0]
        if assignment.memory_limit is not None:
            self._memory.remove(worker)
        assignment.pid = worker.pid
        assignment.started_at = started
        assignment.ended_at = ended
        assignment.peak_rss = max(peak << 10, assignment.peak_rss or 0)
        if worker.stopping is not None and not worker.ended_before_stop(ended):
            if fd >= 0:
                os.close(fd)
            return  # `_on_exit` reports the end
        queue.popleft()
        worker.head += 1
        worker.jobs_done += 1
        assignment.worker = None
        worker.worn = assignment.payload.own_worker
        worker.free_since = ended
        if queue:
            self._may_have_room = True
        else:
            self._release(worker)
        self.supervisor.ended(assignment, received(kind, flags, body, fd, assignment.job.job_id))

    def read_frames(self, worker: ForkedWorkerHandle) -> bool:
        has_read = super().read_frames(worker)
        self._report_following(worker)  # Only now: what has begun and ended in between needs no report of its start.
        return has_read

    def _on_message(self, worker: ForkedWorkerHandle, flags: int, seq: int, body: bytes) -> None:
        self._report_following(worker)
        super()._on_message(worker, flags, seq, body)

    def _report_following(self, worker: ForkedWorkerHandle) -> None:
        """Report the start of what the worker runs now, unless that was reported."""
        if worker.ready and worker.sent > 0 and worker.queue[0].started_at is None:
            self._report_start(worker, worker.free_since)

    # --- taking back and stopping ---

    def queues(self) -> Iterable[tuple[ForkedWorkerHandle, Sequence[Assignment]]]:
        return ((worker, worker.queue) for worker in self._busy_workers)

    def hand_back_behind(self, worker: ForkedWorkerHandle, running: Assignment) -> None:
        running.short = False
        _, removed = worker.take_back(running, or_those_behind=True)
        self._release_if_empty(worker, removed)
        self._hand_back(removed)

    def recall(self, assignment: Assignment) -> Recall:
        worker: ForkedWorkerHandle | None = assignment.worker
        if worker is None:
            if not self._starts.take_back(assignment):
                return Recall.STARTED
            self.supervisor.handed_back(assignment)
            return Recall.TAKEN_BACK
        state, removed = worker.take_back(assignment)
        self._release_if_empty(worker, removed)
        self._hand_back(removed)
        return Recall.TAKEN_BACK if state is CallState.WAITING else Recall.STARTED

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: ForkedWorkerHandle | None = assignment.worker
        if worker is None:
            if self._starts.take_back(assignment):
                self.supervisor.ended(assignment, STOPPED)
            return
        if worker.stopping is assignment:
            worker.shorten_grace(grace)
            return
        state, removed = worker.take_back(assignment, or_those_behind=True)
        self._release_if_empty(worker, removed)
        if state is CallState.WAITING:
            self.supervisor.ended(removed.pop(0), STOPPED)
        elif state is CallState.RUNNING:
            self.workers.retire(worker)
            worker.terminate(assignment, grace)
        self._hand_back(removed)

    def _release_if_empty(self, worker: ForkedWorkerHandle, removed: list[Assignment]) -> None:
        if removed and not worker.queue:
            self._release(worker)

    def _hand_back(self, assignments: list[Assignment]) -> None:
        """Hand assignments back, the last one first, since each goes to the front of the queue."""
        for assignment in reversed(assignments):
            self.supervisor.handed_back(assignment)

    # --- memory ---

    def largest_attempt(self) -> tuple[Assignment, int] | None:
        return largest_attempt(self._busy_workers)

    def end_for_memory(self, assignment: Assignment, error: MemoryLimitError) -> None:
        if assignment.worker is not None:
            self._kill_for_memory(assignment.worker, error)

    def free_memory(self) -> None:
        self.workers.shut_down_large()

    def _on_memory_exceeded(self, worker: ForkedWorkerHandle, assignment: Assignment, used: int) -> None:
        self._kill_for_memory(worker, memory_error(assignment, used))

    def _kill_for_memory(self, worker: ForkedWorkerHandle, error: MemoryLimitError) -> None:
        worker.crash_cause = error
        self.workers.retire(worker)
        worker.kill()

    # --- deaths ---

    def _on_exit(self, worker: ForkedWorkerHandle, si_code: int, si_status: int) -> None:
        """Report a worker's exit: what it had started crashed or was stopped, and the rest is handed back."""
        output_tail = self._read_rest(worker)
        self._memory.remove(worker)
        started = 0 if worker.lease_expired else worker.take_tickets()
        left = list(worker.queue)
        worker.queue.clear()
        if left:
            self._release(worker)
        for assignment in left:
            assignment.worker = None
        cannot_start = not worker.ready and (
            isinstance(worker.crash_cause, WorkerUnavailableError) or self.workers.start_failures >= MAX_START_FAILURES
        )
        ended = max(started, 1) if cannot_start else started
        if ended and si_code == os.CLD_KILLED and si_status == signal.SIGKILL and not worker.exit_expected:
            worker.crash_cause = worker.crash_cause or kernel_kill_error(worker.pid, oom_kills.claim())
        for assignment in left[:ended]:
            record_exit(assignment, si_code, si_status)
            self._report_death(worker, assignment, output_tail, worker.crash_cause)
        self._hand_back(left[ended:])
        _call_once(worker)


def _call_once(worker: ForkedWorkerHandle) -> None:
    on_usable, worker.on_usable = worker.on_usable, None
    if on_usable is not None:
        on_usable()
