"""The process pool: gives assignments to worker processes, and takes their results.

How its workers are launched, and how their ends are seen, is up to its `workers`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, WorkerPool
from executor_adapter.pools.memory.oom_kills import oom_kills
from executor_adapter.pools.process.exit_errors import crash_error, kernel_kill_error, record_exit
from executor_adapter.pools.process.worker_handle import CallState, WorkerHandle
from executor_adapter.pools.process.workers import MAX_START_FAILURES, WorkerSet
from executor_adapter.pools.refused_starts import RefusedStarts
from executor_adapter.pools.transport.envelope import STOPPED, crashed, received
from executor_adapter.pools.transport.payload import Initializer, Payload, make_payload, worker_settings
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import values, wire

if TYPE_CHECKING:
    from executor_adapter.job import Job

W = TypeVar("W", bound=WorkerHandle)


class WorkerProcessPool(WorkerPool, Generic[W]):
    """Worker processes, each with one call at a time, and in some pools with short calls queued behind that.

    `preload`: modules that are imported once for all workers, or by each, before its first job. `initializer`: a
    function and its arguments, called in each worker before its first job. `start_timeout`: seconds that the preload
    may take, and then each worker until it is ready. `max_jobs_per_worker`: a worker is replaced after so many jobs.
    `max_rss_growth`: a worker is replaced when it has grown by so many bytes since it was ready. `nice`,
    `cpu_affinity`: apply to every worker. `held_fds`: descriptors that all processes of the pool hold, so that the
    kernel closes them when none is alive.
    """

    name: ClassVar[str] = "process"
    can_stop_soft: ClassVar[bool] = True
    can_set_environment: ClassVar[bool] = True
    workers_kind: ClassVar[type[WorkerSet[Any]]]

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
        self.workers = self.workers_kind(
            supervisor,
            max_workers,
            settings | {"held_fds": held_fds},
            start_timeout,
            on_frames=self.read_frames,
            on_exit=self.on_exit,
        )
        self._starts = RefusedStarts(supervisor, self._take_worker, self._use, self._has_workers, self.free_slot)
        self._max_jobs = max_jobs_per_worker or sys.maxsize
        self._max_rss_growth = max_rss_growth
        self._path = SharedPath()
        oom_kills.observe()  # From now on a rise of the count is a death of this time.
        self._workers_to_write: list[W] = []
        """Workers with assignments that the next `flush` sends."""
        self._reserved: dict[Job, W] = {}
        """Workers without assignments that are kept for the next attempt of a job."""
        self._busy_workers: deque[W] = deque()
        self._may_have_room = True
        """Whether a call may be queued behind another; False until a worker is known to have room again."""

    @property
    def pids(self) -> list[int]:
        """The pids of all living workers, the spare one included."""
        return self.workers.pids

    @property
    def idle(self) -> int:
        """Number of workers that are ready and have no assignment."""
        return self.workers.idle_count

    def close(self, on_closed: Callable[[], None]) -> None:
        self.workers.close(on_closed)

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        return make_payload(job)

    def resize(self, max_workers: int) -> None:
        super().resize(max_workers)
        self.workers.resize(max_workers)

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

    def _take_worker(self, assignment: Assignment) -> W:
        reserved = self._reserved.pop(assignment.job, None)
        if reserved is not None and not reserved.retired:
            return reserved
        worker: W = self.workers.take(assignment.memory_limit, new=assignment.payload.own_worker)
        return worker

    def _has_workers(self) -> bool:
        return any(worker.ready for worker in self._busy_workers)

    def start(self, assignment: Assignment) -> None:
        self.busy += 1
        self._starts.start(assignment)

    def _use(self, worker: W, assignment: Assignment) -> None:
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

    def _assign(self, worker: W, assignment: Assignment) -> None:
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

    def _write(self, worker: W) -> None:
        if not worker.unsent:  # All of them were taken back.
            return
        nothing_before = worker.unsent == len(worker.queue)
        worker.write(self._path)
        if nothing_before and worker.ready:
            self._report_start(worker, self.supervisor.now())

    def _report_start(self, worker: W, at: float) -> None:
        assignment = worker.queue[0]
        assignment.pid = worker.pid
        assignment.started_at = at
        if assignment.memory_limit is not None:
            self._measure(worker, assignment, assignment.memory_limit)
        self.supervisor.started(assignment, at)

    def _release(self, worker: W) -> None:
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

    def read_frames(self, worker: W) -> bool:
        """Read once from the worker's socket, and handle the frames. Return False if there was nothing to read."""
        try:
            frames = worker.reader.read()
        except BlockingIOError:
            return False
        except (EOFError, OSError):
            self.workers.on_disconnect(worker)
            return False
        for kind, flags, _, seq, word, first, second, body in frames:
            if kind in wire.RESULT_KINDS:
                self._on_result(worker, kind, flags, word, first, second, body)
            elif kind == wire.MESSAGE:
                self._report_following(worker)
                self._on_message(worker, flags, seq, body)
            elif kind == wire.READY:
                self._on_ready(worker, word, first)
            elif kind == wire.STARTED:
                worker.call_started = True
            elif kind == wire.DROPPED:
                self._on_dropped(worker)
        self._report_following(worker)  # Only now: what has begun and ended in between needs no report of its start.
        return True

    def _report_following(self, worker: W) -> None:
        """Report the start of what the worker runs now, unless that was reported."""
        if worker.ready and worker.sent > 0 and worker.queue[0].started_at is None:
            self._report_start(worker, worker.free_since)

    def _on_ready(self, worker: W, pid: int, at: float) -> None:
        self.workers.on_ready(worker, pid)
        if worker.sent > 0:
            self._report_start(worker, at)
        elif worker.unsent:
            self._workers_to_write.append(worker)
        _call_once(worker)

    def _on_dropped(self, worker: W) -> None:
        worker.dropping = False
        if not worker.queue and not worker.retired:
            self.workers.put_back(worker)
            self._starts.retry()

    def _on_message(self, worker: W, flags: int, seq: int, body: bytes) -> None:
        assignment = worker.assignment_of(seq)
        if not (flags & wire.UNTHROTTLED or worker.output.allowance.take(len(body))):
            if assignment is not None:
                worker.output.keep_refused(body)
            return
        (topic, content), _ = values.load_plain(body)
        if topic == "log" and assignment is not None:
            worker.output.add_record(content)
        self.supervisor.on_message(assignment, topic, content)

    def _on_result(
        self, worker: W, kind: int, flags: int, peak: int, started: float, ended: float, body: bytes
    ) -> None:
        """Handle the result of the worker's first call. `peak`: its peak resident memory in KiB."""
        queue = worker.queue
        fd = worker.reader.fds.popleft() if flags & wire.IN_FILE else -1
        if flags & wire.HAS_OUTPUT:
            worker.read_output()
        worker.output.finish()
        assignment = queue[0]
        if assignment.memory_limit is not None:
            self._stop_measuring(worker)
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

    def _measure(self, worker: W, assignment: Assignment, limit: int) -> None:
        """Measure the memory of the worker while it runs an attempt that may hold `limit` bytes."""

    def _stop_measuring(self, worker: W) -> None:
        """Measure the memory of the worker no more, if that was done for the attempt that it ran."""

    # --- taking back and stopping ---

    def queues(self) -> Iterable[tuple[W, Sequence[Assignment]]]:
        return ((worker, worker.queue) for worker in self._busy_workers)

    def hand_back_behind(self, worker: W, running: Assignment) -> None:
        running.short = False
        _, removed = worker.take_back(running, or_those_behind=True)
        self._release_if_empty(worker, removed)
        self._hand_back(removed)

    def recall(self, assignment: Assignment) -> Recall:
        worker: W | None = assignment.worker
        if worker is None:
            if not self._starts.take_back(assignment):
                return Recall.STARTED
            self.supervisor.handed_back(assignment)
            return Recall.TAKEN_BACK
        state, removed = worker.take_back(assignment)
        self._release_if_empty(worker, removed)
        self._hand_back(removed)
        return Recall.TAKEN_BACK if state is CallState.WAITING else Recall.STARTED

    def interrupt(self, assignment: Assignment) -> bool:
        worker: W | None = assignment.worker
        return worker is None or worker.stopping is not None or worker.interrupt(assignment)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: W | None = assignment.worker
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

    def _release_if_empty(self, worker: W, removed: list[Assignment]) -> None:
        if removed and not worker.queue:
            self._release(worker)

    def _hand_back(self, assignments: list[Assignment]) -> None:
        """Hand assignments back, the last one first, since each goes to the front of the queue."""
        for assignment in reversed(assignments):
            self.supervisor.handed_back(assignment)

    # --- deaths ---

    def on_exit(self, worker: W, returncode: int) -> None:
        """Report a worker's exit: what it had started crashed or was stopped, and the rest is handed back."""
        output_tail = self._read_rest(worker)
        self._stop_measuring(worker)
        started = 0 if worker.lease_expired else worker.count_started()
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
        if ended and returncode == -signal.SIGKILL and not worker.exit_expected:
            worker.crash_cause = worker.crash_cause or kernel_kill_error(worker.pid, oom_kills.claim())
        for assignment in left[:ended]:
            record_exit(assignment, returncode)
            self._report_death(worker, assignment, output_tail)
        self._hand_back(left[ended:])
        _call_once(worker)

    def _read_rest(self, worker: W) -> str:
        """Read everything that a dead worker had sent. Return the end of its output."""
        while worker.listening and self.read_frames(worker):
            pass
        return worker.output.finish_dead()

    def _report_death(self, worker: W, assignment: Assignment, output_tail: str) -> None:
        """Report the end of an assignment that its worker had started, and that ended with the worker."""
        if assignment is worker.stopping:
            # When everything it started was seen dead, not when the function returned.
            assignment.ended_at = self.supervisor.now()
            self.supervisor.ended(assignment, STOPPED)
        else:
            error = crash_error(assignment, output_tail, was_ready=worker.ready, cause=worker.crash_cause)
            self.supervisor.ended(assignment, crashed(error))


def _call_once(worker: WorkerHandle) -> None:
    on_usable, worker.on_usable = worker.on_usable, None
    if on_usable is not None:
        on_usable()
