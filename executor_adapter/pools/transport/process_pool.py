"""A pool of worker processes, as far as forked and spawned workers are alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import Assignment, WorkerPool
from executor_adapter.pools.transport.envelope import STOPPED, crashed
from executor_adapter.pools.transport.exit_errors import crash_error
from executor_adapter.pools.transport.payload import Payload, make_payload
from executor_adapter.pools.transport.worker_handle import WorkerHandle
from executor_adapter.worker import values, wire

if TYPE_CHECKING:
    from executor_adapter.job import Job

W = TypeVar("W", bound=WorkerHandle)


class ProcessSet(Protocol):
    """The workers of a pool, as far as forked and spawned ones are alike."""

    @property
    def pids(self) -> list[int]:
        """The pids of all living workers, the spare one included."""

    @property
    def idle_count(self) -> int:
        """Number of workers that are ready and have no assignment."""

    def close(self, on_closed: Callable[[], None]) -> None:
        """Shut down all workers, then call `on_closed`."""

    def resize(self, max_workers: int) -> None:
        """Keep workers for so many busy ones and one to spare; idle ones beyond that are shut down."""


class WorkerProcessPool(WorkerPool, Generic[W]):
    """Reads the frames of worker processes and reports what they contain."""

    name: ClassVar[str] = "process"
    can_stop_soft: ClassVar[bool] = True
    can_set_environment: ClassVar[bool] = True
    workers: ProcessSet

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

    def interrupt(self, assignment: Assignment) -> bool:
        worker: W | None = assignment.worker
        return worker is None or worker.stopping is not None or worker.interrupt(assignment)

    # --- frames ---

    def read_frames(self, worker: W) -> bool:
        """Read once from the worker's socket, and handle the frames. Return False if there was nothing to read."""
        try:
            frames = worker.reader.read()
        except BlockingIOError:
            return False
        except (EOFError, OSError):
            self._on_disconnect(worker)
            return False
        for kind, flags, _, seq, word, first, second, body in frames:
            if kind in wire.RESULT_KINDS:
                self._on_result(worker, kind, flags, word, first, second, body)
            elif kind == wire.MESSAGE:
                self._on_message(worker, flags, seq, body)
            elif kind == wire.READY:
                self._on_ready(worker, word, first)
            else:
                self._on_notice(worker, kind)
        return True

    @abstractmethod
    def _on_disconnect(self, worker: W) -> None:
        """Handle a closed socket: the worker has died, or its function closed the socket and it is about to exit."""

    @abstractmethod
    def _on_result(
        self, worker: W, kind: int, flags: int, peak: int, started: float, ended: float, body: bytes
    ) -> None:
        """Handle the result of the worker's first call. `peak`: its peak resident memory in KiB."""

    @abstractmethod
    def _on_ready(self, worker: W, pid: int, at: float) -> None:
        """Handle the start of the worker."""

    @abstractmethod
    def _on_notice(self, worker: W, kind: int) -> None:
        """Handle a DROPPED or STARTED frame."""

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

    # --- deaths ---

    def _read_rest(self, worker: W) -> str:
        """Read everything that a dead worker had sent. Return the end of its output."""
        while worker.listening and self.read_frames(worker):
            pass
        return worker.output.finish_dead()

    def _report_death(
        self, worker: W, assignment: Assignment, output_tail: str, cause: WorkerCrashedError | None = None
    ) -> None:
        """Report the end of an assignment that its worker had started, and that ended with the worker."""
        if assignment is worker.stopping:
            # When everything it started was seen dead, not when the function returned.
            assignment.ended_at = self.supervisor.now()
            self.supervisor.ended(assignment, STOPPED)
        else:
            error = crash_error(assignment, output_tail, was_ready=worker.ready, cause=cause)
            self.supervisor.ended(assignment, crashed(error))
