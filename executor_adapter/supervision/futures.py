"""JobFuture, which `submit` returns; what the futures of one executor share; and the failures that nobody has read."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING  # The states that Future's own methods know.
from typing import Any

from typing_extensions import TypeVar

from executor_adapter.job import Job, JobStatus
from executor_adapter.pools.in_process.slot_loan import SlotLoan, current_slot_loan
from executor_adapter.pools.transport.envelope import Body, Outcome
from executor_adapter.supervision.messages import program_output
from executor_adapter.supervision.thread import SupervisorThread

logger = logging.getLogger("executor_adapter")

R = TypeVar("R", default=Any)

MAX_KEPT = 1000
"""Unread failures of one executor that are kept; further ones are not reported."""
MAX_NAMED = 3
"""Jobs that the line names."""
MAX_MESSAGE_LENGTH = 200

_at_exit: list[UnreadFailures] = []
_PENDING = Body()
"""What a future has before its job has ended."""


class FutureHub:
    """Holds what all futures of one executor share: the lock and condition, the thread, and the way to cancel a job.

    `cancel_job` ends a job; `refuse_use` raises where this process was forked from the one that runs the executor.
    `reports_failures`: whether the program is told of failures that nobody read.
    """

    def __init__(
        self,
        thread: SupervisorThread,
        cancel_job: Callable[[Job], bool],
        refuse_use: Callable[[], None],
        supervisor: object,
        *,
        reports_failures: bool,
    ) -> None:
        self.cancel_job = cancel_job
        self.refuse_use = refuse_use
        self.settling_lock = threading.RLock()
        self.settling = threading.Condition(self.settling_lock)
        """The condition of all futures, see JobFuture. Its lock is also kept alone, since that is faster to take."""
        self.unread = UnreadFailures(MAX_KEPT if reports_failures else 0, self._on_dropped)
        self.thread = thread
        self.lenders: list[object] = [supervisor]
        """What the pools of the executor report to: its supervisor, and what runs its hooks."""

    def loan_of_caller(self, awaited: Job | None = None) -> SlotLoan | None:
        """Return what lends the slot of the job that calls this, also in its hook, if it is one of the executor's.

        Raises:
            RuntimeError: it would wait for itself.
        """
        loan = current_slot_loan.get()
        if loan is None or loan.supervisor not in self.lenders:
            return None
        if loan.assignment.job is awaited:
            raise RuntimeError("a job cannot wait for itself: submit another one, without its dedupe_key")
        return loan

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Lend the slot of the job that calls this, if it is one of the executor's, while the block waits for jobs."""
        return self.loan_of_caller() or contextlib.nullcontext()

    def _on_dropped(self, _: object) -> None:
        """Report futures that were dropped unread, on the thread for callbacks. Python may call this anywhere."""
        if self.thread.is_started() and not self.thread.is_inline:
            self.thread.call_soon(self.thread.callbacks.call, self.unread.report_dropped)

    def expect_callback(self) -> None:
        """Prepare for a future's first callback."""
        if self.thread.is_started():
            with contextlib.suppress(RuntimeError):  # It cannot be started now; retried when the job finishes.
                self.thread.callbacks.start()

    def deliver(self, callback: Callable[[Future[Any]], object], future: Future[Any]) -> None:
        """Run a future's callback: on the thread for callbacks, if this is the supervisor's and it may take long."""
        if self.thread.is_current() and not _only_wakes(callback):
            self.thread.callbacks.call(functools.partial(callback, future))
        else:
            callback(future)

    def detach_after_fork(self) -> None:
        """Replace the lock in a forked process: another thread may have held it."""
        self.settling_lock = threading.RLock()
        self.settling = threading.Condition(self.settling_lock)


class JobFuture(Future[R]):
    """The future of one job; its `job` shows the job live. `JobFuture[int]` is that of a function that returns an int.

    `result()`, and `await future` on an asyncio event loop, raise the function's own exception, or the executor's error
    for it: JobTimeoutError, WorkerCrashedError, MemoryLimitError, JobCancelledError, JobSerializationError. In a forked
    process they raise ExecutorClosedError if the job had not ended when the process was forked. Cancelling the task
    that awaits a future cancels the job; `asyncio.shield(future)` prevents that.

    What a worker process has sent is unpickled by the thread that first asks for it, which gets the same object each
    time. Where that fails, JobSerializationError is raised each time, though the job has COMPLETED.

    A job that waits for a future of its own executor, in a thread or a coroutine, lends its slot until that is done:
    otherwise the job that it waits for might never get one.

    All futures of an executor share one condition, and the lists of waiters and callbacks are made when first needed:
    most futures are done before anyone waits, and these would be half of the memory of a queued job. So no thread waits
    on the condition itself: each waits as a waiter of the future, like those of `concurrent.futures.wait`.
    """

    why_cancelled: Callable[[], str | None] = staticmethod(lambda: None)
    """Returns the message of a cancellation that happens now, None for the one that names what ended the job.

    An observer may set it, when the job is submitted.
    """
    _is_read = False
    _unread: weakref.ref[Future[Any]] | None = None

    def __init__(self, job: Job, hub: FutureHub) -> None:
        # Instead of Future's own __init__, which would make all of it at once.
        self.job = job
        self._hub = hub
        self._state = PENDING
        self._body = _PENDING
        self._made_waiters: _Waiters | None = None
        self._made_callbacks: list[Any] | None = None

    # To type checkers these stay the attributes of Future that as_completed asks for.
    _condition = property(lambda self: self._hub.settling)

    def _make_waiters(self) -> list[Any]:
        made = self._made_waiters
        if made is None:
            made = self._made_waiters = _Waiters(None if self.done() else self._hub, self.job)
        return made

    _waiters = property(_make_waiters)

    @property
    def _done_callbacks(self) -> list[Any]:
        made = self._made_callbacks
        if made is None:
            made = self._made_callbacks = []
        return made

    def settle(self, outcome: Outcome) -> None:
        """Set what the function returned or raised. Called once, on the supervisor's thread."""
        error = outcome.error
        with self._hub.settling_lock:
            self._body = outcome.body
            self._state = FINISHED
            if self._made_waiters:
                for waiter in self._made_waiters:
                    waiter.add_exception(self) if error is not None else waiter.add_result(self)
                self._made_waiters.end_loans()
            elif error is not None and not (self._made_callbacks or self._is_read):
                self._note_failure()
        if self._made_callbacks:
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def _note_failure(self) -> None:
        job = self.job
        if job.status is JobStatus.FAILED:
            self._unread = self._hub.unread.add(self, f"{job.job_id}: {job.error_code}: {job.error_message}")

    def note_read(self) -> None:
        """Note that somebody knows how the job ends, whether or not it has ended."""
        self._is_read = True
        if self._unread is not None:
            self._hub.unread.failures.pop(self._unread, None)
            self._unread = None

    def result(self, timeout: float | None = None) -> R:
        """Return what the function returned; raises its exception, or the executor's error for it."""
        self._wait(timeout)
        if program_output.pending:
            self._wait_for_output(timeout)
        if self._unread is not None:
            self.note_read()
        body = self._body
        if body.frame is None and body.error is None:
            return body.value  # type: ignore[no-any-return]  # As the function returned it.
        try:
            return body.open()  # type: ignore[no-any-return]
        finally:
            del self, body  # The error's traceback holds this frame: it would be a cycle.

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise; None where the job completed."""
        self._wait(timeout)
        self.note_read()
        if program_output.pending:
            self._wait_for_output(timeout)
        return self._body.exception()

    def _wait_for_output(self, timeout: float | None) -> None:
        """Let what the job printed come before what its caller prints next, unless the caller must not block."""
        if timeout != 0 and self._hub.thread.may_wait() and not _is_on_event_loop():
            program_output.wait()

    def __await__(self) -> Generator[Any, None, R]:
        if not self.done():
            yield from self._wait_on_loop().__await__()
        return self.result(0)

    async def _wait_on_loop(self) -> None:
        if self._hub.thread.belongs_to_parent:
            self._hub.refuse_use()
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed, so nobody waits.
                loop.call_soon_threadsafe(ended.set)

        self.add_done_callback(wake)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _wait(self, timeout: float | None) -> None:
        if self._state == FINISHED:
            return
        if self._hub.thread.belongs_to_parent:
            self._hub.refuse_use()  # Nothing would ever settle it.
        if timeout is not None and timeout <= 0:
            raise TimeoutError
        waiter = _Waiter()
        with self._hub.settling_lock:
            if self._state == FINISHED:
                return
            waiters = self._waiters
            waiters.append(waiter)
        try:
            within = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
            if not waiter.lock.acquire(timeout=within):
                raise TimeoutError
        finally:
            with self._hub.settling_lock:
                waiters.remove(waiter)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of job {self.job.job_id}: {self.job.status}>"

    def _repr_html_(self) -> str:
        return self.job._repr_html_()

    def cancel(self) -> bool:
        """Cancel the job, also while it runs; return False if it has ended already.

        Returns at once. The future is done when nothing of the job is alive any more.
        """
        return self._hub.cancel_job(self.job)

    def done(self) -> bool:
        """Return whether the job has ended."""
        return self._state == FINISHED

    def cancelled(self) -> bool:
        """Return whether the job was cancelled."""
        return self.done() and self.job.status is JobStatus.CANCELLED

    def running(self) -> bool:
        """Return whether an attempt of the job runs now."""
        return self.job.status is JobStatus.RUNNING

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn(future)` when the job has ended, on a thread for callbacks; at once if it has ended already."""
        self.note_read()
        if not self.done():
            self._hub.expect_callback()
        # A coroutine that is to wait lends its slot until the future is done.
        if _only_wakes(fn) and (loan := self._hub.loan_of_caller(self.job)) is not None and not self.done():
            loan.begin(blocks=False)
            super().add_done_callback(lambda _: loan.end(on_supervisor=self._hub.thread.is_current()))
        super().add_done_callback(functools.partial(self._hub.deliver, fn))

    def __reduce__(self) -> Any:
        """Refuse to be sent to another process.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a JobFuture cannot be sent to another process, which cannot wait for its job: send its result, or wait "
            "for it in a job with pool='thread' or 'coroutine'"
        )


class _Waiters(list[Any]):
    """The waiters of one future: of `result` and `exception`, and of `wait` and `as_completed` of concurrent.futures.

    A job of the same executor that adds one lends its slot until it removes that, or the future is done. All methods
    are called with the lock of the future's condition.
    """

    __slots__ = ("_hub", "_job", "_loans")

    def __init__(self, hub: FutureHub | None, job: Job) -> None:
        super().__init__()
        self._hub, self._job = hub, job
        self._loans: dict[int, SlotLoan] | None = None

    def append(self, waiter: Any) -> None:
        hub = self._hub
        if hub is not None:
            if threading.get_ident() == hub.thread.running_in:
                raise RuntimeError(
                    "an observer cannot wait for a job, since it runs on the thread that ends jobs: wait in another "
                    "thread, or use add_done_callback"
                )
            loan = hub.loan_of_caller(self._job)
            if loan is not None:
                self._loans = self._loans or {}
                self._loans[id(waiter)] = loan
                loan.begin()
        super().append(waiter)

    def remove(self, waiter: Any) -> None:
        super().remove(waiter)
        if self._loans and (loan := self._loans.pop(id(waiter), None)) is not None:
            loan.end()

    def end_loans(self) -> None:
        """Take back what the jobs that waited have lent, on the supervisor's thread: the future is done."""
        self._hub = None
        loans, self._loans = self._loans, None
        for loan in (loans or {}).values():
            loan.end(on_supervisor=True)


def _only_wakes(callback: object) -> bool:
    """Return whether a callback is that of `await`, or of `asyncio.wrap_future`: it wakes a coroutine that waits."""
    return getattr(callback, "__module__", None) in ("asyncio.futures", __name__)


def _is_on_event_loop() -> bool:
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop() is not None
    return False


class _Waiter:
    """Blocks one thread that called `result` or `exception`."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def add_result(self, _: Future[Any]) -> None:
        self.lock.release()

    add_exception = add_result


class UnreadFailures:
    """Holds the futures of failed jobs that nobody has read, so that no failure goes unnoticed. Any thread may use it.

    `on_dropped` is called when nobody holds such a future any more. One that the program still holds when its executor
    closes may be read afterwards: it is looked at again when the interpreter exits. `max_kept` are kept at once, and
    further ones are not reported.
    """

    def __init__(self, max_kept: int, on_dropped: Callable[[object], None]) -> None:
        self._max_kept, self._on_dropped = max_kept, on_dropped
        self.failures: dict[weakref.ref[Future[Any]], str] = {}
        self._lock = threading.RLock()
        """Held until what was taken out is logged: the program may be about to exit."""

    def add(self, future: Future[Any], failure: str) -> weakref.ref[Future[Any]] | None:
        """Note a failed job's future; return what to take out of `failures` when it is read."""
        if len(self.failures) >= self._max_kept:
            return None
        noted = weakref.ref(future, self._on_dropped)
        self.failures[noted] = failure[:MAX_MESSAGE_LENGTH]
        return noted

    def report_dropped(self) -> None:
        """Report the futures that nobody holds any more, each once."""
        with self._lock:
            dropped = [noted for noted in list(self.failures) if noted() is None]
            _log_failures([failure for noted in dropped if (failure := self.failures.pop(noted, None))])

    def report(self) -> None:
        """Report the futures that nobody holds any more, as the executor closes, and the others at the exit."""
        self.report_dropped()
        _at_exit[:] = [unread for unread in (*_at_exit, self) if unread.failures]


def _log_failures(failures: list[str]) -> None:
    if failures:
        more = f"; and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
        named = "; ".join(failures[:MAX_NAMED])
        logger.error("jobs that failed without anybody reading their future: %d: %s%s", len(failures), named, more)


# The parent reports them.
os.register_at_fork(after_in_child=_at_exit.clear)


@atexit.register
def _report_at_exit() -> None:
    for unread in _at_exit:
        _log_failures(list(unread.failures.values()))
