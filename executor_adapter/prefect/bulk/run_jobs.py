"""run_jobs: runs tens of thousands of jobs in one flow, each as a task run, without the cost of Prefect's task engine.

    @flow
    def nightly() -> None:
        results = run_jobs(Job(function=fetch, args=(page,), pool="process") for page in range(20_000))

Each job is a task run with its whole history, its log and its final state (`PrefectMirror`), and its function sees the
task run around it as in a `job_task`. The executor's supervisor retries by the job's policy. There is no task engine,
so there is no caching, no transaction, no hook and no persisted result.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sized
from concurrent.futures import wait
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import InvalidJobError, JobCancelledError, JobSerializationError, QueueFullError
from executor_adapter.executor import JobExecutor, current_executor, result_of
from executor_adapter.job import (
    TERMINAL,
    Job,
    JobResult,
    JobResults,
    JobStatus,
    Transition,
    check_are_jobs,
    check_count,
    check_is_job,
)
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from executor_adapter.pools.in_process.slot_loan import lend_slot
from executor_adapter.prefect.bulk.executor_mirror import PrefectMirror
from executor_adapter.prefect.bulk.groups import GroupedJobScope, JobGroup
from executor_adapter.prefect.bulk.job_scope import BulkJobScope, FlowRunScope
from executor_adapter.prefect.cancellation.watcher import FLOW_RUN_CANCELLED, flow_run_watcher
from executor_adapter.prefect.engine.run import result_of as awaited
from executor_adapter.prefect.engine.run import run_in_thread
from executor_adapter.prefect.mirror.mirror import TaskRunMirror, remaining_close_seconds
from executor_adapter.prefect.runners.companion import watch_for_cancel
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.worker.facts import facts_of

MAX_LIVE_JOBS = 2_000
"""Jobs in progress at once, and so the most that are Pending; further jobs are drawn as these end."""


SUBMIT_SECONDS = 0.5
"""Seconds for which a submission waits for a place until it is looked whether the run was stopped."""


def run_jobs(
    jobs: Iterable[Job],
    *,
    executor: JobExecutor | None = None,
    mirror: PrefectMirror | None = None,
    group: int | None = None,
    progress: bool = False,
) -> JobResults:
    """Run the jobs as task runs of the flow run around the caller and return their results, in the order of the jobs.

    A job that fails, or that the executor refuses, gives a JobResult with its error and does not raise. Jobs are drawn
    from the iterable as others end, so it may be long and lazy. The call returns when all jobs have ended and the
    server has recorded their ends; what it could not record is logged as a warning. An exception that ends the call (a
    signal, a cancelled flow run) ends its jobs.

    `executor`: by default the one around the caller, else that of the process. `mirror`: your own mirror, for another
    `history` or for its report; it is drained, and you close it. `group`: how many jobs are one task run, for very many
    tiny ones; its message counts how they ended, and a job that fails has a task run of its own too.
    `progress` shows a progress bar on stderr.

    Raises:
        RuntimeError: the caller is outside a flow run, or in an event loop, where `arun_jobs` must be awaited instead.
        ValueError: `group` is less than 1.
        InvalidJobError: two jobs have the same id; if `jobs` is a collection, before any job starts.
        ExecutorClosedError: the executor was shut down meanwhile.
    """
    _check_caller()
    check_are_jobs(jobs)
    run = _BulkRun(mirror, group, progress=progress)
    with lend_slot(), watch_for_cancel(run.stop):
        return run.run(jobs, executor or current_executor())


async def arun_jobs(
    jobs: Iterable[Job],
    *,
    executor: JobExecutor | None = None,
    mirror: PrefectMirror | None = None,
    group: int | None = None,
    progress: bool = False,
) -> JobResults:
    """Do the same as `run_jobs` without blocking the event loop, for async flows. Cancelling it ends the jobs."""
    check_are_jobs(jobs)
    run = _BulkRun(mirror, group, progress=progress)
    with lend_slot(), watch_for_cancel(run.stop):
        call = functools.partial(run.run, jobs, executor or current_executor())
        return await awaited(run_in_thread(call, "run-jobs", daemon=False), lambda _: run.stop())


class _BulkRun:
    """One call of `run_jobs`.

    The caller's thread submits jobs and collects results. The supervisor's thread counts the jobs that have ended and
    wakes the caller's thread once for many of them, because a callback for each job would cost as much as running it.
    """

    def __init__(self, mirror: PrefectMirror | None, group_size: int | None, *, progress: bool) -> None:
        check_count("group", group_size, "holds no job", or_none=", or None for a task run a job")
        self._mirror = mirror or TaskRunMirror()
        self._mirror.join_flow_run()
        self._owns_mirror = mirror is None
        context, flow_run = _flow_run_of_caller()
        self._known_ids = _ids_of(flow_run.id, flow_run.run_count)
        self._flow_run_scope = FlowRunScope(context, flow_run.id)
        self._why_cancelled = functools.partial(flow_run_watcher.why_cancelled, flow_run.id)
        self._group_size = group_size
        self._group: JobGroup | None = None
        """The group that gets the next job, unless it is full."""
        self._groups = 0
        self._results: list[JobResult | None] = []
        self._live: dict[int, JobFuture] = {}
        """Futures whose results are not collected yet, by the index of the result."""
        self._shared: dict[int, JobGroup | None] = {}
        """The groups of those whose job was live before with the same dedupe_key, so that it is another call's."""
        self._scopes: dict[Job, BulkJobScope] = {}
        """The scopes of the jobs that have not ended."""
        self._finished: deque[int] = deque()
        """The indexes of results that can be collected."""
        self._ended: Counter[JobStatus] = Counter()
        """How many jobs have ended, and how. Guarded by the lock."""
        self._lock = threading.Lock()
        self._progress = progress
        self._note = ""
        """What the caller waits for, now that all jobs have ended."""
        self._awaited = math.inf
        """How many results the caller waits for."""
        self._wake = threading.Event()
        self._stopped = False

    def run(self, jobs: Iterable[Job], executor: JobExecutor) -> JobResults:
        """Run the jobs; see `run_jobs`."""
        total = len(jobs) if isinstance(jobs, Sized) else None
        bar = ProgressBar("run_jobs", lambda: self._counts(total)) if self._progress else contextlib.nullcontext()
        with bar:
            return self._run(jobs, executor)

    def _counts(self, total: int | None) -> ProgressCounts:
        with self._lock:
            done, failed = self._ended.total(), self._ended.total() - self._ended[JobStatus.COMPLETED]
        return ProgressCounts(done=done, failed=failed, total=done if self._note else total, note=self._note)

    def _count(self, status: JobStatus) -> None:
        """Count a job that has ended; callable from any thread."""
        with self._lock:
            self._ended[status] += 1

    def _run(self, jobs: Iterable[Job], executor: JobExecutor) -> JobResults:
        jobs = _with_unique_ids(jobs, self._known_ids)
        executor.add_observer(self._observe)
        try:
            for job in jobs:
                while self._stopped or len(self._live) >= MAX_LIVE_JOBS:  # It raises if the run was stopped.
                    self._collect(max(1, MAX_LIVE_JOBS // 10))
                self._submit(job, executor)
            self._close_group()
            self._collect(len(self._live))
            self._finish()
            self._flow_run_scope.log.wait()
        except BaseException:
            self._cancel()
            raise
        finally:
            executor.remove_observer(self._observe)
        return JobResults(result for result in self._results if result is not None)

    def stop(self) -> None:
        """Make the run raise JobCancelledError, because its flow run or its caller was cancelled; from any thread."""
        self._stopped = True
        self._wake.set()

    def _submit(self, job: Job, executor: JobExecutor) -> None:
        index = len(self._results)
        self._results.append(None)
        scope = self._scopes[job] = self._scope_of(job, index)
        try:
            while (future := _submitted(job, scope, executor)) is None:
                self._check_not_stopped()
            future.note_read()
        except (InvalidJobError, JobSerializationError) as error:
            del self._scopes[job]
            self._record_refusal(index, job, scope, error)
            return
        except BaseException:
            self._discard(job)
            raise
        self._live[index] = future
        if future.job is not job:  # A live job has the same dedupe_key, and its task run shows this one too.
            self._scopes.pop(job)
            self._mirror.remove_job(job)
            self._shared[index] = self._group
            future.add_done_callback(lambda _: self._on_finished(index, future.job.status))

    def _scope_of(self, job: Job, index: int) -> BulkJobScope:
        """Return a new scope for a job, which shows it in a task run of its own or in that of a group."""
        if self._group_size is None:
            return BulkJobScope(self._flow_run_scope, self._mirror.add_job(job), index)
        if self._group is None or self._group.size >= self._group_size:
            self._close_group()
            self._groups += 1
            self._group = JobGroup(self._mirror, job, self._groups)
        self._group.add()
        return GroupedJobScope(self._flow_run_scope, self._group, index)

    def _close_group(self) -> None:
        if self._group is not None:
            self._group.close()

    def _discard(self, job: Job) -> None:
        # An interrupted submit may have accepted the job, which may have ended by now.
        if self._scopes.pop(job, None) is not None and self._group is not None:
            self._group.remove()
        self._mirror.remove_job(job)

    def _record_refusal(
        self, index: int, job: Job, scope: BulkJobScope, error: InvalidJobError | JobSerializationError
    ) -> None:
        """Show a job that the executor refused as a failed task run with the reason."""
        now = time.time()
        self._count(JobStatus.FAILED)
        scope.mirror(self._mirror, Transition(job, None, JobStatus.PENDING, now, 0))
        scope.mirror(self._mirror, Transition(job, JobStatus.PENDING, JobStatus.FAILED, now, 0, facts_of(error)))
        self._results[index] = JobResult(
            job_id=job.job_id, status=JobStatus.FAILED, error=error, error_code=error_code_of(error)
        )

    # --- collecting results ---

    def _collect(self, count: int) -> None:
        """Wait until so many results can be collected, and collect them; raise if the run was stopped."""
        self._awaited = count
        while not self._stopped and len(self._finished) < count:
            self._wake.wait()
            self._wake.clear()
        self._check_not_stopped()
        self._awaited = math.inf
        while self._finished:
            index = self._finished.popleft()
            result = self._results[index] = result_of(self._live.pop(index))
            if (group := self._shared.pop(index, None)) is not None:
                group.end(result.status)

    def _check_not_stopped(self) -> None:
        if self._stopped:
            raise JobCancelledError(FLOW_RUN_CANCELLED)

    # --- on the supervisor's thread ---

    def _observe(self, transition: Transition) -> None:
        # Looked up by the job itself, because a job of another flow run may have the same id.
        scope = self._scopes.get(transition.job)
        if scope is None:
            return
        scope.mirror(self._mirror, transition)
        if transition.previous is None:
            transition.job.live.future.why_cancelled = self._why_cancelled
        if transition.error is not None:
            scope.log_failure(transition)
        if transition.status in TERMINAL:
            del self._scopes[transition.job]
            self._on_finished(scope.index, transition.status)

    def _on_finished(self, index: int, status: JobStatus) -> None:
        """Count a job that has ended, whose result can be collected; callable from any thread."""
        self._count(status)
        self._finished.append(index)
        if len(self._finished) >= self._awaited:
            self._wake.set()

    # --- the end ---

    def _finish(self) -> None:
        """Wait until the server has recorded how the jobs ended; raise if the run was stopped."""
        self._note = "waiting for the server to record the task runs"
        if self._results:
            self._mirror.drain(check=self._check_not_stopped)
        if self._owns_mirror:
            self._mirror.close(0.0)

    def _cancel(self) -> None:
        """End the jobs of this run, and report their ends within the time that a cancelled run has."""
        began = time.monotonic()
        if self._owns_mirror:
            self._mirror.hurry()
        self._close_group()
        for group in self._shared.values():
            if group is not None:
                group.remove()  # The job is another call's, and may go on.
        flow_run_watcher.ask()  # The jobs say why they end.
        live = [future for index, future in self._live.items() if index not in self._shared and future.cancel()]
        try:
            wait(live)
        finally:
            (self._mirror.close if self._owns_mirror else self._mirror.drain)(remaining_close_seconds(began))


def _submitted(job: Job, scope: BulkJobScope, executor: JobExecutor) -> JobFuture | None:
    """Submit a job, and return its future; None where no place for it became free within SUBMIT_SECONDS."""
    try:
        return executor.submit(job, timeout=SUBMIT_SECONDS, scope=scope)
    except QueueFullError:
        return None


# --- job ids, each of which comes once in a flow run, because it is also the id of a task run ---

MAX_REMEMBERED_FLOW_RUNS = 8
"""Flow runs whose job ids are remembered, so that a later call in the same flow run cannot use an id again."""


@functools.lru_cache(maxsize=MAX_REMEMBERED_FLOW_RUNS)
def _ids_of(flow_run_id: UUID, run_count: int) -> set[str]:
    """Return the ids of all jobs that this flow run has had; after a retry of the flow run, those since the retry."""
    return set()


def _with_unique_ids(jobs: Iterable[Job], known_ids: set[str]) -> Iterable[Job]:
    """Return the jobs after checking that no id comes twice; of a lazy iterable each is checked when it is drawn."""
    if not isinstance(jobs, Collection):
        return _checked(jobs, known_ids)
    for _ in _checked(jobs, checked_ids := set(known_ids)):
        pass
    known_ids |= checked_ids
    return jobs


def _checked(jobs: Iterable[Job], known_ids: set[str]) -> Iterator[Job]:
    for job in jobs:
        check_is_job(job)
        if job.job_id in known_ids:
            raise InvalidJobError(
                f"two jobs of one flow run have the id {job.job_id!r}, which is also the id of the task run: "
                "give each job its own"
            )
        known_ids.add(job.job_id)
        yield job


# --- the caller ---


def _flow_run_of_caller() -> tuple[FlowRunContext, FlowRun]:
    """Return the flow run around the caller, with its context.

    Raises:
        RuntimeError: there is no flow run.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("run_jobs makes task runs of a flow run: call it in a @flow, or use JobExecutor.map")
    return context, context.flow_run


def _check_caller() -> None:
    context, _ = _flow_run_of_caller()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if context.flow is not None and not context.flow.isasync:
        return  # A sync flow called from an event loop blocks the loop anyway.
    raise RuntimeError("run_jobs would block the event loop: await arun_jobs(...) instead")
