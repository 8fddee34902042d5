"""Processes where there is no Linux: each worker an interpreter of its own, spawned by the host.

    supervisor's thread                 worker (one process each)
    SpawnedPool ── SpawnedProcess ───────► reads a call, says BEGUN, runs it, writes its result whole
                                one socket, two pipes, one lifeline

It keeps the promises of `process` with what every Unix has: one call at a time in each worker, a session and process
group each, ended by SIGTERM, grace and SIGKILL; no lock, queue or pipe is shared by two workers, so none can be left
broken by the death of one; `__main__` is not imported.

**Starting.** Workers are started when needed, and one more than are needed (at most max_workers + 1), so that capacity
is back soon after a kill. An assignment waits here until a worker is ready, and counts as started when it is sent.

**Dying.** A worker's death is seen by the end of its socket and then by waiting for its process; that of one whose
socket a forked process holds open, within PULSE seconds. What it had written is read first. If it had said that it
began its call, that attempt CRASHED, else it is handed back. Workers that die before they are ready take an assignment
along from the third time in a row on: else a failing initializer would be tried for ever.

**What is weaker here than under the guardian:**

- What leaves the worker's process group (a session of its own, a daemon forked twice) is not found, and lives on.
- When the host is killed, a worker ends as soon as its watching thread gets the GIL: one that sits in C code for a
  minute ends after that minute.
- A new worker takes an interpreter's start (some 0.1 s, and the imports of the preload list) instead of milliseconds.
- No memory_limit, no max_rss_growth: other systems tell nobody how much a tree of processes holds. Peaks of memory are
  those of the worker so far.
- One call at a time, so each short job costs a round trip.
- Without memory files (macOS) large values travel through the socket: copied, and at most 4 GiB.
"""

from __future__ import annotations

import logging
import pickle
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor, Timer, WorkerPool
from executor_adapter.pools.spawned.worker_handle import SpawnedProcess
from executor_adapter.pools.transport import functions
from executor_adapter.pools.transport.exit_errors import crash_error
from executor_adapter.pools.transport.payload import Payload, make_payload, worker_settings
from executor_adapter.pools.transport.reports import discard, tell_result, tell_said
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import wire

if TYPE_CHECKING:
    from executor_adapter.job.model import Job

logger = logging.getLogger("executor_adapter.process")

START_FAILURES = 3
"""Workers that die in a row before they are ready, until one takes an assignment with it."""
PULSE = 1.0
"""Seconds between two looks whether busy workers live."""

_HEARD = wire.frame(wire.HEARD)


class SpawnedPool(WorkerPool):
    """Spawned worker processes; see the module.

    `preload`: modules that each worker imports before its first job. `initializer`: a function and its arguments,
    called in each worker before its first job. `max_jobs_per_worker`: a worker is replaced after so many. `nice`,
    `cpu_affinity`: of every worker.
    """

    name: ClassVar[str] = "process"
    can_stop_soft: ClassVar[bool] = True

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        preload: str | tuple[str, ...] = (),
        initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
        max_jobs_per_worker: int | None = None,
        nice: int | None = None,
        cpu_affinity: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(supervisor, max_workers)
        self._settings = worker_settings(preload=preload, initializer=initializer, nice=nice, cpu_affinity=cpu_affinity)
        self._max_jobs = max_jobs_per_worker or sys.maxsize
        self._path = SharedPath()
        self._waiting: dict[Assignment, bytes] = {}
        """Those that no worker has yet, in order, each with what is of this attempt alone."""
        self._members: set[SpawnedProcess] = set()
        self._serving: set[SpawnedProcess] = set()
        """Members that are given calls; the others die soon."""
        self._idle: list[SpawnedProcess] = []
        self._start_failures = 0
        self._hire_after = 0.0
        """The system refused a process: it is asked again at this time."""
        self._noted: set[str] = set()
        self._pulse: Timer | None = None
        self._closing = False
        self._on_closed: Callable[[], None] | None = None

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        return make_payload(job)

    @property
    def pids(self) -> list[int]:
        """The workers that are alive, the spare one included."""
        return [worker.pid for worker in self._members]

    @property
    def idle(self) -> int:
        """Workers that are ready and have nothing to do."""
        return len(self._idle)

    # --- giving ---

    def start(self, assignment: Assignment) -> None:
        rest = b""
        if assignment.scope is not None or assignment.checkpoint is not None:
            rest = functions.dumps((assignment.scope, assignment.checkpoint))
        if not self._idle and not self._starting():
            self._hire()
        self.busy += 1
        self._waiting[assignment] = rest
        if self._idle:
            self._employ(self._idle.pop())

    def flush(self) -> None:
        self._hire_enough()

    def _employ(self, worker: SpawnedProcess) -> None:
        """Give the first assignment that waits to a worker that has nothing to do."""
        assignment = next(iter(self._waiting))
        assignment.worker = worker
        assignment.pid = worker.pid
        assignment.started_at = self.supervisor.now()
        worker.send(assignment, self._waiting.pop(assignment), self._path)
        if self._pulse is None:
            self._feel_pulse_later()
        self.supervisor.started(assignment, assignment.started_at)

    def _put_back(self, worker: SpawnedProcess) -> None:
        self._idle.append(worker)
        if self._waiting:
            self._employ(self._idle.pop())

    # --- hiring, and parting ---

    def _starting(self) -> int:
        return sum(not worker.ready for worker in self._serving)

    def _hire(self) -> None:
        worker = SpawnedProcess(self.supervisor, self, self._settings)
        self._members.add(worker)
        self._serving.add(worker)

    def _hire_enough(self) -> None:
        """Have a worker for each assignment that waits, and one to spare."""
        if self._closing or (self._serving and self.supervisor.now() < self._hire_after):
            return
        try:
            while self._starting() + len(self._idle) < self._wanted():
                self._hire()
        except OSError as error:
            self._hire_after = self.supervisor.now() + PULSE
            self._cannot_hire(error)

    def _wanted(self) -> int:
        wanted = len(self._waiting)
        if len(self._serving) <= self.max_workers and self._start_failures < START_FAILURES:
            wanted += 1
        return wanted

    def _cannot_hire(self, error: OSError) -> None:
        logger.warning("no further worker can be started: %s", error)
        if not self._serving:  # nobody will ever come for what waits
            for assignment in list(self._waiting):
                self._crash_waiting(assignment, WorkerCrashedError(f"no process could be started: {error}"))

    def _crash_waiting(self, assignment: Assignment, error: WorkerCrashedError) -> None:
        del self._waiting[assignment]
        self.busy -= 1
        self.supervisor.ended(assignment, Ending.CRASHED, error=error)

    def _doom(self, worker: SpawnedProcess) -> None:
        """Give it nothing more."""
        self._serving.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)

    def _dismiss(self, worker: SpawnedProcess) -> None:
        self._doom(worker)
        if worker.ready:
            worker.hang_up()
        else:
            worker.kill()  # no job's function runs in it

    def close(self, on_closed: Callable[[], None]) -> None:
        self._closing = True
        self._on_closed = on_closed
        for worker in list(self._members):
            self._dismiss(worker)
        self._close_further()

    def _close_further(self) -> None:
        if self._on_closed is not None and not self._members:
            on_closed, self._on_closed = self._on_closed, None
            if self._pulse is not None:
                self._pulse.cancel()
            on_closed()

    # --- hearing ---

    def on_frames(self, worker: SpawnedProcess) -> None:
        self._read(worker)

    def _read(self, worker: SpawnedProcess) -> bool:
        """Take what one read gives; False where nothing is left."""
        try:
            frames = worker.reader.read()
        except BlockingIOError:
            return False
        except (EOFError, OSError):
            self._doom(worker)
            worker.lose_touch()
            return False
        for kind, flags, _, seq, word, first, second, body in frames:
            if kind in wire.RESULTS:
                self._on_result(worker, kind, flags, word, first, second, body)
            elif kind == wire.SAID:
                self._on_said(worker, flags, seq, body)
            elif kind == wire.BEGUN:
                worker.begun = True
            elif kind == wire.READY:
                worker.ready = True
                self._start_failures = 0
                if worker in self._serving:
                    self._put_back(worker)
        return True

    def _on_result(
        self, worker: SpawnedProcess, kind: int, flags: int, peak: int, began: float, ended: float, body: bytes
    ) -> None:
        fd = worker.reader.fds.popleft() if flags & wire.IN_FILE else -1
        if flags & wire.OUTPUT:
            worker.output.drain()
            worker.outbox.send(_HEARD)
        worker.output.finish(ended)
        assignment = worker.queue[0]
        assignment.started_at = began
        assignment.ended_at = ended
        assignment.peak_rss = peak << 10
        if worker.stopping is not None:
            # What it started must go too; `on_gone` follows.
            worker.kill()
            if ended > worker.stop_at:  # it did as it was asked
                discard(fd)
                return
            worker.stopping = assignment.stop_asked_at = None  # it had ended before
        worker.done += 1
        self._take_from(worker)
        if worker.done >= self._max_jobs and worker in self._serving:
            self._dismiss(worker)
        elif worker in self._serving:
            self._put_back(worker)
        tell_result(self.supervisor, assignment, kind, flags, body, fd)

    def _take_from(self, worker: SpawnedProcess) -> Assignment | None:
        """It has its assignment no more."""
        if not worker.queue:
            return None
        assignment = worker.queue.popleft()
        assignment.worker = None
        self.busy -= 1
        return assignment

    def _on_said(self, worker: SpawnedProcess, flags: int, seq: int, body: bytes) -> None:
        if not worker.ready:
            self._note(body)
        elif flags & wire.LOUD or worker.output.allowance.grant(len(body)):
            tell_said(self.supervisor, worker.speaker(seq), body)

    def _note(self, body: bytes) -> None:
        """What a worker logs before it is ready is of no job; each says the same."""
        topic, content = pickle.loads(body)
        if topic == "log" and content["level"] >= logging.WARNING and content["message"] not in self._noted:
            self._noted.add(content["message"])
            logger.warning("%s", content["message"])

    # --- taking back, and ending ---

    def recall(self, assignment: Assignment) -> bool:
        if assignment not in self._waiting:
            return False
        del self._waiting[assignment]
        self.busy -= 1
        self.supervisor.handed_back(assignment)
        return True

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        worker: SpawnedProcess | None = assignment.worker
        if assignment in self._waiting:
            del self._waiting[assignment]
            self.busy -= 1
            self.supervisor.ended(assignment, Ending.STOPPED)
        elif worker is not None and worker.stopping is assignment:
            worker.hasten(grace)
        elif worker is not None:
            self._doom(worker)
            worker.terminate(grace)

    def interrupt(self, assignment: Assignment) -> None:
        worker: SpawnedProcess | None = assignment.worker
        if worker is not None and worker.stopping is None:
            worker.interrupt()

    def _feel_pulse_later(self) -> None:
        self._pulse = self.supervisor.call_at(self.supervisor.now() + PULSE, self._feel_pulse)

    def _feel_pulse(self) -> None:
        self._pulse = None
        for worker in [worker for worker in self._members if worker.queue]:
            if worker.is_dead():
                worker.look()
        if self.busy:
            self._feel_pulse_later()

    def on_gone(self, worker: SpawnedProcess, returncode: int) -> None:
        """Read what it had still written; what it had begun crashed, or was stopped, and what it had not comes back."""
        self._doom(worker)
        while worker.hears and self._read(worker):
            pass
        worker.output.drain()
        tail = worker.output.tail()
        worker.output.finish(time.monotonic())
        self._members.discard(worker)
        assignment = self._take_from(worker)
        worker.close()
        if assignment is not None:
            self._fell(worker, assignment, returncode, tail)
        elif not worker.ready and not worker.let_go:
            self._failed_to_start(returncode, tail)
        self._hire_enough()
        self._close_further()

    def _fell(self, worker: SpawnedProcess, assignment: Assignment, returncode: int, tail: str) -> None:
        if assignment is worker.stopping:
            assignment.ended_at = self.supervisor.now()  # when its group was seen dead, not when its function let go
            self.supervisor.ended(assignment, Ending.STOPPED)
        elif worker.begun:
            _set_exit(assignment, returncode)
            error = crash_error(assignment, tail, was_up=True, verdict=None)
            self.supervisor.ended(assignment, Ending.CRASHED, error=error)
        else:
            self.supervisor.handed_back(assignment)

    def _failed_to_start(self, returncode: int, tail: str) -> None:
        self._start_failures += 1
        if self._start_failures >= START_FAILURES and self._waiting:
            assignment = next(iter(self._waiting))
            _set_exit(assignment, returncode)
            self._crash_waiting(assignment, crash_error(assignment, tail, was_up=False, verdict=None))


def _set_exit(assignment: Assignment, returncode: int) -> None:
    if returncode >= 0:
        assignment.exit_code = returncode
    else:
        assignment.exit_signal = -returncode
