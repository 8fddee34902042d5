"""One executor of a program, with its steps, its end, and what is checked of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, JobCancelledError, QueueFullError
from executor_adapter.job.pool_names import PoolName
from executor_adapter.job.status import TERMINAL
from executor_adapter.job.transition import Transition
from executor_adapter.job.validation import ToolLimit
from executor_adapter.store import JobStore, StoreUnavailableError
from tests.stress import functions
from tests.stress.executors import KINDS, OnPurposeError, settings
from tests.stress.outcomes import outcomes
from tests.stress.plan import CANCELLING, SHORT_LEASE, SHUTDOWNS, ExecutorPlan, JobPlan, Step
from tests.stress.scene import Common, Watch


class Run:
    """One executor of the program, with its steps."""

    def __init__(self, plan: ExecutorPlan, common: Common) -> None:
        self.plan = plan
        self.common = common
        self.watch = Watch(common.scene.journal)
        self.futures: list[Any] = []
        """The future of each accepted job."""
        self.submitted: dict[int, Job] = {}
        self.waited = not plan.end.startswith(("none", "shutdown(wait=False"))
        self.may_cancel: set[str] = set()
        self.all_may_cancel = plan.end in CANCELLING or bool(common.plan.deaths) or plan.settings["lease"] is not None
        self.called = 0
        self.callbacks = 0
        self._numbers = itertools.count()
        self.store = self._open()
        self.executor: JobExecutor | None = self._make()
        self.memory = self.executor.store if common.scene.url == "memory:" else None

    # --- making ---

    def _open(self) -> JobStore | str | None:
        if self.common.scene.url is None or self.plan.store == "its url":
            return self.common.scene.url
        return self.common.shared_store() if self.plan.store == "a shared object" else self.common.own_store()

    def _make(self) -> JobExecutor:
        given: dict[str, Any] = dict(self.plan.options)
        if (limits := given["tool_limits"]) is not None:
            given["tool_limits"] = {name: ToolLimit(**limit) for name, limit in limits.items()}
        if given["initializer"]:
            given["initargs"] = ("ready",)
        observers = [functools.partial(getattr(self, f"_be_{name}"), set()) for name in self.plan.observers]
        return KINDS[self.plan.hooks](
            **given, config=settings(self.plan.settings), observers=(self.watch, *observers), store=self.store
        )

    def job(self, plan: JobPlan) -> Job:
        fields = dict(plan.fields)
        if "retry" in fields:
            fields["retry"] = RetryPolicy(**fields["retry"])
        function = getattr(functions, plan.kind)
        args = (self.common.scene.journal, plan.name, *plan.args)
        return Job(function=function, args=args, job_id=plan.name, **fields)

    # --- running ---

    def run(self) -> None:
        """Do all steps, and end as planned."""
        assert self.executor is not None
        match self.plan.end:
            case "with":
                with contextlib.suppress(*self._refusals), self.executor:
                    self._steps()
            case "with, by an exception":
                with contextlib.suppress(OnPurposeError, *self._refusals), self.executor:
                    self._steps()
                    raise OnPurposeError("a block")
            case "async with":
                with contextlib.suppress(*self._refusals):
                    asyncio.run(self._within_async())
            case end:
                if self.common.scene.url is not None:
                    self.recover()
                self._steps()
                self._end(end)

    @property
    def _refusals(self) -> tuple[type[Exception], ...]:
        """The errors with which the store may refuse those who wait for it: a stopped program may hold it for long."""
        return (StoreUnavailableError,) if self.plan.settings["lease"] == SHORT_LEASE else ()

    async def _within_async(self) -> None:
        assert self.executor is not None
        async with self.executor:
            await asyncio.to_thread(self._steps)

    def _end(self, end: str) -> None:
        executor = self.executor
        assert executor is not None
        if end == "none, and dropped":
            self.executor = None
            del executor
            gc.collect()
        elif end == "stop()":
            asyncio.run(executor.stop())
        elif end == "shutdown() in two threads":
            other = threading.Thread(target=executor.shutdown)
            other.start()
            executor.shutdown()
            other.join()
        elif end == "shutdown() in a callback":
            self._shut_down_in_a_callback(executor)
        elif end != "none":
            executor.shutdown(**SHUTDOWNS[end])

    def _shut_down_in_a_callback(self, executor: JobExecutor) -> None:
        called = threading.Event()

        def shut_down(_: Future[Any]) -> None:
            executor.shutdown()
            called.set()

        plan = JobPlan(name=self._name("last"), kind="answer", args=(), fields={"pool": "thread", "retry_delay": 0.01})
        if (future := self.accept(self.job(plan))) is not None:
            future.add_done_callback(shut_down)
            called.wait()
        executor.shutdown()

    def _steps(self) -> None:
        if self.plan.threads == 1:
            self._do(self.plan.steps)
            return
        raised: list[BaseException] = []
        parts = [self.plan.steps[n :: self.plan.threads] for n in range(self.plan.threads)]
        threads = [threading.Thread(target=self._do_in_thread, args=(part, raised)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def _do_in_thread(self, steps: Sequence[Step], raised: list[BaseException]) -> None:
        try:
            self._do(steps)
        except BaseException as error:
            raised.append(error)

    def _do(self, steps: Sequence[Step]) -> None:
        for name, *args in steps:
            if self.executor is not None:
                getattr(self, name)(*args)

    def _name(self, word: str) -> str:
        return f"{self.common.name}.{self.plan.jobs[0].name}.{word}{next(self._numbers)}"

    # --- steps ---

    def accept(self, job: Job, timeout: float | None = None) -> Any:
        """Submit the job, and remember that it was accepted; None where it was refused as it may be."""
        executor = self.executor
        if executor is None:
            return None
        try:
            future = executor.submit(job, timeout=timeout)
        except ExecutorClosedError:
            if not executor.is_shutting_down:
                raise
            return None
        except QueueFullError:
            if self.plan.options["max_pending"] is None:
                raise
            return None
        if future.job is job:
            functions.note(self.common.scene.journal, "accepted", job.job_id)
            self.futures.append(future)
        elif future.job.dedupe_key != job.dedupe_key or job.dedupe_key is None:
            self.common.faults.append(f"{job.job_id}: got the future of {future.job.job_id}")
        return future

    def submit(self, number: int) -> None:
        job = self.job(self.plan.jobs[number])
        if self.accept(job) is not None:
            self.submitted[number] = job

    def burst(self, count: int, pool: PoolName, tools: list[str | None], by_map: bool) -> None:
        assert self.executor is not None
        if by_map:
            with contextlib.suppress(ExecutorClosedError):
                for result in self.executor.map(
                    "math:sqrt", range(count), tool_name=tools[0], pool=pool, retry_delay=0.01
                ):
                    self._check_result(result, lambda value: value >= 0)
            return
        for n in range(count):
            self.accept(
                Job(function="math:sqrt", args=(n,), tool_name=tools[n % len(tools)], pool=pool, retry_delay=0.01)
            )

    def map_some(self, count: int, pool: PoolName, ordered: bool, take: int) -> None:
        assert self.executor is not None
        names = [self._name("map") for _ in range(count)]
        function: Any = functions.answer_on_loop if pool == "coroutine" else functions.answer
        journals = [self.common.scene.journal] * count
        results = self.executor.map(function, journals, names, pool=pool, ordered=ordered, retry_delay=0.01)
        with contextlib.suppress(ExecutorClosedError), contextlib.closing(results):  # type: ignore[type-var]
            for result in itertools.islice(results, take):
                self._check_result(
                    result, lambda value: str(value).startswith("value of") or self.plan.hooks is not None
                )

    def _check_result(self, result: Any, is_right: Callable[[Any], bool]) -> None:
        if result.error is None and self.plan.hooks != "own result" and not is_right(result.value):
            self.common.faults.append(f"{result.job_id}: map gave {result.value!r:.80}")
        unexpected = result.error is not None and not self._may_be_cancelled(result.job_id) and self.plan.hooks is None
        if unexpected and not self.plan.observers:
            self.common.faults.append(f"{result.job_id}: map gave {result.error!r}")

    def _may_be_cancelled(self, job_id: str) -> bool:
        return self.all_may_cancel or job_id in self.may_cancel

    def as_executor(self, count: int, pool: PoolName, cancels: bool) -> None:
        assert self.executor is not None
        function: Any = functions.answer_on_loop if pool == "coroutine" else functions.answer
        with contextlib.suppress(ExecutorClosedError):
            standard = self.executor.as_executor(pool=pool)
            futures = [standard.submit(function, self.common.scene.journal, self._name("call")) for _ in range(count)]
            self.may_cancel.update(future.job.job_id for future in futures if cancels)
            self.futures += futures
            standard.shutdown(wait=True, cancel_futures=cancels)

    def cancel(self, number: int) -> None:
        if self.executor is not None and (job := self.submitted.get(number)) is not None:
            self.may_cancel.add(job.job_id)
            self.executor.cancel(job.job_id)

    def cancel_future(self, number: int) -> None:
        for future in [each for each in self.futures if each.job is self.submitted.get(number)]:
            self.may_cancel.add(future.job.job_id)
            future.cancel()

    def request_cancel(self, number: int) -> None:
        if self.common.scene.durable and (job := self.submitted.get(number)) is not None:
            self.may_cancel.add(job.job_id)
            with self.common.scene.opened() as store:
                store.request_cancel(job.job_id)

    def resubmit(self, number: int) -> None:
        """Submit a job again that is live or has ended: it is refused, and stays as it is."""
        if self.executor is None or (job := self.submitted.get(number)) is None:
            return
        try:
            future = self.executor.submit(job)
        except (InvalidJobError, ExecutorClosedError):
            return
        if job.dedupe_key is None:
            self.common.faults.append(f"{job.job_id}: submitted twice, and got the future of {future.job.job_id}")

    def copy(self, number: int) -> None:
        """Submit a copy with the same id: refused while the first is live, else another job in its place."""
        if (job := self.submitted.get(number)) is None:
            return
        copied = job.model_copy()
        try:
            future = self.accept(copied)
        except InvalidJobError:
            return
        if future is not None and future.job is copied:
            self.submitted[number] = copied

    def wait(self, number: int) -> None:
        for future in [each for each in self.futures if each.job is self.submitted.get(number)]:
            future.exception()

    def callback(self, number: int, kind: str) -> None:
        for future in [each for each in self.futures if each.job is self.submitted.get(number)]:
            self.callbacks += 1
            future.add_done_callback(functools.partial(self._called_back, kind))

    def _called_back(self, kind: str, future: Future[Any]) -> None:
        self.called += 1
        if not future.done():
            self.common.faults.append("a callback came before its future was done")
        match kind:
            case "raising":
                raise OnPurposeError("a callback, on purpose")
            case "cancelling":
                self._cancel_any(set())
            case "submitting":
                self.add_job("callback")
            case "slow":
                time.sleep(0.05)

    def add_job(self, word: str, timeout: float | None = None) -> Any:
        """Submit one more job; return its future, or None where it is refused."""
        fields = {"pool": "thread", "retry_delay": 0.01}
        return self.accept(self.job(JobPlan(name=self._name(word), kind="answer", args=(), fields=fields)), timeout)

    def add_child(self) -> Any:
        """Submit one more job for one that runs.

        That lends its slot while it waits for a place, but keeps its resources and its start of a tool: others that
        need them may hold all places until it ends, so it does not wait for long then.
        """
        keeps = any({"resources", "tool_name"} & plan.fields.keys() for plan in self.plan.jobs)
        return self.add_job("child", timeout=0.5 if keeps else None)

    def flush(self) -> None:
        assert self.executor is not None
        accepted = [future.job.job_id for future in self.futures]
        if accepted and self.executor.flush(60.0) and not self.executor.is_shutting_down:
            functions.note(self.common.scene.journal, "flushed", *accepted)

    def look(self) -> None:
        assert self.executor is not None
        self.executor.stats()
        self.executor.running()
        self.executor.jobs()
        self.executor.quarantined()
        if (store := self.executor.store) is not None and not self.executor.is_shutting_down:
            store.counts()
            store.find(limit=5)

    def open_and_close(self) -> None:
        if self.common.scene.url is not None:
            with self.common.scene.opened() as store:
                store.find(limit=3)

    def resize(self, number: int) -> None:
        assert self.executor is not None
        self.executor.max_workers = number

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def change_observers(self) -> None:
        assert self.executor is not None
        observer = functools.partial(self._be_quiet, set())
        self.executor.add_observer(observer)
        self.executor.remove_observer(observer)

    def release(self) -> None:
        assert self.executor is not None
        for job in self.executor.quarantined():
            with contextlib.suppress(*self._refusals):
                self.executor.release(job.job_id)

    def drop_garbage(self) -> None:
        gc.collect()

    def bother(self) -> None:
        """Submit what must be refused."""
        assert self.executor is not None
        refused = [Job(function=functions.answer, args=("", "x"), resources={"license": 99.0})]
        if self.plan.hooks is None:  # Hooks may call the function with other arguments.
            refused.append(Job(function=functions.answer, pool="thread"))
        for job in refused:
            with contextlib.suppress(InvalidJobError, ExecutorClosedError, QueueFullError):
                self.executor.submit(job)
                self.common.faults.append(f"accepted {job.args} with {job.resources}")

    def pause_tool(self, tool: str, seconds: float) -> None:
        """Let no executor of the store start jobs of a tool for a moment."""
        if self.common.scene.durable:
            with self.common.scene.opened() as store:
                store.pause_tool(tool, "stress")
                time.sleep(seconds)
                store.pause_tool(tool, None)

    def limit_tool(self, tool: str, seconds: float) -> None:
        """Limit a tool in the store for a moment."""
        if self.common.scene.durable:
            with self.common.scene.opened() as store:
                store.limit_tool(tool, ToolLimit(max_concurrent=1), "stress")
                time.sleep(seconds)
                store.limit_tool(tool, None, "stress")

    def await_all(self, cancels: bool) -> None:
        """Await all futures on an event loop; `cancels`: give up after a moment, which cancels the jobs."""
        futures = list(self.futures)
        if cancels:
            self.may_cancel.update(future.job.job_id for future in futures)
        asyncio.run(self._await(futures, 0.02 if cancels else None))

    async def _await(self, futures: list[Any], seconds: float | None) -> None:
        async def outcome(future: Any) -> Any:
            return await future

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*map(outcome, futures), return_exceptions=True)

    def recover(self) -> None:
        assert self.executor is not None
        with contextlib.suppress(ExecutorClosedError, *self._refusals):
            self.executor.recover()

    def fork_child(self) -> None:
        """Fork a process, in which the executor takes no job, and which ends at once."""
        executor = self.executor
        assert executor is not None
        job = Job(function="math:sqrt", args=(1,), pool="thread")
        if (pid := os.fork()) == 0:
            try:
                executor.submit(job)
            except ExecutorClosedError:
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            self.common.faults.append("an executor took a job in a forked process")

    def shut_down_early(self) -> None:
        """Shut the executor down beside the steps that follow."""
        assert self.executor is not None
        self.executor.shutdown(wait=False)

    def die(self, how: str) -> None:
        functions.note(self.common.scene.journal, "dies", self.common.name, how)
        match how:
            case "os._exit":
                os._exit(9)
            case "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            case "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            case "SIGINT":
                os.kill(os.getpid(), signal.SIGINT)  # KeyboardInterrupt on the main thread, where that is this one.
            case "sys.exit":
                sys.exit(5)
            case "exception":
                raise OnPurposeError("a program")

    # --- observers: on the supervisor's thread ---

    def _be_quiet(self, seen: set[str], transition: Transition) -> None: ...

    def _be_slow(self, seen: set[str], transition: Transition) -> None:
        time.sleep(0.002)

    def _be_raising(self, seen: set[str], transition: Transition) -> None:
        if zlib.crc32(transition.job.job_id.encode()) % 3 == 0:
            raise OnPurposeError("an observer, on purpose")

    def _be_cancelling(self, seen: set[str], transition: Transition) -> None:
        if transition.status is JobStatus.COMPLETED and len(seen) < 5:
            seen.add(transition.job.job_id)
            self._cancel_any(seen)

    def _cancel_any(self, seen: set[str]) -> None:
        executor = self.executor
        for job in executor.jobs() if executor is not None else ():
            if job.job_id not in seen:
                self.may_cancel.add(job.job_id)
                assert executor is not None
                executor.cancel(job.job_id)
                return

    def _be_submitting(self, seen: set[str], transition: Transition) -> None:
        if transition.status in TERMINAL and len(seen) < 5 and transition.job.job_id not in seen:
            seen.add(transition.job.job_id)
            self.add_job("observer")

    def _be_waiting(self, seen: set[str], transition: Transition) -> None:
        """Wait for another job, which is refused on this thread."""
        for future in [] if seen else [each for each in self.futures if not each.done()]:
            seen.add(future.job.job_id)
            try:
                future.result()
            except Exception as error:
                seen.add(repr(error))

    def _be_closing(self, seen: set[str], transition: Transition) -> None:
        seen.add(transition.job.job_id)
        if self.executor is not None and len(seen) == 5:
            self.executor.shutdown()

    # --- at the end ---

    def check(self) -> Iterator[str]:
        """Yield a line for each fault, once nothing of the executor runs any more."""
        yield from self.watch.faults
        plans = {plan.name: plan for plan in self.plan.jobs}
        for future in self.futures:
            job = future.job
            if not future.done():
                yield f"{job.job_id}: its future is not done, it is {job.status}"
            elif job.status not in TERMINAL:
                yield f"{job.job_id}: its future is done, and it is {job.status}"
            elif not self.watch.ended(job):
                yield f"{job.job_id}: no observer saw its end"
            elif (plan := plans.get(job.job_id)) is not None:
                yield from self._check_outcome(plan, job, future)
        if self.called != self.callbacks:
            yield f"{self.called} of {self.callbacks} callbacks were called"
        if self.executor is not None:
            yield from self._check_executor(self.executor)

    def _check_executor(self, executor: JobExecutor) -> Iterator[str]:
        stats = executor.stats()
        if stats.jobs_pending or stats.jobs_running or stats.jobs_retrying or stats.workers_busy:
            yield f"after all jobs: {stats}"
        if executor.jobs() or executor.running():
            yield f"after all jobs, it holds {executor.jobs()}"
        if not executor.is_closed:
            yield "the executor is not closed"

    def _check_outcome(self, plan: JobPlan, job: Job, future: Any) -> Iterator[str]:
        error = future.exception()
        outcome = "completed" if job.status is JobStatus.COMPLETED else f"{job.status}:{job.error_code}"
        allowed = outcomes(plan, self.plan, cancelled=self._may_be_cancelled(job.job_id))
        if outcome not in allowed:
            yield f"{job.job_id} ({plan.kind}): {outcome} ({job.error_message}), and not one of {sorted(allowed)}"
        if (error is None) is not (job.status is JobStatus.COMPLETED):
            yield f"{job.job_id}: {job.status} with {error!r}"
        if job.status is JobStatus.CANCELLED and not isinstance(error, JobCancelledError):
            yield f"{job.job_id}: cancelled with {error!r}"
        right = error is not None or self.plan.hooks == "own result" or plan.kind == "return_unpicklable"
        if not right and not str(future.result()).startswith(functions.value_of(plan.name)):
            yield f"{job.job_id}: returned {future.result()!r:.80}"

    def finals(self) -> list[dict[str, Any]]:
        """Return how each job ended that this executor has run."""
        requeues = self.plan.options["requeue_on_shutdown"] or self.plan.settings["lease"] is not None
        return self.watch.finals(requeues=requeues)

    def check_memory(self) -> Iterator[str]:
        """Compare the rows of a store in memory with the jobs."""
        if self.memory is None:
            return
        rows = {record.job_id: record for record in self.memory.find(limit=None).records}
        last = {job.job_id: job for job in self.watch.jobs}
        for job_id, job in last.items():
            row = rows.get(job_id)
            if row is None or row.status is not job.status or row.attempt != job.attempt:
                yield f"{job_id}: {job.status} after {job.attempt} attempts, and its row is {row}"
