"""The contract between the supervisor and a pool.

Every method of a pool, and every method of the supervisor but `call_soon`, is called on the supervisor's thread only.
So neither side needs a lock. A pool never blocks that thread. Its workers do what takes time, and the pool is notified
through `PoolSupervisor.watch` (a file descriptor), `call_at` (a time) or `call_soon` (another thread).

A worker holds one slot while it has at least one assignment. It runs one assignment at a time. Further ones may be
queued behind that one (`queue_behind`): they start only when it has ended, and can be taken back with `recall`.
"""

from __future__ import annotations

import contextvars
import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.exceptions.display import repr_of, text_of
from executor_adapter.pools.transport.envelope import STOPPED, Outcome, crashed
from executor_adapter.worker import wire

if TYPE_CHECKING:
    from executor_adapter.exceptions import MemoryLimitError
    from executor_adapter.job import Job, Shape

logger = logging.getLogger("executor_adapter")

RETRY_INTERVAL = 0.25
"""Seconds between two attempts to start what was refused."""

MAX_QUEUED_BEHIND_SECONDS = 0.05
"""Max seconds that a job waits in a worker behind a running one; then it is taken back for another worker."""

REFUSALS = (OSError, RuntimeError)
"""What a refused descriptor or process raises, and a refused thread."""

W = TypeVar("W")


class Recall(Enum):
    """Names how `WorkerPool.recall` answers."""

    TAKEN_BACK = "it has not started, and `handed_back` was called"
    STARTED = "it has started or ended"
    ASKED = "nobody here knows: its node was asked, and `handed_back` is called if it has not started there"


@dataclass(slots=True, eq=False, repr=False)
class Assignment:
    """One attempt of one job, given to one pool. The pool records what it learns of the attempt."""

    job: Job
    number: int
    """The number of the attempt, counted from 1."""
    payload: Any
    """The payload that `WorkerPool.prepare` returned for the job."""
    context: contextvars.Context | None = None
    """The context variables that the function sees, if it runs in this process."""
    scope: tuple[str, Any] | None = None
    """A context manager to enter around the function, in whichever process it runs: its reference
    "module:qualname" and one picklable argument."""
    checkpoint: bytes | None = None
    """The latest checkpoint of an earlier attempt, pickled."""
    environment: dict[str, str] | None = None
    """Variables of the environment that the function sees."""
    memory_limit: int | None = None
    """Resident bytes that the attempt's process tree may hold, if its pool `can_limit_memory`."""
    max_behind: int = 0
    """How many other assignments may be queued behind it; none where its function is not known to be quick."""
    worker: Any = None
    pid: int | None = None
    node: str | None = None
    """The host that the worker runs on, if that is another one."""
    coroutine: Any = None
    """What the function returned in a thread, if that is a coroutine."""
    started_at: float | None = None
    """`time.monotonic()` when the function started, as measured by its worker, once known."""
    ended_at: float | None = None
    stop_asked_at: float | None = None
    """The monotonic time at which the attempt was asked to stop; None if it ended by itself before."""
    position: str | None = None
    """Where the function was when it was asked to stop, in the form of a traceback; None where that is unknown."""
    peak_rss: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    # These five belong to the supervisor.
    run_time: Any = None
    hard_limit: float = math.inf
    soft_limit: float = math.inf
    stall_limit: float = math.inf
    stop_reason: Any = None


class Timer(Protocol):
    """A call that is due at some time."""

    def cancel(self) -> None:
        """Do not make the call."""


class PoolSupervisor(Protocol):
    """Defines what the supervisor offers to a pool, and what a pool reports to it."""

    def started(self, assignment: Assignment, at: float) -> None:
        """Record that the function started at the monotonic time `at`, from which its limits count.

        Called once for each assignment, but for those that had ended when the pool learned of their start.
        """

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Record how the attempt ended. Nothing it started is alive, except after ABANDONED.

        Called once for each assignment, unless `handed_back` is called. Its `started_at` is set if it had started.
        """

    def handed_back(self, assignment: Assignment) -> None:
        """Put the assignment back in the queue: the worker died, or `recall` was called, before the function started.

        It does not count as an attempt. A pool may have reported `started` before, if it had to assume so. If several
        are handed back, the last one comes first, since each goes to the front of the queue.
        """

    def on_message(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        """Receive what a function reports while it runs.

        Topics and contents:

        "progress"    (done, total or None, message)
        "checkpoint"  the value, as pickled bytes
        "log"         dict of a LogRecord's fields: name, level (int), message, created (epoch seconds), exc_text,
                      and anything passed as extra
        "output"      (stream, text): stream is "stdout" or "stderr", text one line without its line ending
        "position"    where the function is, in the form of a traceback, because it is being ended
        "event"       (kind, content): what was sent with `current_job().send(kind, content)`, the content pickled

        They are plain data: nobody's code runs when they are read or freed.
        """

    def is_output_full(self, assignment: Assignment | None) -> bool | None:
        """Return whether the program's own streams, where the output of an attempt goes, take no more: then it waits.

        None if it goes elsewhere: then its writer never waits, and lines beyond a limit are left out.
        """

    def lend_slot(self, assignment: Assignment, blocks: bool) -> None:
        """Free the slot of an attempt that waits for another job, unless it has ended.

        `blocks`: the wait blocks the thread that runs the attempt, so nothing else may wait for that thread.
        """

    def take_slot_back(self, assignment: Assignment) -> None:
        """Take back a slot that was lent. For a moment one attempt more than `max_workers` may run."""

    def watch(self, fd: int, on_readable: Callable[[], object]) -> None:
        """Call `on_readable()` whenever `fd` is readable or at its end, until `unwatch(fd)`."""

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Also call `on_writable()` whenever the watched `fd` is writable; None ends that."""

    def unwatch(self, fd: int) -> None:
        """Make no further call for `fd`."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` at the monotonic time `when`."""

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call `callback(*args)` on the supervisor's thread as soon as possible. May be used from any thread."""

    def now(self) -> float:
        """Return the monotonic time. Tests replace this clock."""


class WorkerPool(ABC):
    """Workers of one kind. The supervisor makes a pool when the first job needs it."""

    name: ClassVar[str]
    can_limit_memory: ClassVar[bool] = False
    can_set_environment: ClassVar[bool] = False
    """Whether a function sees the `environment` of its assignment."""
    can_stop_soft: ClassVar[bool] = False
    """Whether `interrupt` raises SoftTimeoutError inside a function."""

    is_here: ClassVar[bool] = True
    """Whether attempts run on this machine, and so take of its resources."""

    needs_flush: bool = True
    """Whether anything was collected since the last flush, as far as the pool knows."""

    relief: Timer | None = None
    """Due when what is queued behind attempts that are not short after all is to be handed back."""

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        self.supervisor = supervisor
        self.max_workers = max_workers
        self.busy = 0
        """Number of workers that hold a slot. The pool writes it, the supervisor reads it."""

    @classmethod
    def prepare(cls, job: Job) -> Any:
        """Check that the job can run in this pool, and return its payload.

        Called on the submitter's thread, before the job is queued.

        Raises:
            InvalidJobError: The job cannot run here; the message names the reason and the fix.
            JobSerializationError: function or arguments cannot be pickled.
        """
        return None

    def reserve_worker(self, job: Job, on_ready: Callable[[], None]) -> None:
        """Keep a worker for the job's next attempt, and call `on_ready` when it can run that.

        If no worker can be started, `on_ready` is called too: the attempt then fails in the usual way.
        """
        on_ready()

    def release_worker(self, job: Job) -> None:  # noqa: B027
        """Keep no worker for the job any more, if one was reserved."""

    def resize(self, max_workers: int) -> None:
        """Let so many workers be busy at once from now on. Idle ones beyond that end; busy ones end their work."""
        self.max_workers = max_workers

    @abstractmethod
    def start(self, assignment: Assignment) -> None:
        """Give the assignment to an idle worker or a new one. Called only while fewer than max_workers are busy."""

    def queue_behind(self, assignment: Assignment) -> bool:
        """Queue the assignment behind a running short one. Return False if no worker has room."""
        return False

    def hand_back_queued(self, before: float) -> bool:
        """Hand back what is queued behind attempts that started before the monotonic time `before`.

        Such attempts are not short after all. Return True if anything is still queued behind another.
        """
        heads = [(worker, queue[0]) for worker, queue in self.queues() if len(queue) > 1]
        late = [(worker, head) for worker, head in heads if head.started_at is not None and head.started_at <= before]
        for worker, head in late:
            self.hand_back_behind(worker, head)
        return len(late) < len(heads)

    def expect_overdue(self) -> None:
        """Look in a moment for what is queued behind an attempt that takes longer than expected, and hand it back."""
        self.relief = self.supervisor.call_at(self.supervisor.now() + MAX_QUEUED_BEHIND_SECONDS, self._relieve)

    def _relieve(self) -> None:
        self.relief = None
        if self.hand_back_queued(self.supervisor.now() - MAX_QUEUED_BEHIND_SECONDS):
            self.expect_overdue()

    def queues(self) -> Iterable[tuple[Any, Sequence[Assignment]]]:
        """Yield each busy worker with its assignments: the running one first, then those queued behind it."""
        return ()

    def unstarted(self) -> list[Assignment]:
        """Return the assignments that hold a slot and wait for their worker to be ready."""
        return [queue[0] for _, queue in self.queues() if queue and queue[0].started_at is None]

    def hand_back_behind(self, worker: Any, running: Assignment) -> None:  # noqa: B027
        """Hand back what is queued behind `running`, and queue nothing more there.

        `running` is handed back too if it has not started after all.
        """

    def flush(self) -> None:  # noqa: B027
        """Send what was collected since the last flush. Called at the end of each turn, where it `needs_flush`."""

    def recall(self, assignment: Assignment) -> Recall:
        """Take back an assignment that has not started."""
        return Recall.STARTED

    def on_blocked(self, assignment: Assignment) -> None:  # noqa: B027
        """Move other jobs away from the assignment's worker, which blocks until one of them is done."""

    @abstractmethod
    def stop(self, assignment: Assignment, *, grace: float) -> None:
        """Ask a running assignment to end, and kill it after `grace` seconds.

        `ended` is called when nothing it started is alive. Does nothing if the assignment has ended. If it is being
        stopped already, the shorter grace counts.
        """

    def interrupt(self, assignment: Assignment) -> bool:
        """Raise SoftTimeoutError inside the function, and log the stack it interrupts.

        Return False if its worker has not begun the function: then it must be asked again.
        """
        return True

    def largest_attempt(self) -> tuple[Assignment, int] | None:
        """Return the running attempt that holds the most memory, of those that `end_for_memory` can end, and its bytes.

        The bytes are 0 for an attempt that is killed already and is about to give back what it holds.
        None if there is none, or this pool cannot measure it.
        """
        return None

    def end_for_memory(self, assignment: Assignment, error: MemoryLimitError) -> None:  # noqa: B027
        """Kill the worker of an attempt that `largest_attempt` returned; the attempt ends as CRASHED with `error`."""

    def free_memory(self) -> None:  # noqa: B027
        """Give back memory that no attempt uses: end idle workers in which earlier jobs left much."""

    def set_lease(self, until: float) -> None:  # noqa: B027
        """End all attempts at this `lease_time`, unless a later one is set by then; also if this process is stopped.

        A pool ignores this where no other process could end its attempts.
        """

    @abstractmethod
    def close(self, on_closed: Callable[[], None]) -> None:
        """End idle workers and release all resources; call `on_closed` when nothing is left.

        Called once, when no assignment is live any more.
        """


class StartingPool(WorkerPool, Generic[W]):
    """A pool whose workers this system may refuse: a process, a thread, a descriptor.

    An assignment that gets no worker waits, and those that follow wait behind it. They are tried again in intervals,
    and with `start_waiting`, because a worker has become free. While the pool has workers, they wait for as long as it
    takes; otherwise they fail after `wire.REFUSED_TIMEOUT`.
    """

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.waiting: deque[Assignment] = deque()
        """Assignments that hold a slot, and for which the system refuses a worker."""
        self._refused_since = 0.0
        self._retry_timer: Timer | None = None

    @abstractmethod
    def get_worker(self, assignment: Assignment) -> W:
        """Return a worker for an assignment; raise one of REFUSALS if none can be started."""

    @abstractmethod
    def use(self, worker: W, assignment: Assignment) -> None:
        """Give the assignment to the worker."""

    def has_workers(self) -> bool:
        """Return whether the pool has a worker that may become free."""
        return False

    def start(self, assignment: Assignment) -> None:
        self.busy += 1
        if self.waiting:
            self.waiting.append(assignment)
            return
        try:
            worker = self.get_worker(assignment)
        except REFUSALS as error:
            logger.warning("the system refuses another worker (%s): jobs wait for one", text_of(error))
            self._refused_since = self.supervisor.now()
            self.waiting.append(assignment)
            self._try_later()
        except Exception:
            self.busy -= 1
            raise
        else:
            self.use(worker, assignment)

    def start_waiting(self) -> None:
        """Start as many as possible of the assignments that wait."""
        while self.waiting:
            try:
                worker = self.get_worker(self.waiting[0])
            except REFUSALS as error:
                self._on_refused_again(error)
                return
            self._refused_since = self.supervisor.now()
            assignment = self.waiting.popleft()
            try:
                self.use(worker, assignment)
            except Exception as fault:  # In `start`, the supervisor sees it itself.
                logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
                failure = WorkerUnavailableError(f"no worker could be started: {repr_of(fault)}")
                self.supervisor.ended(assignment, crashed(failure))

    def _on_refused_again(self, error: BaseException) -> None:
        if self.has_workers():
            self._refused_since = self.supervisor.now()
        elif self.supervisor.now() - self._refused_since >= wire.REFUSED_TIMEOUT:
            for assignment in tuple(self.waiting):
                self.end_waiting(assignment, crashed(unavailable(text_of(error))))

    def _try_later(self) -> None:
        if self._retry_timer is None:
            self._retry_timer = self.supervisor.call_at(self.supervisor.now() + RETRY_INTERVAL, self._on_retry_timer)

    def _on_retry_timer(self) -> None:
        self._retry_timer = None
        self.start_waiting()
        if self.waiting:
            self._try_later()

    def recall_waiting(self, assignment: Assignment) -> Recall:
        """Take back an assignment that waits for a worker."""
        if not self._remove_waiting(assignment):
            return Recall.STARTED
        self.supervisor.handed_back(assignment)
        return Recall.TAKEN_BACK

    def end_waiting(self, assignment: Assignment, outcome: Outcome = STOPPED) -> None:
        """End an assignment that waits for a worker; do nothing if it does not."""
        if self._remove_waiting(assignment):
            self.supervisor.ended(assignment, outcome)

    def _remove_waiting(self, assignment: Assignment) -> bool:
        if assignment not in self.waiting:
            return False
        self.waiting.remove(assignment)
        self.busy -= 1
        return True


def unavailable(why: str) -> WorkerUnavailableError:
    """Return the error of a job for which the system refused a worker; `why` is what the system says."""
    return WorkerUnavailableError(
        f"no worker could be started for {wire.REFUSED_TIMEOUT:.0f} s, since the system refused it: {why}: "
        "raise the limit (ulimit -u for processes and threads, -n for descriptors), or lower max_workers"
    )


class LeaseBooks(Protocol):
    """Defines what a pool knows of its leases for jobs with `resources`. Supervisor thread only."""

    def has_lease(self, shape: Shape) -> bool:
        """Return whether a lease of this shape is free, or never will be: then its attempts fail when they start."""

    def reserve(self, job: Job, shape: Shape) -> None:
        """Keep a free lease for the next attempt of a job."""

    def unreserve(self, job: Job) -> None:
        """Keep no lease for the job any more, if its attempt has not started."""

    def set_demand(self, shape: Shape, count: int) -> None:
        """Take note for how many attempts beside those that have one a lease of this shape is wanted."""


class LeasingPool(WorkerPool):
    """A pool that gets its slots as leases on the nodes of a cluster, which counts what jobs with `resources` need.

    Such a job is started only once a lease of its shape is free, so that it keeps no slot from jobs of other shapes.
    """

    shapes: LeaseBooks

    @abstractmethod
    def hand_back_waiting(self, job: Job) -> bool:
        """Hand back an attempt that holds a slot and waits for a lease, since `job` could run in its slot now.

        Return False if there is none whose priority is no higher, and which has no driver.
        """
