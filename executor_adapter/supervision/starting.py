"""Starts attempts: hands them to the pools, and grants slots to drivers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import Job, JobStatus
from executor_adapter.pools import Assignment, Ending, gpu_environment
from executor_adapter.supervision.dispatcher import Dispatcher
from executor_adapter.supervision.follow_up import FollowUp
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.pool_set import PoolSet
from executor_adapter.supervision.run_times import SHORT_RUN_SECONDS, RunTimes
from executor_adapter.supervision.state_tracker import StateTracker

logger = logging.getLogger("executor_adapter")


class Starting:
    """Starts what the dispatcher picks. Supervisor thread only.

    `on_failed_start(assignment, ending, value, error)` is called where no worker can be started.
    """

    def __init__(
        self,
        intake: JobIntake,
        tracker: StateTracker,
        pools: PoolSet,
        dispatcher: Dispatcher,
        follow_up: FollowUp,
        on_failed_start: Callable[[Assignment, Ending, None, BaseException], None],
    ) -> None:
        self._intake = intake
        self._tracker = tracker
        self._pools = pools
        self._dispatcher = dispatcher
        self._follow_up = follow_up
        self._on_failed_start = on_failed_start
        self._run_times = RunTimes()

    def start(self, job: Job) -> None:
        """Start the next attempt of a job, or grant its driver a slot."""
        if job.live.driver is not None:
            self._grant_slot(job)
            return
        try:
            assignment = self.assign(job, job.state.attempt + 1)
        except Exception as fault:
            self._dispatcher.attempt_ended(job)
            self._follow_up.fail_undecided(job, fault)
        else:
            self.give_to_pool(assignment)

    def _grant_slot(self, job: Job) -> None:
        self._dispatcher.reserve(job)
        driver = job.live.driver
        driver.take_slot()
        begin = functools.partial(self._begin_driven, job)
        if driver.waits_for_worker:
            self._pools.reserve_worker(job, begin)
        else:
            begin()

    def _begin_driven(self, job: Job) -> None:
        if not job.live.driver.may_begin:
            return  # The job was ended while its worker started.
        if job.state.status is not JobStatus.RUNNING:  # Otherwise it needs another slot within the same attempt.
            self._intake.leave_queue(job)
            self._tracker.advance(job, JobStatus.RUNNING, attempt=job.state.attempt + 1)
        job.live.driver.slot_granted()

    def queue_behind(self, job: Job) -> bool:
        """Queue the job in a worker behind a short one, if it is short itself; return whether nothing is left to do."""
        try:
            assignment = self.assign(job, job.state.attempt + 1)
            if assignment.short and self._pools.queue_behind(assignment):
                return True
        except Exception as fault:
            self._follow_up.fail_undecided(job, fault)
            return True
        job.live.assignment = None
        return False

    def start_driven(self, job: Job, prepare: Callable[[Assignment], None]) -> None:
        """Run one attempt of a driven job in the slot that it holds."""
        assignment = self.assign(job, job.state.attempt)
        prepare(assignment)
        if job.live.driver.release_slot():  # The pool's worker takes the slot now.
            self._dispatcher.unreserve(job)
        self.give_to_pool(assignment)

    def assign(self, job: Job, number: int) -> Assignment:
        """Make attempt `number` of the job."""
        live = job.live
        live.assignment = assignment = Assignment(job, number, live.payload)
        assignment.checkpoint = live.checkpoint
        assignment.memory_limit = live.memory_limit
        assignment.run_time = run_time = self._run_times.of(job.function)
        assignment.short = run_time.seconds <= SHORT_RUN_SECONDS and live.resources is None
        if live.resources is not None and (gpus := self._dispatcher.resources.machine.gpus_of(job)):
            assignment.environment = gpu_environment(gpus)
        if live.scope is not None:
            live.scope.prepare(assignment)
        return assignment

    def give_to_pool(self, assignment: Assignment) -> None:
        """Let the pool run an attempt; if it cannot, the attempt fails as WORKER_UNAVAILABLE."""
        try:
            self._pools.start(assignment)
        except Exception as error:
            logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
            failure = WorkerUnavailableError(f"no worker could be started: {repr_of(error)}")
            self._on_failed_start(assignment, Ending.CRASHED, None, failure)
