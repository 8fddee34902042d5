"""Processes: able to be killed, to crash alone, and to use every core.

    supervisor's thread                guardian (one small process)      worker (one process each)
    ProcessPool ── Guardian ───────────► forks, buries ─────────────────► reads a call, takes its ticket,
         └─────── WorkerHandle ◄────────── one socket, one eventfd, two pipes ──► runs it, writes its result whole

No lock, queue or pipe is shared by two workers, so none can be left broken by the death of one.

**Starting.** The guardian is started with the first worker, workers when they are needed, and one more than were ever
busy at once (at most max_workers + 1), so that capacity is back at once when one is killed. A worker is bound to an
assignment before it is ready: its socket holds the call until then. The first call at a worker that is ready counts as
started when it is sent, the one behind it when the result before it arrives; results carry exact times.

**Ending.** `stop` takes back a call that has not begun (see `worker`: tickets). Else the worker's process group gets
SIGTERM, and the worker SIGKILL after the grace. Its attempt is over once the guardian says that nothing below the
worker is alive. A function that ended by itself before it was asked to is reported as it ended. Kills run side by side.
A worker that was asked to stop is not used again.

**Dying.** The guardian reports how a worker exited and that its tree is dead. What the worker had written is read
first; then the tickets it left tell what it had begun: that attempt CRASHED, the others are handed back. A worker
that dies before it is ready takes its first assignment along from the third time in a row on: else a failing
initializer would be tried for ever. If the guardian dies, the kernel kills its workers, and what they had started is
found by a mark in its environment (`process_tree.kill_marked`); the next need starts another guardian.

**Leaving things behind.** What a function leaves running (processes, threads, changed globals) stays until its worker
is stopped or recycled (`max_jobs_per_worker`, `max_rss_growth`), as in any pool that reuses processes. A job with a
memory limit is not given to a worker in which that is much. All our
descriptors are close-on-exec. A process that the host forks without exec holds copies of them: harmless, since workers
are told to leave by shutting the socket down, and the guardian watches the host itself.

Needs Linux 5.4 or later: pidfds, eventfds, memfds and subreapers have no counterpart elsewhere. There `spawned` takes
its place.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor, WorkerPool
from executor_adapter.pools.guardian.memory_watch import MemoryWatch
from executor_adapter.pools.guardian.worker_handle import Standing, WorkerHandle
from executor_adapter.pools.guardian.workers import START_FAILURES, Crew
from executor_adapter.pools.transport.exit_errors import crash_error, memory_error, set_exit
from executor_adapter.pools.transport.payload import Payload, make_payload, worker_settings
from executor_adapter.pools.transport.reports import discard, tell_result, tell_said
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import wire

if TYPE_CHECKING:
    from executor_adapter.job.model import Job

_HEARD = wire.frame(wire.HEARD)

_SHARE_LEFT_BEHIND = 0.5
"""Of a memory limit, that earlier jobs of the worker may already hold: much of it may be modules that they imported,
and a worker that had to import them again would take far longer."""


class ProcessPool(WorkerPool):
    """Worker processes under a guardian; see the module.

    `preload`: modules that the guardian imports, so that no worker needs to. `initializer`: a function and its
    arguments, called in each worker before its first job. `max_jobs_per_worker`, `max_rss_growth` (bytes): a worker is
    replaced after so many jobs, or when it has grown by so much since it was ready. `nice`, `cpu_affinity`: of every
    worker.
    """

    name: ClassVar[str] = "process"
    can_limit_memory: ClassVar[bool] = True
    can_stop_soft: ClassVar[bool] = True

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        preload: str | tuple[str, ...] = (),
        initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
        max_jobs_per_worker: int | None = None,
        max_rss_growth: int | None = None,
        nice: int | None = None,
        cpu_affinity: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(supervisor, max_workers)
        settings = worker_settings(preload=preload, initializer=initializer, nice=nice, cpu_affinity=cpu_affinity)
        self._crew = Crew(supervisor, max_workers, settings, on_frames=self._on_frames, on_gone=self._on_gone)
        self._max_jobs = max_jobs_per_worker or sys.maxsize
        self._max_rss_growth = max_rss_growth
        self._path = SharedPath()
        self._memory = MemoryWatch(supervisor, self._memory_exceeded)
        self._given: list[WorkerHandle] = []
        self._busy_workers: deque[WorkerHandle] = deque()
        self._has_room = True

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        return make_payload(job)

    @property
    def pids(self) -> list[int]:
        """The workers that are alive, the spare one included."""
        return self._crew.pids

    @property
    def idle(self) -> int:
        """Workers that are ready and have nothing to do."""
        return self._crew.idle

    def close(self, on_closed: Callable[[], None]) -> None:
        self._crew.close(on_closed)

    # --- giving ---

    def start(self, assignment: Assignment) -> None:
        worker = self._take_for(assignment)
        self.busy += 1
        if self.busy > self._crew.most_busy:
            self._crew.most_busy = self.busy
        self._busy_workers.append(worker)
        self._has_room = True
        try:
            self._give(worker, assignment)
        except Exception:
            self._emptied(worker)
            raise

    def _take_for(self, assignment: Assignment) -> WorkerHandle:
        """A worker in which earlier jobs left little, if the assignment's memory is limited: it is not to die for it.

        Raises:
            OSError: none can be started.
        """
        worker, limit = self._crew.take(), assignment.memory_limit
        while limit is not None and worker.left_behind() > _SHARE_LEFT_BEHIND * limit:
            self._crew.dismiss(worker)
            worker = self._crew.take()
        return worker

    def queue_behind(self, assignment: Assignment) -> bool:
        if not self._has_room or assignment.memory_limit is not None:
            return False
        busy = self._busy_workers
        for _ in range(len(busy)):
            worker = busy[0]
            busy.rotate(-1)
            if worker.takes_another(self._max_jobs):
                self._give(worker, assignment)
                return True
        self._has_room = False
        return False

    def queues(self) -> Iterable[tuple[WorkerHandle, Sequence[Assignment]]]:
        return ((worker, worker.queue) for worker in self._busy_workers)

    def hand_back_behind(self, worker: WorkerHandle, running: Assignment) -> None:
        running.short = False
        _, voided = worker.take_back(running, or_those_behind=True)
        self._taken_back(worker, voided)
        self._hand_back(voided)

    def _give(self, worker: WorkerHandle, assignment: Assignment) -> None:
        worker.give(assignment)
        if worker.unsent == 1:
            self._given.append(worker)

    def flush(self) -> None:
        if self._given:
            self._path.look()
            given, self._given = self._given, []
            for worker in given:
                self._write(worker)
            self._crew.keep_spare()

    def _write(self, worker: WorkerHandle) -> None:
        if not worker.unsent:  # taken back
            return
        none_before = worker.unsent == len(worker.queue)
        worker.write(self._path)
        if none_before and worker.ready:
            self._tell_started(worker, self.supervisor.now())

    def _tell_started(self, worker: WorkerHandle, at: float) -> None:
        assignment = worker.queue[0]
        assignment.pid = worker.pid
        assignment.started_at = at
        if assignment.memory_limit is not None:
            self._memory.add(worker, assignment)
        self.supervisor.started(assignment, at)

    # --- hearing ---

    def _on_frames(self, worker: WorkerHandle) -> None:
        self._read(worker)

    def _read(self, worker: WorkerHandle) -> bool:
        """Take what one read gives; False where nothing is left."""
        try:
            frames = worker.reader.read()
        except BlockingIOError:
            return False
        except (EOFError, OSError):
            self._crew.lose_touch(worker)
            return False
        for kind, flags, _, seq, word, first, second, body in frames:
            if kind in wire.RESULTS:
                self._on_result(worker, kind, flags, word, first, second, body)
            elif kind == wire.SAID:
                self._on_said(worker, flags, seq, body)
            elif kind == wire.READY:
                self._on_ready(worker, word, first)
            elif kind == wire.DROPPED:
                worker.dropping = False
                if not worker.queue and not worker.doomed:
                    self._crew.put_back(worker)
        return True

    def _on_ready(self, worker: WorkerHandle, pid: int, at: float) -> None:
        self._crew.ready(worker, pid)
        if len(worker.queue) > worker.unsent:
            self._tell_started(worker, at)

    def _on_result(
        self, worker: WorkerHandle, kind: int, flags: int, peak: int, began: float, ended: float, body: bytes
    ) -> None:
        queue = worker.queue
        fd = worker.reader.fds.popleft() if flags & wire.IN_FILE else -1
        if flags & wire.OUTPUT:
            worker.output.drain()
            worker.outbox.send(_HEARD)
        worker.output.finish(ended)
        assignment = queue[0]
        if assignment.memory_limit is not None:
            self._memory.remove(worker)
        assignment.pid = worker.pid
        assignment.started_at = began
        assignment.ended_at = ended
        assignment.peak_rss = max(peak << 10, assignment.peak_rss or 0)
        if worker.stopping is not None:
            # What it started must go too; `gone` follows.
            worker.kill()
            if ended > worker.stop_at:  # it did as it was asked
                discard(fd)
                return
            worker.stopping = assignment.stop_asked_at = None  # it had ended before
        queue.popleft()
        worker.head += 1
        worker.done += 1
        assignment.worker = None
        if not queue:
            self._emptied(worker)
            tell_result(self.supervisor, assignment, kind, flags, body, fd)
            return
        self._has_room = True
        following = queue[0] if worker.sent else None
        tell_result(self.supervisor, assignment, kind, flags, body, fd)
        if following is not None and following.worker is worker:  # else it was taken back meanwhile
            self._tell_started(worker, ended)

    def _on_said(self, worker: WorkerHandle, flags: int, seq: int, body: bytes) -> None:
        if flags & wire.LOUD or worker.output.allowance.grant(len(body)):
            speaker = worker.speaker() if seq == worker.head & wire.WORD else None
            tell_said(self.supervisor, speaker, body)

    def _emptied(self, worker: WorkerHandle) -> None:
        """It has no assignment left."""
        self.busy -= 1
        self._busy_workers.remove(worker)
        if worker.doomed:
            return
        if worker.is_worn(self._max_jobs, self._max_rss_growth):
            self._crew.dismiss(worker)
            self._crew.keep_spare()
        elif not worker.dropping:
            self._crew.put_back(worker)

    # --- taking back, and ending ---

    def recall(self, assignment: Assignment) -> bool:
        worker: WorkerHandle | None = assignment.worker
        if worker is None:
            return False
        standing, voided = worker.take_back(assignment)
        self._taken_back(worker, voided)
        self._hand_back(voided)
        return standing is Standing.WAITING

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: WorkerHandle | None = assignment.worker
        if worker is None:
            return
        if worker.stopping is assignment:
            worker.hasten(grace)
            return
        standing, voided = worker.take_back(assignment, or_those_behind=True)
        self._taken_back(worker, voided)
        if standing is Standing.WAITING:
            self.supervisor.ended(voided.pop(0), Ending.STOPPED)
        elif standing is Standing.RUNNING:
            self._crew.doom(worker)
            worker.terminate(assignment, grace)
        self._hand_back(voided)

    def _taken_back(self, worker: WorkerHandle, voided: list[Assignment]) -> None:
        if voided and not worker.queue:
            self._emptied(worker)

    def _hand_back(self, assignments: list[Assignment]) -> None:
        """The last first: each goes back to the front of the queue."""
        for assignment in reversed(assignments):
            self.supervisor.handed_back(assignment)

    def interrupt(self, assignment: Assignment) -> None:
        worker: WorkerHandle | None = assignment.worker
        if worker is not None and worker.stopping is None:
            worker.interrupt(assignment)

    def _memory_exceeded(self, worker: WorkerHandle, assignment: Assignment, held: int) -> None:
        worker.verdict = memory_error(assignment, held)
        self._crew.doom(worker)
        worker.kill()

    def _on_gone(self, worker: WorkerHandle, si_code: int, si_status: int) -> None:
        """Read what it had still written; then what it had begun crashed, or was stopped, and the rest comes back."""
        while worker.hears and self._read(worker):
            pass
        worker.output.drain()
        tail = worker.output.tail()
        worker.output.finish(time.monotonic())
        self._memory.remove(worker)
        begun = worker.freeze()
        left = list(worker.queue)
        worker.queue.clear()
        if left:
            self._emptied(worker)
        cannot_start = not worker.ready and self._crew.start_failures >= START_FAILURES
        fallen = max(begun, 1) if cannot_start else begun
        for assignment in left:
            assignment.worker = None
        for assignment in left[:fallen]:
            set_exit(assignment, si_code, si_status)
            self._fell(worker, assignment, tail)
        self._hand_back(left[fallen:])

    def _fell(self, worker: WorkerHandle, assignment: Assignment, tail: str) -> None:
        if assignment is worker.stopping:
            assignment.ended_at = self.supervisor.now()  # when its tree was seen dead, not when its function let go
            self.supervisor.ended(assignment, Ending.STOPPED)
        else:
            error = crash_error(assignment, tail, was_up=worker.ready, verdict=worker.verdict)
            self.supervisor.ended(assignment, Ending.CRASHED, error=error)
