"""The job behind one task run: the part of an engine that is neither synchronous nor asynchronous."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.exceptions import FailedRun
from prefect.states import AwaitingRetry
from prefect.utilities.engine import should_log_prints

from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.exceptions.display import as_job_error, is_plain, text_of
from executor_adapter.executor import current_executor, signal_watch
from executor_adapter.job import TERMINAL, JobStatus, RetryDecision
from executor_adapter.prefect.cancellation.watcher import explained
from executor_adapter.prefect.child.logs import RunLogger, log_message
from executor_adapter.prefect.child.payload import task_run_payload
from executor_adapter.prefect.child.task_run_context import IN_PROCESS_POOLS, TASK_RUN_SCOPE
from executor_adapter.prefect.mirror.events import current_flow_run_id
from executor_adapter.prefect.mirror.runs import PrefectReporter, TaskRunReporter
from executor_adapter.prefect.mirror.server import warn_of_untested_prefect
from executor_adapter.prefect.mirror.states import awaiting_retry_message, failure_kind, failure_message
from executor_adapter.prefect.options.job_options import AS_A_TASK, job_of_call
from executor_adapter.worker.facts import facts_of

if TYPE_CHECKING:
    from executor_adapter.supervision.driver import JobDriver

E = TypeVar("E", bound=BaseException)

FLOW_RUN_ENDED = "its flow run ended first"

_driven_task: contextvars.ContextVar[Task[..., Any] | None] = contextvars.ContextVar("driven_task", default=None)
"""The task that an engine of this package drives in the current context."""


@contextlib.contextmanager
def driving(task: Task[..., Any]) -> Iterator[None]:
    """Mark the block as driving `task`: what the block does with the task is done for its job."""
    token = _driven_task.set(task)
    try:
        yield
    finally:
        _driven_task.reset(token)


def is_driven(task: Task[..., Any]) -> bool:
    """Return whether the caller is within `driving(task)`, as the function of an attempt in this process is."""
    return _driven_task.get() is task


class JobRun:
    """Runs one task run as one job, from the moment its inputs are known until a final state settles it.

    Only the engine's thread uses it, but `end_early` and `interrupt` may be called from any thread, and
    `close` where its engine is given up. `options` are the job's fields except function, arguments and id.
    """

    def __init__(self, task: Task[..., Any], options: Mapping[str, Any]) -> None:
        warn_of_untested_prefect()  # In a task worker there is no mirror that does.
        self.task, self.options = task, options
        self._flow_run_id = current_flow_run_id()
        self.reporter: TaskRunReporter | PrefectReporter
        """Reports the task run to the server; set when the task run is made, for an engine of this package."""
        self.on_started: Callable[[], object] | None = None
        """Called once, when the job has its slot or has ended without one."""
        self.driver: JobDriver | None = None
        self.skipped_state: State[Any] | None = None
        """AwaitingRetry of a retry without a delay: entered only if the retry has to wait for its slot."""
        self.refusal: Exception | None = None
        """Why no further attempt can start."""
        self.failure: BaseException | None = None
        """The error that names the final state; None where the function returned that state itself."""
        self.value: Any = None
        self._retry_due: Future[None] | None = None
        self._last_error: BaseException | None = None
        self._error: BaseException | None = JobCancelledError("its task run was given up")
        self._running: Future[Any] | None = None
        self._messages: SimpleQueue[Any] = SimpleQueue()
        """What the function has logged and printed, and then the future of its attempt."""
        self._ended_early = threading.Event()
        self._interruption: JobCancelledError | None = None
        """By what its engine, or who awaits that, was interrupted."""
        self._twin: Future[Any] | None = None
        """The live job with the same dedupe_key. This job run gets no attempt and ends as that one does."""
        self._given_up: Future[None] = Future()
        """Done when the twin is not waited for any more."""

    # --- attempts ---

    def open(self, task_run: TaskRun, parameters: Mapping[str, Any]) -> None:
        """Hand the job to the executor, PENDING, and wait until it has a slot.

        A job whose dedupe_key is that of a live job gets no attempt: it ends as that job does.

        Raises:
            InvalidJobError, JobSerializationError, QueueFullError, ExecutorClosedError: the executor refuses the job.
            JobTimeoutError: it has waited too long.
            JobCancelledError: it was cancelled, or the flow run has ended.
        """
        if self._ended_early.is_set():
            raise JobCancelledError(FLOW_RUN_ENDED)
        job = job_of_call(self.task, self.options, str(task_run.id), parameters)
        job.model_fields_set.difference_update(AS_A_TASK.keys() - self.options.keys())  # The settings may fill them in.
        driver = current_executor().drive(job, on_message=lambda *message: self._messages.put(message))
        if driver.twin is not None:
            self._wait_for_twin(driver.twin)
            return
        self.driver = driver
        if self._ended_early.is_set():
            driver.cancel()
        driver.acquire().result()

    def refuse(self, error: Exception) -> Exception:
        """Start no further attempt because of `error`, and return the error for the final state.

        Once the job was ended early, that is the reason, whatever its engine has failed with.
        """
        is_ended = self._ended_early.is_set() and not is_a(error, JobCancelledError)
        self.refusal = self._explained(JobCancelledError(FLOW_RUN_ENDED) if is_ended else error)
        return self.refusal

    def notify_started(self) -> None:
        """Call `on_started` once: the job has its slot, or has ended without one."""
        on_started, self.on_started = self.on_started, None
        if on_started is not None:
            on_started()

    def attempt(self, task_run: TaskRun, logger: RunLogger) -> Any:
        """Run one attempt in the slot that is held; return its value, or raise its error as an engine can display it.

        `logger` is the task run's. The messages of the function are logged here: the caller's context names the run.
        """
        attempt = self._start_attempt(task_run)
        attempt.add_done_callback(self._messages.put)
        for topic, content in iter(self._messages.get, attempt):
            log_message(logger, topic, content, log_prints=should_log_prints(self.task))
        error = attempt.exception()
        if error is not None and (shown := self._explained(error)) is not error:
            raise shown from None
        if error is None or is_plain(error):
            return attempt.result()
        raise as_job_error(error, f"{type(error).__name__}: {text_of(error)}") from None

    def _start_attempt(self, task_run: TaskRun) -> Future[Any]:
        """Start an attempt within the Prefect contexts that the function may see."""
        if self._twin is not None:
            return self._twin
        assert self.driver is not None, "an attempt needs a slot, and a slot a driver"
        if self.driver.job.live.pool in IN_PROCESS_POOLS:
            self._running = self.driver.attempt(context=contextvars.copy_context())
        else:
            self._running = self.driver.attempt(scope=(TASK_RUN_SCOPE, task_run_payload(self.task, task_run)))
        return self._running

    def decide(self, failure: BaseException | State[Any]) -> RetryDecision:
        """Decide whether another attempt follows the one that ended with `failure`, an error or a returned state."""
        self._last_error = error = failure if isinstance(failure, BaseException) else _error_of(failure)
        if self.driver is None or self.refusal is not None:
            return RetryDecision(retry=False, reason="the job was never started")
        if self._ended_early.is_set():
            return RetryDecision(retry=False, reason=FLOW_RUN_ENDED)
        return self.driver.decide(error)

    def start_retry(self, decision: RetryDecision) -> State[Any] | None:
        """Release the slot, start the delay, and return the AwaitingRetry state to enter.

        Returns None where there is no delay: the state is then kept as `skipped_state`.
        """
        assert self.driver is not None, "only a job that was started is retried"
        assert self._last_error is not None, "a retry follows an error"
        job = self.driver.job
        self._retry_due = self.driver.retry(decision)
        attempts = job.policy.retry_attempts + 1
        awaiting: State[Any] = AwaitingRetry(
            scheduled_time=datetime.now(UTC) + timedelta(seconds=decision.delay),
            message=awaiting_retry_message(facts_of(self._last_error), attempt=job.attempt, attempts=attempts),
        )
        self.skipped_state = None if decision.delay > 0 else awaiting
        return awaiting if decision.delay > 0 else None

    def ask_for_retry(self) -> Future[None] | None:
        """Wait until a retry is due, and ask for its slot, which the future stands for; None if none is pending."""
        due, self._retry_due = self._retry_due, None
        if due is None:
            return None
        due.result()
        assert self.driver is not None, "only a job that was started is retried"
        return self.driver.acquire()

    def _wait_for_twin(self, twin: Future[Any]) -> None:
        """Wait until a job with the same dedupe_key has ended.

        Raises:
            JobCancelledError: this job run was ended early; the twin goes on for the one that has submitted it.
        """
        self._twin = twin
        wait([twin, self._given_up], return_when=FIRST_COMPLETED)
        if not twin.done():
            raise JobCancelledError(FLOW_RUN_ENDED)

    # --- the end ---

    def name_failure(self, state: State[Any]) -> State[Any]:
        """Return `state`, with the type, name and message of this job's failure if it is the state of that failure."""
        if state.name == "NotReady" and (self._ended_early.is_set() or signal_watch.ended_by is not None):
            # The input that it waited for was cancelled with the flow run, and so is this task run.
            self.failure, state.type = self._explained(JobCancelledError(FLOW_RUN_ENDED)), StateType.FAILED
        elif self.failure is None and self._interruption is not None:
            self.failure = self._explained(self._interruption)
        if self.failure is None or state.type not in {StateType.FAILED, StateType.CRASHED}:
            return state
        # Changed in place, because State.model_copy drops the timestamp.
        facts = facts_of(self.failure)
        state.type, state.name = failure_kind(facts)
        state.message = failure_message(facts)
        return state

    def settle(self, state: State[Any]) -> None:
        """End the job in the final `state`."""
        self._error = None if state.is_completed() else self.failure or self._last_error or _error_of(state)
        if self.driver is None:
            return
        if self._error is None:
            future = self.driver.job.live.future
            self.driver.complete(self.value)
            if self.driver.job.dedupe_key is not None and future is not None:
                wait([future])  # A later call with this key is one of its own.
        else:
            self._fail(self.driver, self._error)

    def _fail(self, driver: JobDriver, error: BaseException) -> None:
        """End the job with `error` once its attempt is dead, whether or not the engine waits for that."""
        if self._running is None:
            driver.fail(error)
        else:
            self._running.add_done_callback(lambda _: driver.fail(error))

    def interrupt(self, cause: BaseException) -> Future[Any] | None:
        """End the job in any state, because `cause` interrupts its engine or who awaits that; from any thread.

        The future, if there is one, is done once nothing of the job is alive.
        """
        self._interruption = JobCancelledError(f"ended by {type(cause).__name__}")
        self.end_early()
        return self._running

    def end_early(self, *, cancel_running: bool = True) -> None:
        """Start no further attempt, because the flow run has ended or is cancelled; callable from any thread.

        A waiting job is cancelled. A running job is left to finish unless `cancel_running`. A job run with a twin
        counts as running while the twin runs.
        """
        self._ended_early.set()
        has_job: Any = self._twin or self.driver
        if not cancel_running and has_job is not None and has_job.job.status is JobStatus.RUNNING:
            return
        with contextlib.suppress(InvalidStateError):  # It was ended before.
            self._given_up.set_result(None)
        if self.driver is not None:
            self.driver.cancel()

    def _explained(self, error: E) -> E | JobCancelledError:
        """Return the error; for a cancellation, one that says by what the job was interrupted or cancelled."""
        if self._interruption is not None and is_a(error, JobCancelledError):
            return explained(self._interruption, self._flow_run_id)
        return explained(error, self._flow_run_id)

    def close(self) -> None:
        """Release everything the job holds, however its engine ended."""
        self.notify_started()
        if self.driver is not None and self.driver.job.status not in TERMINAL and self._error is not None:
            self.driver.cancel()
            self._fail(self.driver, self._error)


def _error_of(state: State[Any]) -> BaseException:
    return state.data if isinstance(state.data, BaseException) else FailedRun(state.message or f"it is {state.name}")
