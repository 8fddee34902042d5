"""The process pool: gives assignments to worker processes, and takes their results.

How the processes of its workers are started, and how their ends are seen, is up to its launcher.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from executor_adapter.exceptions import MemoryLimitError, WorkerCrashedError, WorkerUnavailableError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, StartingPool
from executor_adapter.pools.memory.oom_kills import oom_kills
from executor_adapter.pools.process.handle import CallState, Launcher, WorkerHandle
from executor_adapter.pools.process.workers import MAX_START_FAILURES, WorkerSet
from executor_adapter.pools.transport.envelope import STOPPED, crashed, received
from executor_adapter.pools.transport.payload import Initializer, make_payload, worker_settings
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import values, wire
from executor_adapter.worker.process import EXIT_SETUP_FAILED
from executor_adapter.worker.reporter import EXIT_SOCKET_LOST

if TYPE_CHECKING:
    from executor_adapter.job import Job
    from executor_adapter.pools.process.memory_watch import MemoryWatch

logger = logging.getLogger("executor_adapter.process")


class ProcessPool(StartingPool[WorkerHandle]):
    """Worker processes, each with one call at a time, and short calls queued behind that.

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
    needs_flush = False
    prepare = staticmethod(make_payload)

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
        self.workers = WorkerSet(
            supervisor,
            max_workers,
            settings | {"held_fds": held_fds},
            start_timeout,
            make_launcher=self.make_launcher,
            on_frames=self.read_frames,
            on_exit=self.on_exit,
        )
        self._max_jobs = max_jobs_per_worker or sys.maxsize
        self._max_rss_growth = max_rss_growth
        self._path = SharedPath()
        oom_kills.observe()  # From now on a rise of the count is a death of this time.
        self._workers_to_write: list[WorkerHandle] = []
        """Workers with assignments that the next `flush` sends."""
        self._reserved: dict[Job, WorkerHandle] = {}
        """Workers without assignments that are kept for the next attempt of a job."""
        self._busy_workers: deque[WorkerHandle] = deque()
        self._memory: MemoryWatch | None = None
        """Measures attempts with a memory_limit, where the pool can limit it."""
        self._logged: set[str] = set()
        """Warnings of starting workers that are logged already."""
        self._may_have_room = True
        """Whether a call may be queued behind another; False until a worker is known to have room again."""

    @abstractmethod
    def make_launcher(self, settings: dict[str, Any], workers: WorkerSet) -> Launcher:
        """Return what starts the processes of `workers`; `settings` go to each."""

    def close(self, on_closed: Callable[[], None]) -> None:
        self.workers.close(on_closed)

    def resize(self, max_workers: int) -> None:
        super().resize(max_workers)
        self.workers.resize(max_workers)

    def set_lease(self, until: float) -> None:
        self.workers.launcher.set_lease(until)

    # --- assigning ---

    def reserve_worker(self, job: Job, on_ready: Callable[[], None]) -> None:
        try:
            worker = self.workers.take(job.live.memory_limit, new=bool(job.live.payload.flags & wire.OWN_WORKER))
        except Exception:
            on_ready()  # The attempt is refused for the same reason, in the usual way.
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

    def get_worker(self, assignment: Assignment) -> WorkerHandle:
        reserved = self._reserved.pop(assignment.job, None)
        if reserved is not None and not reserved.retired:
            return reserved
        return self.workers.take(assignment.memory_limit, new=bool(assignment.payload.flags & wire.OWN_WORKER))

    def has_workers(self) -> bool:
        return any(worker.ready for worker in self._busy_workers)

    def use(self, worker: WorkerHandle, assignment: Assignment) -> None:
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

    def _assign(self, worker: WorkerHandle, assignment: Assignment) -> None:
        worker.assign(assignment)
        if worker.unsent == 1:
            self._workers_to_write.append(worker)
            self.needs_flush = True

    def flush(self) -> None:
        if not self.needs_flush:
            return
        to_write, self._workers_to_write, self.needs_flush = self._workers_to_write, [], False
        for worker in to_write:
            self._write(worker)
        if self.workers.serving <= self.workers.peak_busy:
            self.workers.keep_spare()

    def _write(self, worker: WorkerHandle) -> None:
        if not worker.unsent:  # All of them were taken back.
            return
        if self.workers.launcher.spawns and not worker.ready:  # What is not sent is taken back at once.
            return
        nothing_before = worker.unsent == len(worker.queue)
        worker.write(self._path)
        if nothing_before and worker.ready:
            self._report_start(worker, self.supervisor.now())

    def _report_start(self, worker: WorkerHandle, at: float) -> None:
        assignment = worker.queue[0]
        assignment.pid = worker.process.pid
        assignment.started_at = at
        if self._memory is not None and assignment.memory_limit is not None:
            self._memory.add(worker, assignment)
        self.supervisor.started(assignment, at)

    def _release(self, worker: WorkerHandle) -> None:
        """Free the slot of a worker that has no assignments left."""
        if self._memory is not None and worker in self._memory.watched:
            self._memory.remove(worker)
        self.busy -= 1
        self._busy_workers.remove(worker)
        self._keep(worker)

    def _keep(self, worker: WorkerHandle) -> None:
        """Keep a worker without assignments for further ones, unless it is to be replaced."""
        if worker.retired:
            return
        process, growth = worker.process, self._max_rss_growth
        is_worn = worker.worn or worker.jobs_done >= self._max_jobs or not process.can_be_interrupted
        if is_worn or (growth is not None and process.growth() > growth):
            self.workers.shut_down(worker)
            self.workers.keep_spare()
        elif not worker.dropping:
            self.workers.put_back(worker)
            if self.waiting:
                self.start_waiting()

    # --- frames ---

    def read_frames(self, worker: WorkerHandle) -> bool:
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
            elif kind == wire.DROPPED:
                self._on_dropped(worker)
        if worker.queue:  # Only now: what has begun and ended in between needs no report of its start.
            self._report_following(worker)
        return True

    def _report_following(self, worker: WorkerHandle) -> None:
        """Report the start of what the worker runs now, unless that was reported."""
        if worker.ready and worker.sent > 0 and worker.queue[0].started_at is None:
            self._report_start(worker, worker.free_since)

    def _on_ready(self, worker: WorkerHandle, pid: int, at: float) -> None:
        self.workers.on_ready(worker, pid)
        if worker.sent > 0:
            self._report_start(worker, at)
        elif worker.unsent:
            self._workers_to_write.append(worker)
            self.needs_flush = True
        _call_once(worker)

    def _on_dropped(self, worker: WorkerHandle) -> None:
        worker.dropping -= 1
        if not (worker.queue or worker.dropping):
            self._keep(worker)

    def _on_message(self, worker: WorkerHandle, flags: int, seq: int, body: bytes) -> None:
        if not worker.ready:
            self._log_warning(body)
            return
        assignment = worker.assignment_of(seq)
        if not (flags & wire.UNTHROTTLED or worker.output.allowance.take(len(body))):
            if assignment is not None:
                worker.output.keep_refused(body)
            return
        (topic, content), _ = values.load_plain(body)
        if topic == "log" and assignment is not None:
            worker.output.add_record(content)
        self.supervisor.on_message(assignment, topic, content)

    def _log_warning(self, body: bytes) -> None:
        """Log a warning of a worker that is starting, which belongs to no job; only once, as each worker sends it."""
        (topic, content), _ = values.load_plain(body)
        if topic == "log" and content["level"] >= logging.WARNING and content["message"] not in self._logged:
            self._logged.add(content["message"])
            logger.warning("%s", content["message"])

    def _on_result(
        self, worker: WorkerHandle, kind: int, flags: int, peak: int, started: float, ended: float, body: bytes
    ) -> None:
        """Handle the result of the worker's first call. `peak`: its peak resident memory in KiB."""
        queue = worker.queue
        fd = worker.reader.fds.popleft() if flags & wire.IN_FILE else -1
        if flags & wire.HAS_OUTPUT:
            worker.read_output()
        if worker.output.has_output or worker.output.allowance.refused:
            worker.output.finish()
        assignment = queue[0]
        assignment.pid = worker.process.pid
        assignment.started_at = started
        assignment.ended_at = ended
        assignment.peak_rss = max(peak << 10, assignment.peak_rss or 0)
        if worker.stopping is assignment and not worker.ended_before_stop(ended):
            if fd >= 0:
                os.close(fd)
            return  # `_on_exit` reports the end
        queue.popleft()
        worker.head += 1
        worker.jobs_done += 1
        assignment.worker = None
        worker.worn = bool(assignment.payload.flags & wire.OWN_WORKER)
        worker.free_since = ended
        if queue:
            self._may_have_room = True
        else:
            self._release(worker)
        self.supervisor.ended(assignment, received(kind, flags, body, fd, assignment.job.job_id))

    # --- taking back and stopping ---

    def queues(self) -> Iterable[tuple[WorkerHandle, Sequence[Assignment]]]:
        return ((worker, worker.queue) for worker in self._busy_workers)

    def hand_back_behind(self, worker: WorkerHandle, running: Assignment) -> None:
        running.max_behind = 0
        _, removed = worker.take_back(running, or_those_behind=True)
        self._release_if_empty(worker, removed)
        self._hand_back(removed)

    def recall(self, assignment: Assignment) -> Recall:
        worker: WorkerHandle | None = assignment.worker
        if worker is None:
            return self.recall_waiting(assignment)
        state, removed = worker.take_back(assignment)
        self._release_if_empty(worker, removed)
        self._hand_back(removed)
        return Recall.TAKEN_BACK if state is CallState.WAITING else Recall.STARTED

    def interrupt(self, assignment: Assignment) -> bool:
        worker: WorkerHandle | None = assignment.worker
        return worker is None or worker.stopping is not None or worker.interrupt(assignment)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: WorkerHandle | None = assignment.worker
        if worker is None:
            self.end_waiting(assignment)
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

    def _release_if_empty(self, worker: WorkerHandle, removed: list[Assignment]) -> None:
        if removed and not worker.queue:
            self._release(worker)

    def _hand_back(self, assignments: list[Assignment]) -> None:
        """Hand assignments back, the last one first, since each goes to the front of the queue."""
        for assignment in reversed(assignments):
            self.supervisor.handed_back(assignment)

    # --- deaths ---

    def on_exit(self, worker: WorkerHandle, returncode: int | None) -> None:
        """Report a worker's exit: what it had started crashed or was stopped, and the rest is handed back."""
        output_tail = self._read_rest(worker)
        started = 0 if worker.lease_expired else worker.count_started()
        left = worker.take_all()
        if left:
            self._release(worker)
        cannot_start = not worker.ready and (
            isinstance(worker.crash_cause, WorkerUnavailableError) or self.workers.start_failures >= MAX_START_FAILURES
        )
        ended = max(started, 1) if cannot_start else started
        if ended and returncode == -signal.SIGKILL and not worker.exit_expected:
            worker.crash_cause = worker.crash_cause or kernel_kill_error(worker.process.pid, oom_kills.claim())
        for assignment in left[:ended]:
            if returncode is not None and returncode < 0:
                assignment.exit_signal = -returncode
            else:
                assignment.exit_code = returncode
            self._report_death(worker, assignment, output_tail)
        self._hand_back(left[ended:])
        _call_once(worker)

    def _read_rest(self, worker: WorkerHandle) -> str:
        """Read everything that a dead worker had sent. Return the end of its output."""
        while worker.listening and self.read_frames(worker):
            pass
        return worker.output.finish_dead()

    def _report_death(self, worker: WorkerHandle, assignment: Assignment, output_tail: str) -> None:
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


def crash_error(
    assignment: Assignment, output_tail: str, *, was_ready: bool, cause: WorkerCrashedError | None = None
) -> WorkerCrashedError:
    """Return the error of an assignment whose worker died: `cause` if this process knows it, else how it exited."""
    error = cause or WorkerCrashedError(_describe(assignment, was_ready))
    error.exit_code = assignment.exit_code
    error.exit_signal = assignment.exit_signal
    error.output_tail = output_tail
    return error


def kernel_kill_error(pid: int | None, group: str | None) -> WorkerCrashedError | None:
    """Return the error of a worker that died of a SIGKILL which this process did not send; None if nothing is known.

    `group`: see `OomKills.claim`.
    """
    if group is None:
        return None
    if not group:
        return WorkerCrashedError(
            f"worker {pid} was killed by SIGKILL, and not by the kernel: that has killed no process of its control "
            "group for lack of memory"
        )
    return MemoryLimitError(
        f"worker {pid} was killed by the kernel, because memory ran out (an OOM kill in the control group {group}): "
        "give its jobs a memory_limit, or run fewer at once"
    )


def _describe(assignment: Assignment, was_ready: bool) -> str:
    worker = "the worker" if assignment.pid is None else f"worker {assignment.pid}"
    if not was_ready:
        return f"{worker} {_exit(assignment)} before it was ready: see output_tail, and the pool's initializer"
    return f"{worker} {_exit(assignment)} while it ran the function"


def _exit(assignment: Assignment) -> str:
    if assignment.exit_signal is not None:
        # Whoever kills a worker in this program names the cause, so it was somebody else.
        others = " (not by this executor: by somebody else, or by the kernel, which does so when memory runs out)"
        hint = others if assignment.exit_signal == signal.SIGKILL else ""
        return f"was killed by {_signal_name(assignment.exit_signal)}{hint}"
    meaning = {EXIT_SOCKET_LOST: ": the function closed its socket", EXIT_SETUP_FAILED: ": its set-up failed"}
    return f"exited with code {assignment.exit_code}{meaning.get(assignment.exit_code or 0, '')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
