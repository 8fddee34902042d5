"""A state machine over the real supervisor: every job is accounted for after any sequence of events.

The machine moves the clock, and a simulated pool ends attempts as the machine chooses.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from executor_adapter import Job, JobStatus, RetryPolicy
from executor_adapter.exceptions import ExecutorClosedError, JobError, WorkerCrashedError
from executor_adapter.job.status import LEGAL_TRANSITIONS, TERMINAL
from executor_adapter.job.transition import Transition
from executor_adapter.job.validation import ToolLimit
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, WorkerPool
from executor_adapter.pools.transport.envelope import STOPPED, Ending, Outcome, crashed, raised, returned
from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.supervisor import Supervisor
from executor_adapter.testing import InlineExecutor, inline_supervisor
from tests.contract.awkward import AWKWARD, NO_EXCEPTIONS
from tests.insides import supervisor_of

MAX_WORKERS = 2
MAX_QUEUED_BEHIND = 2
CAPACITY = {"CPU": 2, "license": 2}


class SimulatedWorker:
    def __init__(self) -> None:
        self.assigned: deque[Assignment] = deque()
        self.stopping = False


class SimulatedPool(WorkerPool):
    """A pool whose workers do nothing until the state machine ends their attempts."""

    name: ClassVar[str] = "simulated"
    can_stop_soft: ClassVar[bool] = True

    def __init__(self, name: str, supervisor: PoolSupervisor) -> None:
        super().__init__(supervisor, MAX_WORKERS)
        self.workers: list[SimulatedWorker] = []
        self.interrupted: list[Assignment] = []
        self.closed = False

    def start(self, assignment: Assignment) -> None:
        assert self.busy < MAX_WORKERS
        assert not self.closed
        worker = SimulatedWorker()
        self.workers.append(worker)
        self.busy += 1
        self._assign(worker, assignment)
        self.supervisor.started(assignment, self.supervisor.now())

    def queue_behind(self, assignment: Assignment) -> bool:
        for worker in self.workers:
            if len(worker.assigned) <= MAX_QUEUED_BEHIND and not worker.stopping and worker.assigned[0].max_behind:
                self._assign(worker, assignment)
                return True
        return False

    def _assign(self, worker: SimulatedWorker, assignment: Assignment) -> None:
        assignment.worker = worker
        worker.assigned.append(assignment)

    def recall(self, assignment: Assignment) -> Recall:
        worker: SimulatedWorker = assignment.worker
        if worker.assigned[0] is assignment:
            return Recall.STARTED
        worker.assigned.remove(assignment)
        self.supervisor.handed_back(assignment)
        return Recall.TAKEN_BACK

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        assert assignment.worker.assigned[0] is assignment
        assignment.worker.stopping = True

    def interrupt(self, assignment: Assignment) -> bool:
        self.interrupted.append(assignment)
        return True

    def close(self, on_closed: Callable[[], None]) -> None:
        assert not self.workers
        self.closed = True
        on_closed()

    # --- called by the state machine ---

    def end(self, worker: SimulatedWorker, outcome: Outcome) -> None:
        """End the worker's running attempt.

        A worker that stays alive starts the assignment queued behind it.
        """
        assignment = worker.assigned.popleft()
        assignment.ended_at = self.supervisor.now()
        dies = worker.stopping or outcome.ending in (Ending.CRASHED, Ending.ABANDONED)
        if dies or not worker.assigned:
            self.workers.remove(worker)
            self.busy -= 1
        if dies:
            self.hand_back_behind(worker, 0)
        self.supervisor.ended(assignment, STOPPED if worker.stopping else outcome)
        if not dies and worker.assigned:
            self.supervisor.started(worker.assigned[0], self.supervisor.now())

    def end_both(self, worker: SimulatedWorker, outcome: Outcome) -> None:
        """End the worker's running attempt, and the one behind it, whose start was not reported."""
        first, second = worker.assigned.popleft(), worker.assigned.popleft()
        first.ended_at = second.started_at = second.ended_at = self.supervisor.now()
        if not worker.assigned:
            self.workers.remove(worker)
            self.busy -= 1
        self.supervisor.ended(first, returned("value"))
        self.supervisor.ended(second, outcome)
        if worker.assigned:
            self.supervisor.started(worker.assigned[0], self.supervisor.now())

    def hand_back_behind(self, worker: SimulatedWorker, position: int) -> None:
        while len(worker.assigned) > position:
            self.supervisor.handed_back(worker.assigned.pop())

    def hand_back_queued(self, before: float) -> bool:
        for worker in self.workers:
            if (worker.assigned[0].started_at or 0.0) <= before:
                self.hand_back_behind(worker, 1)
        return any(len(worker.assigned) > 1 for worker in self.workers)

    def die_unbegun(self, worker: SimulatedWorker) -> None:
        """Kill the worker before it has started its assignments."""
        self.workers.remove(worker)
        self.busy -= 1
        self.hand_back_behind(worker, 0)


class SimulatedExecutor(InlineExecutor):
    def _make_supervisor(self, **options: Any) -> Supervisor:
        return inline_supervisor(self.clock, **(options | {"make_pool": SimulatedPool}))


@pytest.mark.parametrize("attempt", [1, 2])
def test_queue_timeout_is_about_the_first_attempt_alone(attempt: int) -> None:
    """A later attempt that is handed back, since its worker died unbegun, waits for as long as it takes."""
    with SimulatedExecutor(1) as executor:
        job = Job(function=int, pool="process", queue_timeout=30.0, retry_delay=5.0, retry_attempts=1)
        future = executor.submit(job)
        pool: Any = next(iter(supervisor_of(executor).pools.made.values()))
        if attempt == 2:
            pool.end(pool.workers[0], raised(ValueError("on purpose")))
            executor.clock.advance(6.0)  # Delays vary.
        block = executor.submit(Job(function=int, pool="process", priority=1))
        pool.die_unbegun(pool.workers[0])
        assert (job.status, job.attempt) == (JobStatus.PENDING, attempt - 1)
        assert (job.started_at is None) == (attempt == 1)
        executor.clock.advance(40.0)
        assert job.error_code == ("QUEUE_TIMEOUT" if attempt == 1 else "EXECUTION_ERROR")
        assert future.done() == (attempt == 1)
        future.note_read()
        pool.end(pool.workers[0], returned(0))
        assert block.done()
        while pool.workers:
            pool.end(pool.workers[0], returned(0))


def test_an_attempt_that_is_handed_back_at_its_limit_is_made_again() -> None:
    """Its host had lost its lease, so that it does not count, and neither does the limit that it had reached."""
    with SimulatedExecutor(1) as executor:
        future = executor.submit(Job(function=int, pool="process", max_runtime=1.0, retry_attempts=0))
        (pool,) = (each for each in supervisor_of(executor).pools.made.values() if isinstance(each, SimulatedPool))
        executor.clock.advance(2.0)
        assert pool.workers[0].stopping
        supervisor_of(executor).call_soon(pool.die_unbegun, pool.workers[0])
        executor.clock.advance(0.1)
        supervisor_of(executor).call_soon(pool.end, pool.workers[0], returned(7))
        assert future.result(timeout=0) == 7
    assert [attempt.error_code for attempt in future.job.attempts] == [None]


class ErrorLog(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


def work() -> None: ...


def short_work() -> None: ...


NO_EXCEPTIONS_MADE: dict[str, Callable[[], BaseException]] = {
    kind: functools.partial(type(error), *error.args) for kind, error in NO_EXCEPTIONS.items()
}
HOSTILE = sorted(AWKWARD.keys() | NO_EXCEPTIONS_MADE.keys())

limits = st.sampled_from([None, None, None, 0.5, 2.0, 30.0])


class SupervisorMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    drivers = Bundle("drivers")

    def __init__(self) -> None:
        super().__init__()
        self.transitions: dict[Job, list[Transition]] = defaultdict(list)
        self.futures: list[JobFuture] = []
        self.pending_calls: dict[JobDriver, Future[Any]] = {}
        self.executor = SimulatedExecutor(
            MAX_WORKERS,
            observers=(self._observe,),
            tool_limits={"api": ToolLimit(max_concurrent=1, rate=1.0, burst=2)},
            capacity=CAPACITY,
        )
        self.executor.clock.advance(1000.0)
        self.is_shut_down = False
        self.cancelled: dict[Job, int] = {}
        """How many transitions each job had when it was cancelled."""
        self.errors_logged = ErrorLog()
        logging.getLogger("executor_adapter").addHandler(self.errors_logged)

    def _observe(self, transition: Transition) -> None:
        self.transitions[transition.job].append(transition)

    @property
    def pools(self) -> list[SimulatedPool]:
        return [pool for pool in supervisor_of(self.executor).pools.made.values() if isinstance(pool, SimulatedPool)]

    @property
    def workers(self) -> list[tuple[SimulatedPool, SimulatedWorker]]:
        return [(pool, worker) for pool in self.pools for worker in pool.workers]

    @property
    def workers_with_two(self) -> list[tuple[SimulatedPool, SimulatedWorker]]:
        return [(pool, worker) for pool, worker in self.workers if len(worker.assigned) > 1 and not worker.stopping]

    def _act(self, action: Callable[..., None], *args: Any) -> None:
        """Call a method of a pool on the supervisor's thread, where pools report."""
        supervisor_of(self.executor).call_soon(action, *args)

    @staticmethod
    def _job(**fields: Any) -> Job:
        policy = RetryPolicy(
            retry_attempts=fields.pop("retries"), crash_attempts=fields.pop("crashes"), retry_delay=fields.pop("delay"),
            jitter=0.0,
        )  # fmt: skip
        return Job(retry=policy, pool="thread", **fields)

    some_job = st.fixed_dictionaries(
        {
            "function": st.sampled_from([work, short_work]),
            "priority": st.integers(-1, 1),
            "retries": st.integers(0, 3),
            "crashes": st.integers(0, 2),
            "delay": st.sampled_from([0.0, 1.0, 60.0]),
            "max_runtime": limits,
            "queue_timeout": limits,
            "deadline": limits,
            "stall_timeout": limits,
            "tool_name": st.sampled_from([None, "api"]),
            "resources": st.sampled_from(
                [None, None, {"CPU": 0.5}, {"license": 1}, {"license": 2, "CPU": 1}, {"CPU": 2}]
            ),
        }
    )

    @rule(target=jobs, fields=some_job)
    def submit(self, fields: dict[str, Any]) -> Job:
        job = self._job(**fields)
        try:
            self.futures.append(self.executor.submit(job))
        except ExecutorClosedError:
            assert self.is_shut_down
        return job

    @rule(target=drivers, fields=some_job)
    def drive(self, fields: dict[str, Any]) -> JobDriver | None:
        try:
            driver = self.executor.drive(self._job(**fields))
        except ExecutorClosedError:
            assert self.is_shut_down
            return None
        future = driver.job.live.future
        if future is not None:
            self.futures.append(future)
        self.pending_calls[driver] = driver.acquire()
        return driver

    @rule(driver=drivers)
    def go_on(self, driver: JobDriver | None) -> None:
        """Continue once the driver's pending call is done, as the owner of a driver does."""
        if driver is None or driver not in self.pending_calls or not self.pending_calls[driver].done():
            return
        outcome = self.pending_calls.pop(driver)
        error = outcome.exception()
        if error is None and outcome.result() == "value":
            driver.complete("value")
        elif error is None:
            self.pending_calls[driver] = (
                driver.attempt() if driver.job.status is JobStatus.RUNNING else driver.acquire()
            )
        else:
            decision = driver.decide(error)
            if decision.retry and driver.job.status is JobStatus.RUNNING:
                self.pending_calls[driver] = driver.retry(decision)
            else:
                driver.fail(error)

    @rule(driver=drivers)
    def complete_early(self, driver: JobDriver | None) -> None:
        """Complete a job from a cached result: its slot is released unused."""
        if driver is None or driver not in self.pending_calls or not self.pending_calls[driver].done():
            return
        if driver.job.status is JobStatus.RUNNING and self.pending_calls[driver].exception() is None:
            del self.pending_calls[driver]
            driver.complete("cached")

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def return_value(self, data: st.DataObject) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers))
        self._act(pool.end, worker, returned("value"))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), code=st.sampled_from(["API_ERROR", "DATA_ERROR", "RATE_LIMITED"]))
    def raise_error(self, data: st.DataObject, code: str) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers))
        error = JobError("no", error_code=code, retry_after=5.0 if code == "RATE_LIMITED" else None)
        self._act(pool.end, worker, raised(error))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), kind=st.sampled_from(HOSTILE))
    def raise_hostile_error(self, data: st.DataObject, kind: str) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers))
        self._act(pool.end, worker, raised((AWKWARD | NO_EXCEPTIONS_MADE)[kind]()))

    @precondition(lambda self: self.workers_with_two)
    @rule(data=st.data(), outcome=st.sampled_from([returned("value"), raised(JobError("no", error_code="API_ERROR"))]))
    def end_two_at_once(self, data: st.DataObject, outcome: Outcome) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers_with_two))
        self._act(pool.end_both, worker, outcome)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers))
        self._act(pool.end, worker, crashed(WorkerCrashedError("gone")))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die_unbegun(self, data: st.DataObject) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers))
        self._act(pool.die_unbegun, worker)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def make_progress(self, data: st.DataObject) -> None:
        pool, worker = data.draw(st.sampled_from(self.workers))
        self._act(pool.supervisor.on_message, worker.assigned[0], "progress", (1, 2, ""))

    @rule(job=jobs)
    def cancel(self, job: Job) -> None:
        if self.executor.cancel(job.job_id):
            self.cancelled.setdefault(job, len(self.transitions[job]))

    @rule(driver=drivers)
    def cancel_driven(self, driver: JobDriver | None) -> None:
        if driver is not None:
            driver.cancel()

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 31.0, 61.0, 1000.0]))
    def advance(self, seconds: float) -> None:
        self.executor.clock.advance(seconds)

    @precondition(lambda self: len(self.transitions) > 8)  # An early shutdown would leave little to test.
    @rule(cancel=st.booleans(), kill=st.booleans())
    def shut_down(self, cancel: bool, kill: bool) -> None:
        self.is_shut_down = True
        self.executor.shutdown(wait=False, cancel_futures=cancel, timeout=0 if kill else None)

    @invariant()
    def no_fault_was_logged(self) -> None:
        """The supervisor has logged no fault of its own."""
        assert self.errors_logged.records == []

    @invariant()
    def slots_are_not_exceeded(self) -> None:
        dispatcher = supervisor_of(self.executor).dispatcher
        assert dispatcher.reserved >= 0
        assert dispatcher.reserved + sum(pool.busy for pool in self.pools) <= MAX_WORKERS

    @invariant()
    def resources_are_not_exceeded(self) -> None:
        """What runs never holds more than there is, and where nothing runs, nothing waits for resources."""
        for name, amount in CAPACITY.items():
            held = [worker.assigned[0].job.resources or {} for _, worker in self.workers]
            assert sum(resources.get(name, 0) for resources in held) <= amount
        dispatcher = supervisor_of(self.executor).dispatcher
        if not self.workers and not dispatcher.reserved:
            assert dispatcher.waiting_for_resources() == 0

    @invariant()
    def transitions_are_legal_and_ordered(self) -> None:
        for job, transitions in self.transitions.items():
            assert (transitions[0].previous, transitions[0].status) == (None, JobStatus.PENDING)
            for before, after in itertools.pairwise(transitions):
                assert after.previous is before.status
                assert after.status in LEGAL_TRANSITIONS[before.status]
            assert transitions[-1].status is job.status
            assert len([each for each in transitions if each.status in TERMINAL]) <= 1

    @invariant()
    def nothing_starts_after_cancel(self) -> None:
        for job, seen_before in self.cancelled.items():
            later = {transition.status for transition in self.transitions[job][seen_before:]}
            assert not {JobStatus.RUNNING, JobStatus.RETRYING} & later

    @invariant()
    def attempts_stay_within_the_budget(self) -> None:
        for job in self.transitions:
            assert len(job.attempts) <= job.policy.retry_attempts + 1
            assert job.attempt <= job.policy.retry_attempts + 1

    @invariant()
    def a_future_is_done_when_its_job_is_over(self) -> None:
        for future in self.futures:
            assert future.done() == (future.job.status in TERMINAL)

    @invariant()
    def counts_add_up(self) -> None:
        stats = self.executor.stats(window=0.0)
        counts = [getattr(stats, f"jobs_{status.lower()}") for status in JobStatus]
        assert all(count >= 0 for count in counts)
        assert sum(counts) == len(self.transitions)

    def teardown(self) -> None:
        logging.getLogger("executor_adapter").removeHandler(self.errors_logged)
        self.executor.shutdown(wait=False, timeout=0)
        for _ in range(20):
            for pool, worker in self.workers:
                self._act(pool.end, worker, STOPPED)
            for driver in list(self.pending_calls):
                self.go_on(driver)
        assert {job.status for job in self.transitions} <= TERMINAL
        assert all(future.done() for future in self.futures)
        assert supervisor_of(self.executor).dispatcher.reserved == 0
        assert supervisor_of(self.executor).thread.closed.is_set()
        assert all(pool.closed and pool.busy == 0 for pool in self.pools)


_many = settings(stateful_step_count=50, suppress_health_check=list(HealthCheck))


class TestSupervisor(SupervisorMachine.TestCase):  # type: ignore[misc]
    """Any sequence of events, some of them."""

    settings = settings(_many, max_examples=80)


@pytest.mark.chaos
class TestSupervisorLonger(SupervisorMachine.TestCase):  # type: ignore[misc]
    """Any sequence of events, many of them."""

    settings = settings(_many, max_examples=2000)


def test_a_job_cancelled_while_it_is_ended_at_its_limit_is_not_retried() -> None:
    """A job that is cancelled while it is stopped at max_runtime ends CANCELLED, without a retry."""
    executor = SimulatedExecutor(1)
    future = executor.submit(Job(function=work, pool="thread", max_runtime=1.0, retry_attempts=3))
    (pool,) = (pool for pool in supervisor_of(executor).pools.made.values() if isinstance(pool, SimulatedPool))
    executor.clock.advance(2.0)
    assert pool.workers[0].stopping
    future.cancel()
    supervisor_of(executor).call_soon(pool.end, pool.workers[0], STOPPED)
    assert future.job.status is JobStatus.CANCELLED
