"""run_jobs: tens of thousands of jobs in one flow, each a task run of it, without the cost of Prefect's task engine.

    @flow
    def nightly() -> None:
        results = run_jobs(Job(function=fetch, args=(page,), pool="process") for page in range(20_000))

Each job is a task run with its whole history, its log and its final state (`PrefectMirror`), and its function sees the
task run around it as in a `job_task`. The executor's supervisor retries, by the job's policy; there is no engine, and
so there is no caching, no transaction, no hook and no persisted result.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import wait
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import InvalidJobError, JobCancelledError, JobSerializationError
from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.executor.mapping import result_of
from executor_adapter.job.model import TERMINAL, Job, JobResult, JobStatus, Transition, check_are_jobs, check_is_job
from executor_adapter.prefect.bulk.job_scope import FlowScene, JobScene
from executor_adapter.prefect.bulk.run_log import RunLog
from executor_adapter.prefect.engine.waiting import slot_lent
from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.timeouts import remaining_close_seconds
from executor_adapter.prefect.runners.companion import watching
from executor_adapter.supervision.futures import JobFuture

WINDOW = 2_000
"""Jobs under way at once, and so the most that are Pending: further ones are drawn from the iterable as these end."""

KEPT_FLOW_RUNS = 8
"""The ids of so many flow runs' jobs are remembered."""

CANCEL_SECONDS = 10.0
"""How long a run that is left by an exception waits for its jobs to be dead."""


def run_jobs(
    jobs: Iterable[Job], *, executor: JobExecutor | None = None, mirror: PrefectMirror | None = None
) -> list[JobResult]:
    """Run the jobs as task runs of the flow run around the caller; their results, in the order of the jobs.

    A job that fails, or that the executor refuses, gives a JobResult with its error, and raises nothing. Jobs are drawn
    from the iterable as others end: it may be long, and lazy. It returns when all are over and the server knows how
    each ended; what it could not be told is logged as a warning. Leaving it by an exception (a signal, a cancelled
    flow run) ends its jobs.

    `executor`: by default the one around the caller, else that of the process. `mirror`: one of your own, for another
    `history` or for its report; it is drained, and yours to close.

    Raises:
        RuntimeError: outside a flow run; in an event loop, which it would block: await `arun_jobs` there.
        InvalidJobError: two jobs have the same id; where `jobs` is a collection, before anything starts.
        ExecutorClosedError: the executor was shut down meanwhile.
    """
    _check_caller()
    check_are_jobs(jobs)
    return _BulkRun(executor or current_executor(), mirror).run(jobs)


async def arun_jobs(
    jobs: Iterable[Job], *, executor: JobExecutor | None = None, mirror: PrefectMirror | None = None
) -> list[JobResult]:
    """`run_jobs` for async flows: the event loop goes on meanwhile. Cancelling it ends the jobs."""
    check_are_jobs(jobs)
    run = _BulkRun(executor or current_executor(), mirror)
    context = contextvars.copy_context()
    running = asyncio.get_running_loop().run_in_executor(None, context.run, run.run, jobs)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        run.stop()
        with contextlib.suppress(Exception):
            await running
        raise


class _BulkRun:
    """One call of `run_jobs`.

    The caller's thread submits and gathers results; the supervisor's counts the jobs that are over, and wakes the
    caller's for many at once: a callback for each job would cost as much as running it.
    """

    def __init__(self, executor: JobExecutor, mirror: PrefectMirror | None) -> None:
        self._executor = executor
        self._mirror = mirror or PrefectMirror()
        self._mirror.join_flow_run()
        self._owns_mirror = mirror is None
        self._ids = _ids_of(_flow_run(FlowRunContext.get()))
        self._log = RunLog()
        self._scene = FlowScene(self._log)
        self._results: list[JobResult | None] = []
        self._live: dict[int, JobFuture] = {}
        """Those whose results are not gathered yet, by the place of the result."""
        self._shared: dict[int, JobFuture] = {}
        """Those of live jobs with the same dedupe_key, which are somebody else's, or live already."""
        self._scenes: dict[Job, JobScene] = {}
        """Of the jobs that are not over."""
        self._ended: deque[int] = deque()
        """The places of results that can be gathered."""
        self._submitted = 0
        self._over = 0
        """How many of the jobs submitted are over; the supervisor's thread counts."""
        self._awaited = math.inf
        self._wake = threading.Event()
        self._stopped = False

    def run(self, jobs: Iterable[Job]) -> list[JobResult]:
        """See `run_jobs`."""
        with slot_lent(), watching(self.stop):
            return self._run(jobs)

    def _run(self, jobs: Iterable[Job]) -> list[JobResult]:
        jobs = _with_new_ids(jobs, self._ids)
        self._executor.add_observer(self._observe)
        try:
            for job in jobs:
                self._make_room()
                self._submit(job)
            self._wait_for_all()
            self._end()
            self._log.flush()
        except BaseException:
            self._cancel()
            raise
        finally:
            self._executor.remove_observer(self._observe)
            self._log.close()
        return [result for result in self._results if result is not None]

    def stop(self) -> None:
        """Leave the run, from another thread, as by an exception: its flow run or its caller was cancelled."""
        self._stopped = True
        self._wake.set()

    def _submit(self, job: Job) -> None:
        number = len(self._results)
        self._results.append(None)
        scene = self._scenes[job] = JobScene(self._scene, self._mirror.add_job(job), number)
        try:
            future = self._executor.submit(job, surroundings=scene)
        except (InvalidJobError, JobSerializationError) as error:
            del self._scenes[job]
            self._refused(number, job, error)
            return
        except BaseException:
            self._dismiss(job)
            raise
        if future.job is job:
            self._submitted += 1
            self._live[number] = future
        else:  # a live job with the same dedupe_key: that one's task run shows it
            self._dismiss(job)
            self._shared[number] = future

    def _dismiss(self, job: Job) -> None:
        self._scenes.pop(job, None)  # an interrupted submit may have let it in, and it may be over
        self._mirror.remove_job(job)

    # --- gathering results ---

    def _make_room(self) -> None:
        """Wait while WINDOW jobs are under way; raises where the run was stopped."""
        while self._stopped or len(self._live) >= WINDOW:
            self._wait_for(self._submitted - len(self._live) + max(1, WINDOW // 10))
            self._gather()

    def _wait_for_all(self) -> None:
        self._wait_for(self._submitted)
        self._gather()
        for future in self._shared.values():
            future.add_done_callback(lambda _: self._wake.set())
        self._wait_until(lambda: all(future.done() for future in self._shared.values()))
        for number, future in self._shared.items():
            self._results[number] = result_of(future)

    def _gather(self) -> None:
        while self._ended:
            number = self._ended.popleft()
            self._results[number] = result_of(self._live.pop(number))

    def _wait_for(self, over: int) -> None:
        """Wait until so many of the jobs submitted are over."""
        self._awaited = over
        self._wait_until(lambda: self._over >= over)
        self._awaited = math.inf

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what somebody sets `_wake` after; raises where the run was stopped."""
        while not self._stopped and not condition():
            self._wake.wait()
            self._wake.clear()
        self._check()

    def _check(self) -> None:
        if self._stopped:
            raise JobCancelledError("its flow run was cancelled")

    def _refused(self, number: int, job: Job, error: InvalidJobError | JobSerializationError) -> None:
        """A job that the executor did not take failed all the same, and its task run says why."""
        now = time.time()
        self._mirror.enqueue(Transition(job, None, JobStatus.PENDING, now, 0))
        self._mirror.enqueue(Transition(job, JobStatus.PENDING, JobStatus.FAILED, now, 0, error))
        self._results[number] = JobResult(
            job_id=job.job_id, status=JobStatus.FAILED, error=error, error_code=error_code_of(error)
        )

    # --- what happens to the jobs, told on the supervisor's thread ---

    def _observe(self, transition: Transition) -> None:
        scene = self._scenes.get(transition.job)  # by itself: another flow run's job may have the same id
        if scene is None:
            return
        if transition.error is not None:
            scene.failed(transition)
        self._mirror.enqueue_for(scene.history, transition)
        if transition.status in TERMINAL:
            del self._scenes[transition.job]
            self._ended.append(scene.number)
            self._over += 1
            if self._over >= self._awaited:
                self._wake.set()

    # --- the end ---

    def _end(self) -> None:
        """Wait until the server knows how the jobs ended; raises where the run was stopped."""
        if self._results:
            self._mirror.drain(check=self._check)
        if self._owns_mirror:
            self._mirror.close(0.0)

    def _cancel(self) -> None:
        """End the jobs of this run, and tell how they ended while that takes its time."""
        began = time.monotonic()
        if self._owns_mirror:
            self._mirror.hurry()
        live = [future for future in self._live.values() if not future.done()]
        for future in live:
            future.cancel()
        try:
            wait(live, timeout=CANCEL_SECONDS)
        finally:
            (self._mirror.close if self._owns_mirror else self._mirror.drain)(remaining_close_seconds(began))


def _flow_run(context: FlowRunContext | None) -> FlowRun:
    """The flow run around the caller, in the process that runs it.

    Raises:
        RuntimeError: there is none.
    """
    if context is None or context.flow_run is None or getattr(context, "task_runner", None) is None:
        raise RuntimeError("run_jobs makes task runs of a flow run: call it in a @flow, or use JobExecutor.map")
    return context.flow_run


def _check_caller() -> None:
    context = FlowRunContext.get()
    _flow_run(context)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if context is not None and context.flow is not None and not context.flow.isasync:
        return  # a sync flow called from an event loop holds that up as a whole
    raise RuntimeError("run_jobs would block the event loop: await arun_jobs(...) instead")


_ids_by_flow_run: OrderedDict[tuple[UUID, int], set[str]] = OrderedDict()


def _ids_of(flow_run: FlowRun) -> set[str]:
    """The ids of all jobs that this run of the flow run has had; of a retried flow run, those since the retry."""
    ids = _ids_by_flow_run.setdefault((flow_run.id, flow_run.run_count), set())
    while len(_ids_by_flow_run) > KEPT_FLOW_RUNS:
        _ids_by_flow_run.popitem(last=False)
    return ids


def _with_new_ids(jobs: Iterable[Job], ids: set[str]) -> Iterable[Job]:
    """The jobs, if no id is there twice: looked for before the first, where that is possible."""
    if not isinstance(jobs, Collection):
        return _as_drawn(jobs, ids)
    for _ in _as_drawn(jobs, known := set(ids)):
        pass
    ids |= known
    return jobs


def _as_drawn(jobs: Iterable[Job], ids: set[str]) -> Iterator[Job]:
    for job in jobs:
        check_is_job(job)
        if job.job_id in ids:
            raise InvalidJobError(f"two jobs of one flow run have the id {job.job_id!r}: it is their task run's too")
        ids.add(job.job_id)
        yield job
