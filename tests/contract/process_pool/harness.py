"""A supervisor for tests: it drives a real pool without an executor, and does a turn when the test says so."""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import os
import re
import selectors
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from executor_adapter.job.model import Job
from executor_adapter.job.pool_names import START_METHOD, StartMethod
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.kinds import pool_kind
from executor_adapter.pools.process.pool import ProcessPool
from executor_adapter.pools.transport.envelope import Ending, Outcome
from tests.waiting import PATIENCE

MAX_BEHIND = 8
"""How many attempts may be queued behind a short one."""


class DueCall:
    """A call that `call_at` was asked for."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


def pids_of(pool: ProcessPool) -> list[int]:
    """Return the pids of all living workers of a pool."""
    return [pid for worker in pool.workers.members.values() if (pid := worker.process.pid) is not None]


class Harness:
    """Implements `pools.base.PoolSupervisor`: keeps all reports, and starts again what is handed back."""

    def __init__(
        self, max_workers: int = 2, *, kind: str = "process", start_method: StartMethod = START_METHOD, **options: Any
    ) -> None:
        self.endings: dict[Assignment, Outcome] = {}
        self.starts: dict[Assignment, int] = defaultdict(int)
        self.hand_backs: list[Assignment] = []
        self.messages: list[tuple[Assignment | None, str, Any]] = []
        self.output_full: bool | None = None
        self.pending: deque[Assignment] = deque()
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, list[Callable[[], object] | None]] = {}
        self._due: list[tuple[float, int, DueCall]] = []
        self._order = itertools.count()
        self._kind: Any = pool_kind(kind, start_method)
        self.pool = self._kind(self, max_workers, **options)

    # --- reports of the pool ---

    def started(self, assignment: Assignment, at: float) -> None:
        self.starts[assignment] += 1

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        assert assignment not in self.endings, "ended twice"
        self.endings[assignment] = outcome

    def handed_back(self, assignment: Assignment) -> None:
        assert assignment not in self.endings, "handed back after its end"
        self.hand_backs.append(assignment)
        self.starts[assignment] = 0
        self.pending.append(assignment)

    def lend_slot(self, assignment: Assignment, blocks: bool) -> None:
        raise AssertionError("a process lends no slot")

    def take_slot_back(self, assignment: Assignment) -> None:
        raise AssertionError("no slot was lent")

    def on_message(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        self.messages.append((assignment, topic, content))

    def is_output_full(self, assignment: Assignment | None) -> bool | None:
        return self.output_full

    # --- services for the pool ---

    def watch(self, fd: int, on_readable: Callable[[], object]) -> None:
        self._callbacks[fd] = [on_readable, None]
        self._selector.register(fd, selectors.EVENT_READ, self._callbacks[fd])

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        self._callbacks[fd][1] = on_writable
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_writable else 0)
        self._selector.modify(fd, events, self._callbacks[fd])

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> DueCall:
        call = DueCall(callback)
        heapq.heappush(self._due, (when, next(self._order), call))
        return call

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.call_at(0.0, lambda: callback(*args))

    @staticmethod
    def now() -> float:
        return time.monotonic()

    # --- for tests ---

    @property
    def pids(self) -> list[int]:
        """The pids of all living workers of a process pool, the spare one included."""
        return pids_of(self.pool)

    @property
    def idle(self) -> int:
        """The number of workers of a process pool that are ready and have no assignment."""
        return len(self.pool.workers.idle)

    def submit(self, function: Any, *args: Any, short: bool = False, **fields: Any) -> Assignment:
        """Queue one attempt of a job. `memory_limit`, `scope` and `checkpoint` are fields of the assignment."""
        of_assignment = {name: fields.pop(name) for name in ("memory_limit", "scope", "checkpoint") if name in fields}
        job = Job(function=function, args=args, pool=self._kind.name, **fields)
        job.live.payload = self._kind.prepare(job)
        assignment = Assignment(job, 1, job.live.payload)
        assignment.max_behind = MAX_BEHIND if short else 0
        for name, value in of_assignment.items():
            setattr(assignment, name, value)
        self.pending.append(assignment)
        return assignment

    def until(self, condition: Callable[[], Any]) -> None:
        """Do turns until the condition holds."""
        end = self.now() + PATIENCE
        while not condition():
            assert self.now() < end, "the condition did not come true"
            self.turn()

    def turn(self, longest: float = 0.02) -> None:
        """Start pending assignments, and handle the events of at most `longest` seconds."""
        self._dispatch()
        self.pool.flush()
        for key, mask in self._selector.select(longest):
            for bit, callback in enumerate(key.data):
                # Another callback of this turn may have unwatched the descriptor, and its number may be in use again.
                if mask & (1 << bit) and callback is not None and self._callbacks.get(key.fd) is key.data:
                    callback()
        self.call_due(0.0)

    def call_due(self, seconds: float) -> None:
        """Make the calls that are due within so many seconds, before anything is read."""
        until = self.now() + seconds
        while self._due and self._due[0][0] <= until:
            _, _, call = heapq.heappop(self._due)
            if call.callback is not None:
                call.callback()

    def _dispatch(self) -> None:
        while self.pending:
            first = self.pending[0]
            if self.pool.busy < self.pool.max_workers:
                self.pending.popleft()
                self.pool.start(first)
            elif first.max_behind and self.pool.queue_behind(first):
                self.pending.popleft()
            else:
                return

    def until_ended(self, *assignments: Assignment) -> None:
        self.until(lambda: all(each in self.endings for each in assignments))

    def until_running(self, assignment: Assignment) -> None:
        self.until(lambda: self.starts[assignment])

    def ending(self, assignment: Assignment) -> Ending:
        self.until_ended(assignment)
        return self.endings[assignment].ending

    def value(self, assignment: Assignment) -> Any:
        self.until_ended(assignment)
        outcome = self.endings[assignment]
        assert outcome.ending is Ending.RETURNED, outcome
        return outcome.body.open()

    def error(self, assignment: Assignment) -> Any:
        self.until_ended(assignment)
        return self.endings[assignment].body.exception()

    def warm_up(self, workers: int) -> None:
        """Wait until so many workers are ready and idle, so that the one used last is the one used next."""
        self.value(self.submit(os.getpid))
        self.until(lambda: self.idle == workers)

    def ask_to_stop(self, assignment: Assignment, *, grace: float) -> None:
        """Stop an assignment, as a supervisor does."""
        assignment.stop_asked_at = assignment.stop_asked_at or self.now()
        self.pool.stop(assignment, grace=grace)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        """Stop an assignment, and wait until nothing that it started is alive."""
        self.ask_to_stop(assignment, grace=grace)
        assert self.ending(assignment) is Ending.STOPPED

    def messages_of(self, assignment: Assignment, topic: str) -> list[Any]:
        """Return the contents of an assignment's messages on a topic, in order."""
        return [content for sender, its_topic, content in self.messages if (sender, its_topic) == (assignment, topic)]

    def close(self) -> None:
        """Stop what is left, and close the pool."""
        self.pending.clear()
        for assignment in list(self.starts):
            if assignment not in self.endings:
                self.ask_to_stop(assignment, grace=0)
        self.until(lambda: self.pool.busy == 0)
        self.pending.clear()
        closed: list[bool] = []
        self.pool.close(lambda: closed.append(True))
        self.until(lambda: closed)
        self._selector.close()


@contextlib.contextmanager
def harness(max_workers: int = 2, **options: Any) -> Iterator[Harness]:
    """Make a harness, and close it afterwards."""
    made = Harness(max_workers, **options)
    try:
        yield made
    finally:
        made.close()


def text_of(path: Path) -> str:
    """Return what is in the file; nothing if there is no file yet."""
    return path.read_text() if path.exists() else ""


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def marked(token: str) -> list[int]:
    """Return the pids of processes whose environment contains the text."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and token.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def open_descriptors() -> Counter[str]:
    """Return what the file descriptors are that this process has open, and how many of each."""
    gc.collect()
    found = Counter[str]()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # That of the listing itself.
            found[re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return found
