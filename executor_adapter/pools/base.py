"""What the supervisor and a pool say to one another.

Every method of a pool, and every method of the supervisor but `call_soon`, is called on the supervisor's thread
alone, so neither side needs a lock. A pool never blocks there: what takes time is done by its workers, and it hears
of that through `PoolSupervisor.watch` (a file descriptor), `call_at` (a time) or `call_soon` (another thread).

A worker holds one slot while it has at least one assignment. It runs one assignment at a time; further ones may lie
ready behind it (`queue_behind`), begun only when the one before has ended, and to be had back by `recall`.
"""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from executor_adapter.job.model import Job


class Ending(Enum):
    """How an attempt ended, as its pool saw it."""

    RETURNED = "the function returned; `value` is what it gave"
    RAISED = "the function raised `error`"
    UNSENDABLE = "function, argument or result could not travel; `error` is a JobSerializationError"
    CRASHED = "its worker died unasked; `error` is a WorkerCrashedError"
    STOPPED = "it ended because `stop` was called, and nothing of it is alive"
    ABANDONED = "`stop` was called and it cannot be ended (a thread stuck in C): it is written off"


class Assignment:
    """One attempt of one job, given to one pool; the pool fills in what it learns."""

    __slots__ = (
        "checkpoint", "context", "ended_at", "exit_code", "exit_signal", "hard_limit", "job", "memory_limit", "number",
        "payload", "peak_rss", "pid", "run_time", "scope", "short", "soft_limit", "stall_limit", "started_at",
        "stop_asked_at", "stop_reason", "worker",
    )  # fmt: skip

    def __init__(self, job: Job, number: int, payload: Any) -> None:
        self.job = job
        self.number = number
        """Which attempt of the job, from 1."""
        self.payload = payload
        """What `WorkerPool.prepare` made of the job."""
        self.context: contextvars.Context | None = None
        """The context variables the function sees, where it runs in this process."""
        self.scope: tuple[str, Any] | None = None
        """A context manager to be entered around the function, in whichever process it runs: its reference
        "module:qualname" and one picklable argument."""
        self.checkpoint: bytes | None = None
        """What an earlier attempt of the job last gave to `JobContext.checkpoint`, pickled."""
        self.memory_limit: int | None = None
        """Bytes that the process tree of this attempt may hold resident, where its pool `can_limit_memory`."""
        self.short = False
        """The function is known to take so little time that others may lie ready behind it."""
        self.worker: Any = None
        self.pid: int | None = None
        self.started_at: float | None = None
        """`time.monotonic()` at which the function began, as its worker stamped it, once known."""
        self.ended_at: float | None = None
        self.stop_asked_at: float | None = None
        self.peak_rss: int | None = None
        self.exit_code: int | None = None
        self.exit_signal: int | None = None
        # The supervisor's own:
        self.run_time: Any = None
        self.hard_limit = self.soft_limit = self.stall_limit = float("inf")
        self.stop_reason: Any = None


class Timer(Protocol):
    def cancel(self) -> None: ...


class PoolSupervisor(Protocol):
    """What a pool may ask of, and must tell, the supervisor."""

    def started(self, assignment: Assignment, at: float) -> None:
        """The function began at the monotonic time `at`: its limits count from there. Told once per assignment."""

    def ended(
        self, assignment: Assignment, ending: Ending, value: Any = None, error: BaseException | None = None
    ) -> None:
        """The attempt is over, and nothing of it is alive (but for ABANDONED). Told once per assignment, unless
        `handed_back` is."""

    def handed_back(self, assignment: Assignment) -> None:
        """The worker died, or was asked by `recall`, before the function began: it is no attempt. May follow
        `started`, where that was an inference. Of several the last is told first: each goes to the queue's front."""

    def on_message(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        """A function said something while it ran. Topics and contents:

        "progress"    (done, total or None, message)
        "checkpoint"  the value, as pickled bytes
        "log"         dict of a LogRecord's fields: name, level (int), message, created (epoch seconds), exc_text,
                      and anything passed as extra
        "output"      (stream, text): stream is "stdout" or "stderr", text one line without its end
        "event"       (kind, content): anything a scope's own code sends by `current_job().send(kind, content)`
        """

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call `on_readable()` whenever `fd` can be read or is at its end, until `unwatch(fd)`."""

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Also call `on_writable()` whenever the watched `fd` can be written; None ends that."""

    def unwatch(self, fd: int) -> None: ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at the monotonic time `when`."""

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back on the supervisor's thread as soon as may be. From any thread."""

    def now(self) -> float:
        """The monotonic clock; tests move it."""


class WorkerPool(ABC):
    """Workers of one kind. Made by the supervisor when the first job asks for it."""

    name: ClassVar[str]
    can_limit_memory: ClassVar[bool] = False
    can_stop_soft: ClassVar[bool] = False
    """Whether `interrupt` raises SoftTimeoutError inside a function."""

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        self.supervisor = supervisor
        self.max_workers = max_workers
        self.busy = 0
        """Workers that hold a slot. The pool keeps it; the supervisor reads it."""

    @classmethod
    def prepare(cls, job: Job) -> Any:
        """Check that the job can run here and make what will travel; on the submitter's thread, before it is queued.

        Raises:
            InvalidJobError: it cannot, why, and the way out.
            JobSerializationError: function or arguments cannot be pickled.
        """
        return None

    @abstractmethod
    def start(self, assignment: Assignment) -> None:
        """Give the assignment to an idle worker, or to a new one. Called only while fewer than max_workers are busy."""

    def queue_behind(self, assignment: Assignment) -> bool:
        """Lay the assignment ready behind a short one that runs; False where no worker has room."""
        return False

    def hand_back_queued(self, before: float) -> bool:
        """Hand back what lies ready behind attempts that began before the monotonic time `before`: they are not short.
        Whether anything still lies behind another."""
        waiting = False
        for worker, queue in list(self.queues()):
            if len(queue) > 1:
                running = queue[0]
                if running.started_at is None or running.started_at > before:
                    waiting = True
                else:
                    self.hand_back_behind(worker, running)
        return waiting

    def queues(self) -> Iterable[tuple[Any, Sequence[Assignment]]]:
        """The busy workers, each with its assignments: the one that runs, then those that lie ready behind it."""
        return ()

    def hand_back_behind(self, worker: Any, running: Assignment) -> None:  # noqa: B027
        """Hand back what lies ready behind `running`, and let no more be laid there; `running` too, where it has not
        begun after all."""

    def flush(self) -> None:  # noqa: B027
        """Send what was gathered since the last flush; called once at the end of each turn of the supervisor."""

    def recall(self, assignment: Assignment) -> bool:
        """Take back an assignment that has not begun. True: `handed_back` has been or will be told. False: it has
        begun (or ended)."""
        return False

    def on_blocked(self, assignment: Assignment) -> None:  # noqa: B027
        """The function blocks until another job is over: that one must not be begun by what it blocks."""

    @abstractmethod
    def stop(self, assignment: Assignment, *, grace: float) -> None:
        """End a running assignment: ask it to end, and after `grace` seconds make it. `ended` is told once nothing of
        it is alive. Harmless when it is over or being stopped already (the shorter grace then counts)."""

    def interrupt(self, assignment: Assignment) -> None:  # noqa: B027
        """Raise SoftTimeoutError inside the function, and log the stack it interrupts."""

    @abstractmethod
    def close(self, on_closed: Callable[[], None]) -> None:
        """End idle workers and all else the pool holds; call `on_closed` when nothing is left. Called once, when no
        assignment is live any more."""
