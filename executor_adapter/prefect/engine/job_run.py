"""One task run as one job: what the two engines share."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.exceptions import FailedRun

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.exceptions.display import is_plain, text_of, told_apart
from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.executor.signals import signal_watch
from executor_adapter.job.model import TERMINAL, Job, JobStatus
from executor_adapter.job.retry import RetryDecision
from executor_adapter.prefect.child.task_run_context import TASK_RUN_SCOPE, task_run_payload
from executor_adapter.prefect.engine.waiting import SlotLoan, slot_loan
from executor_adapter.prefect.mirror.flow_run_mirrors import TaskRunReporter
from executor_adapter.prefect.mirror.states import awaiting_retry, failure_kind, failure_message
from executor_adapter.prefect.options.job_options import job_of_call

if TYPE_CHECKING:
    from executor_adapter.supervision.driver import JobDriver

IN_THIS_PROCESS = frozenset({"auto", "thread", "coroutine"})
"""Pools whose functions see the engine's own context variables."""

ENDED_EARLY = "its flow run ended first"

_driven: contextvars.ContextVar[Task[..., Any] | None] = contextvars.ContextVar("driven", default=None)
"""The task that an engine of ours drives."""

_by_dedupe_key: dict[tuple[JobExecutor, str], JobRun] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def driving(task: Task[..., Any]) -> Iterator[None]:
    """While it lasts, what the caller does of `task` is done for its job."""
    token = _driven.set(task)
    try:
        yield
    finally:
        _driven.reset(token)


def is_driven(task: Task[..., Any]) -> bool:
    """Whether the caller is within `driving(task)`; an attempt in this process is."""
    return _driven.get() is task


class JobRun:
    """The job behind one task run, from the moment its inputs are known until a final state settles it.

    Its engine's thread uses it; `end_early` alone may be called from elsewhere. `options` are the job's fields but for
    function, arguments and id.
    """

    def __init__(self, task: Task[..., Any], options: Mapping[str, Any]) -> None:
        self.task = task
        self.options = options
        self.reporter: TaskRunReporter | None = None
        """Who tells the server of its task run; None where Prefect does."""
        self.on_begun: Callable[[], object] | None = None
        """To be called once, when the job has its slot, or is over without."""
        self.driver: JobDriver | None = None
        self.due: Future[None] | None = None
        """Resolves when the next attempt may ask for a slot; None where no retry is pending."""
        self.untold: State[Any] | None = None
        """That of a retry without a delay: entered only if it has to wait for its slot."""
        self.refusal: Exception | None = None
        """Why no further attempt can begin."""
        self.failure: BaseException | None = None
        """The error that the final state tells of, where it is not one that the function made itself."""
        self.value: Any = None
        self._last_error: BaseException | None = None
        self._error: BaseException | None = JobCancelledError("its task run was given up")
        self._running: Future[Any] | None = None
        self._ended_early = threading.Event()
        self._twin: JobRun | None = None
        """The live job with the same dedupe_key, whose end is this one's too."""
        self._twins_end: Future[None] | None = None
        self._dedupe_key: tuple[JobExecutor, str] | None = None
        self._over: Future[None] = Future()

    # --- attempts ---

    def open(self, task_run: TaskRun, parameters: Mapping[str, Any], hear: Callable[[str, Any], None]) -> Future[None]:
        """Hand the job to the executor, PENDING; what is given resolves when it has a slot.

        `hear(topic, content)` is told what the function says. A job whose dedupe_key is that of a live job of another
        task run gets no attempt: it ends as that does.

        Raises:
            InvalidJobError, JobSerializationError, QueueFullError, ExecutorClosedError: the executor refuses it.
            JobCancelledError: the flow run is over.
        """
        if self._ended_early.is_set():
            raise JobCancelledError(ENDED_EARLY)
        job, executor = job_of_call(self.task, self.options, str(task_run.id), parameters), current_executor()
        self._twin = self._find_twin(job, executor)
        if self._twin is not None:
            return self._wait_for(self._twin)
        self.driver = driver = executor.drive(job)
        driver.on_message(hear)
        if self._ended_early.is_set():
            driver.cancel()
        return driver.acquire()

    def _find_twin(self, job: Job, executor: JobExecutor) -> JobRun | None:
        if job.dedupe_key is None:
            return None
        key = executor, job.dedupe_key
        with _lock:
            first = _by_dedupe_key.setdefault(key, self)
        if first is not self:
            return first
        self._dedupe_key = key
        return None

    def _wait_for(self, twin: JobRun) -> Future[None]:
        """Resolves when the twin is over; fails once this one is to end early, while the twin goes on for its owner."""
        end: Future[None] = Future()
        self._twins_end = end

        def tell(_: Future[None]) -> None:
            with contextlib.suppress(InvalidStateError):  # it was ended early
                end.set_result(None)

        twin._over.add_done_callback(tell)
        if self._ended_early.is_set():
            self._leave_twin()
        return end

    def _leave_twin(self) -> None:
        if self._twins_end is not None:
            with contextlib.suppress(InvalidStateError):  # the twin is over
                self._twins_end.set_exception(JobCancelledError(ENDED_EARLY))

    def begun(self) -> None:
        """The job has its slot, or is over without."""
        on_begun, self.on_begun = self.on_begun, None
        if on_begun is not None:
            on_begun()

    def attempt(self, task_run: TaskRun, parameters: Mapping[str, Any]) -> Future[Any]:
        """Start one attempt in the slot that is held, with what the function may see of Prefect."""
        if self._twin is not None:
            return self._twin.repeated()
        assert self.driver is not None, "an attempt needs a slot, and a slot a driver"
        if self.driver.job.pool in IN_THIS_PROCESS:
            context, loan = contextvars.copy_context(), SlotLoan(self.driver)
            context.run(slot_loan.set, loan)
            self._running = self.driver.attempt(context=context)
            self._running.add_done_callback(lambda _: loan.close())
        else:
            scope = (TASK_RUN_SCOPE, task_run_payload(self.task, task_run, parameters))
            self._running = self.driver.attempt(scope=scope)
        return self._running

    def decide(self, failure: BaseException | State[Any]) -> RetryDecision:
        """Whether another attempt follows the one that ended with `failure`, an error or a state that was returned."""
        self._last_error = error = failure if isinstance(failure, BaseException) else _error_of(failure)
        if self.driver is None or self.refusal is not None:
            return RetryDecision(retry=False, reason="it was never started")
        if self._ended_early.is_set():
            return RetryDecision(retry=False, reason=ENDED_EARLY)
        return self.driver.decide(error)

    def await_retry(self, decision: RetryDecision) -> State[Any] | None:
        """Let the delay begin, without a slot; the state that says so. None where there is no delay: see `untold`."""
        assert self.driver is not None, "a retry is one of a job that was started"
        assert self._last_error is not None, "a retry follows an error"
        job = self.driver.job
        self.due = self.driver.retry(decision)
        awaiting = awaiting_retry(
            self._last_error,
            attempt=job.attempt,
            attempts=job.policy.retry_attempts + 1,
            scheduled_time=datetime.now(UTC) + timedelta(seconds=decision.delay),
        )
        self.untold = None if decision.delay > 0 else awaiting
        return awaiting if decision.delay > 0 else None

    # --- the end ---

    def repeated(self) -> Future[Any]:
        """How this job ended, for one that ends as it did."""
        again: Future[Any] = Future()
        if self._error is None:
            again.set_result(self.value)
        else:
            again.set_exception(self._error)
        return again

    def failed_with(self, failure: BaseException | State[Any]) -> None:
        """No attempt follows: an error names the final state, a state that the function returned stays its own."""
        self.failure = failure if isinstance(failure, BaseException) else None

    def named(self, state: State[Any]) -> State[Any]:
        """`state`, named by the table of `states` if it tells of this job's failure."""
        if state.name == "NotReady" and (self._ended_early.is_set() or signal_watch.ended_by is not None):
            # What it waited for was cancelled with the flow run, and so is this.
            self.failure, state.type = JobCancelledError(ENDED_EARLY), StateType.FAILED
        if self.failure is None or state.type not in {StateType.FAILED, StateType.CRASHED}:
            return state
        # In place, since a State's model_copy takes its timestamp away.
        state.type, state.name = failure_kind(self.failure)
        state.message = failure_message(self.failure)
        return state

    def settle(self, state: State[Any]) -> None:
        """Take note of a final state: the job ends as it says."""
        self._error = None if state.is_completed() else self.failure or self._last_error or _error_of(state)
        if self.driver is None:
            return
        if self._error is None:
            self.driver.complete(self.value)
        else:
            self.driver.fail(self._error)

    def interrupt(self, reason: str) -> Future[Any] | None:
        """End the job at once, since its engine is interrupted; what it gives is done once nothing of it is alive."""
        self.failure = JobCancelledError(reason)
        if self.driver is None or not self.driver.cancel():
            return None
        return self._running

    def end_early(self, *, cancel_running: bool) -> None:
        """Begin no further attempt, since the flow run is over; from any thread.

        A job that waits is cancelled, one that runs is left to end, unless `cancel_running`. One with a twin waits or
        runs as that does.
        """
        self._ended_early.set()
        driver = self.driver if self._twin is None else self._twin.driver
        if not cancel_running and driver is not None and driver.job.status is JobStatus.RUNNING:
            return
        self._leave_twin()
        if self.driver is not None:
            self.driver.cancel()

    def cancel(self) -> None:
        """The flow run is cancelled: end the job wherever it is, and begin no further attempt; from any thread."""
        self.end_early(cancel_running=True)

    def give_up(self, error: Exception) -> Exception:
        """Begin no further attempt after an error of the engine's own; what the final state is to tell."""
        self.refusal = JobCancelledError(ENDED_EARLY) if self._ended_early.is_set() else error
        return self.refusal

    def close(self) -> None:
        """Leave nothing of the job behind, however its engine ended."""
        self.begun()
        if self.driver is not None and self.driver.job.status not in TERMINAL and self._error is not None:
            self.driver.cancel()
            self.driver.fail(self._error)
        if self._dedupe_key is not None:
            with _lock:
                del _by_dedupe_key[self._dedupe_key]
        self._over.set_result(None)


def outcome(future: Future[Any]) -> Any:
    """The value of an attempt that is over; raises its error, as one that an engine can show."""
    error = future.exception()
    if error is None or is_plain(error):
        return future.result()
    raise told_apart(error, f"{type(error).__name__}: {text_of(error)}") from None


def _error_of(state: State[Any]) -> BaseException:
    return state.data if isinstance(state.data, BaseException) else FailedRun(state.message or f"it is {state.name}")
