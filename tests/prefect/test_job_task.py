"""A job task is called, submitted, mapped, cached and rolled back like a Prefect task."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import allow_failure, flow, get_run_logger, tags, task, unmapped
from prefect.cache_policies import INPUTS, CacheKeyFnPolicy
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause, UnfinishedRun
from prefect.futures import as_completed
from prefect.locking.filesystem import FileSystemLockManager
from prefect.runtime import flow_run
from prefect.states import Suspended
from prefect.task_engine import run_task_sync
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.transactions import IsolationLevel, Transaction, transaction
from prefect.utilities.visualization import TaskVizTracker, VisualizationUnsupportedError

from executor_adapter import JobExecutor, current_job
from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.prefect import JobTaskRunner, job_task
from executor_adapter.prefect.engine.engine import raise_if_suspended
from tests.prefect.conftest import Api, own_id
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


@job_task(retry_attempts=0)
def double(x: int) -> int:
    """Return twice `x`."""
    return 2 * x


@job_task(retry_attempts=0)
async def double_async(x: int) -> int:
    """Return twice `x`, from a coroutine."""
    await asyncio.sleep(0)
    return 2 * x


@job_task(retry_attempts=0)
def fail(message: str = "no") -> None:
    """Raise a LookupError."""
    raise LookupError(message)


@task
def plain(x: int) -> int:
    """Return `x` plus one, as a plain task."""
    return x + 1


def sleep(seconds: float) -> None:
    """Sleep, as a function of this module."""
    time.sleep(seconds)


def suspend() -> None:
    """Mark the flow run around the caller as suspended, as Prefect's observer of the flow run does."""
    context = FlowRunContext.get()
    assert context is not None
    context.flow_run_suspension_request.mark_requested(Suspended())


suspends = pytest.mark.skipif(
    "flow_run_suspension_request" not in FlowRunContext.model_fields, reason="this Prefect asks no flow run to suspend"
)


@suspends
@pytest.mark.parametrize("pool", ["thread", pytest.param("process", marks=pytest.mark.nightly)])
def test_a_suspended_flow_run_does_not_go_on_past_a_called_job_task(pool: str) -> None:
    """After a call of a job task the flow stops if its flow run was suspended meanwhile."""
    nap = job_task(sleep, pool=pool, retry_attempts=0)
    passed: list[str] = []

    @flow
    def run() -> None:
        threading.Timer(0.2, contextvars.copy_context().run, (suspend,)).start()
        nap(1.0)
        passed.append("the call")

    with pytest.raises(Pause):
        run()
    assert passed == []


@suspends
def test_a_suspended_flow_run_does_not_go_on_past_an_awaited_job_task() -> None:
    """After an awaited call of a job task the flow stops if its flow run was suspended meanwhile."""
    passed: list[str] = []

    @job_task(retry_attempts=0)
    async def nap() -> None:
        await asyncio.sleep(1.0)

    @flow
    async def run() -> None:
        threading.Timer(0.2, contextvars.copy_context().run, (suspend,)).start()
        await nap()
        passed.append("the call")

    with pytest.raises(Pause):
        asyncio.run(run())
    assert passed == []


@suspends
@pytest.mark.parametrize("runner", [JobTaskRunner(max_workers=1), ThreadPoolTaskRunner(max_workers=1)], ids=type)
def test_a_suspended_flow_run_leaves_no_task_run_unfinished(api: Api, runner: Any) -> None:
    """The job that runs is waited for, as in Prefect; those that wait, for a slot or for an engine, are Cancelled."""
    began, goes_on = threading.Event(), threading.Event()
    seen: list[str] = []

    @job_task(pool="thread", retry_attempts=0)
    def hold(_: int) -> None:
        began.set()
        goes_on.wait(PATIENCE)

    def states() -> Counter[str]:
        return Counter(run["state_name"] for run in api.task_runs(seen[0]))

    def release() -> None:
        try:
            wait_for(lambda: states()["Cancelled"] == 11)
        finally:
            goes_on.set()

    @flow(task_runner=runner)
    def run() -> None:
        seen.append(str(flow_run.id))
        hold.map(range(12))
        began.wait(PATIENCE)
        suspend()
        threading.Thread(target=release).start()
        raise_if_suspended()

    with JobExecutor(1), pytest.raises(Pause):
        run()
    wait_for(lambda: states() == {"Completed": 1, "Cancelled": 11})


def test_a_job_task_is_called_submitted_and_mapped_in_a_flow() -> None:
    """A job task gives its value or its State, called, submitted and mapped."""

    @flow
    def run() -> tuple[Any, ...]:
        return double(1), double.submit(2).result(), double.map([3, 4]).result(), double(x=5, return_state=True)

    called, submitted, mapped, state = run()
    assert (called, submitted, mapped) == (2, 4, [6, 8])
    assert isinstance(state, State)


def test_async_functions_run_in_sync_and_async_flows() -> None:
    """An async job task gives its value in a sync flow and in an async one."""

    @flow
    def run() -> Any:
        return double_async.submit(1).result()

    @flow
    async def run_async() -> tuple[Any, ...]:
        mapped = double.map([1, 2])
        return await double_async(3), double_async.submit(4).result(), double(5), mapped.result()

    assert run() == 2
    assert asyncio.run(run_async()) == (6, 8, 10, [2, 4])


def test_a_job_task_runs_outside_a_flow_like_a_task(api: Api) -> None:
    """Outside a flow a job task can be called and is recorded, but not submitted."""
    state = double(21, return_state=True)
    task_run_id = state.state_details.task_run_id
    assert state.result() == 42
    assert double(1) == 2
    assert asyncio.run(double_async(2)) == 4
    with pytest.raises(LookupError, match="no"):
        fail()
    wait_for(lambda: api.state_names(task_run_id) == ["Pending", "Running", "Completed"])
    with pytest.raises(RuntimeError, match="needs a flow run"):
        double.submit(1)


def test_a_visualized_flow_cannot_map_a_job_task_either() -> None:
    """In `flow.visualize()`, which has no flow run, `map` raises what that of a plain task raises."""
    with TaskVizTracker(), pytest.raises(VisualizationUnsupportedError, match="not currently supported"):
        double.map([1])


def test_a_failure_raises_the_functions_own_exception_and_fails_the_flow() -> None:
    """A call raises the exception of the function, which then fails the flow."""

    @flow
    def run() -> None:
        assert fail.submit().state is not None
        fail("called directly")

    with pytest.raises(LookupError, match="called directly"):
        run()


def test_futures_of_tasks_and_job_tasks_are_each_others_inputs() -> None:
    """Futures of plain tasks and of job tasks are resolved in arguments of the other kind."""

    @flow
    def run() -> list[Any]:
        first = plain.submit(1)
        second = double.submit(first)
        third = plain.submit(second)
        fourth = double.submit(third, wait_for=[second])
        done = {future.result() for future in as_completed([first, second, third, fourth])}
        return [fourth.result(), done]

    assert run() == [10, {2, 4, 5, 10}]


def test_a_job_task_after_a_failed_task_is_not_run(api: Api) -> None:
    """A job task that waits for a failed one ends as NotReady, without Running."""

    @flow
    def run() -> None:
        futures.append(double.submit(1, wait_for=[fail.submit()]))
        futures[0].wait()

    futures: list[Any] = []
    run()
    assert futures[0].state.name == "NotReady"
    with pytest.raises(UnfinishedRun):
        futures[0].result()
    assert api.state_names(futures[0].task_run_id) == ["Pending", "NotReady"]


def test_map_accepts_unmapped_and_allow_failure() -> None:
    """`map` passes unmapped values whole, and failures where they are allowed."""

    @job_task(retry_attempts=0)
    def add(x: int, factors: list[int], other: Any) -> int:
        return x * sum(factors) + (0 if isinstance(other, Exception) else other)

    @flow
    def run() -> Any:
        return add.map([1, 2], unmapped([10, 20]), allow_failure(fail.submit())).result()

    assert run() == [30, 60]


def test_with_options_returns_a_job_task_with_changed_limits() -> None:
    """`with_options` changes the max_runtime of the copy and leaves the original as it was."""
    seen: list[float | None] = []

    @job_task(max_runtime=5)
    def look() -> None:
        seen.append(current_job().remaining)

    @flow
    def run() -> None:
        look()
        look.with_options(max_runtime=50, name="longer")()

    run()
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[0] <= 5 < seen[1] <= 50


@pytest.mark.parametrize("is_async", [False, True])
def test_leaving_an_executor_waits_for_the_job_tasks_that_were_submitted(is_async: bool) -> None:
    """A job task that still waits for another one when its executor is left runs to its end, and so does that one."""
    go_on = threading.Event()

    @job_task(pool="thread")
    def hold() -> int:
        go_on.wait(PATIENCE)
        return 1

    def submit() -> Any:
        last = double.submit(double.submit(hold.submit()))
        go_on.set()
        return last

    @flow
    def run() -> Any:
        with JobExecutor(1):
            last = submit()
        return last.state.name

    @flow
    async def run_async() -> Any:
        async with JobExecutor(1):
            last = submit()
        return last.state.name

    assert (asyncio.run(run_async()) if is_async else run()) == "Completed"


@pytest.mark.parametrize(
    "waits_for", [{"pool": "coroutine"}, {"pool": "thread", "resources": {"license": 1}}], ids=["pool", "resources"]
)
def test_tasks_that_wait_for_others_hold_up_none_that_can_start(waits_for: dict[str, Any]) -> None:
    """Many tasks that wait for a busy pool, or for a resource, hold up no task of a pool with free slots."""
    release = threading.Event()

    @job_task(**waits_for)
    async def block() -> None:
        await asyncio.to_thread(release.wait, PATIENCE)

    @flow
    def run() -> None:
        with JobExecutor({"coroutine": 1, "thread": 8}, capacity={"license": 1}):
            blocked = [block.submit() for _ in range(8)]
            quick = job_task(sleep, pool="thread").submit(0)
            try:
                wait_for(lambda: quick.state.is_completed())
            finally:
                release.set()
            for future in blocked:
                future.wait()

    run()


def test_a_cached_result_needs_no_attempt(api: Api) -> None:
    """A second call with the same inputs is Cached and does not run the function."""
    calls: list[int] = []

    @job_task(cache_policy=INPUTS, persist_result=True, retry_attempts=0)
    def expensive(x: int) -> int:
        calls.append(x)
        return x * 10

    @flow
    def run() -> tuple[Any, ...]:
        value = time.time_ns()
        first, second = expensive(value, return_state=True), expensive.submit(value)
        second.wait()
        return first, second.state, value

    first, second, value = run()
    assert calls == [value]
    assert second.result() == first.result() == value * 10
    assert api.state_names(second.state_details.task_run_id) == ["Pending", "Running", "Cached"]


def test_a_failure_rolls_the_transaction_back(api: Api) -> None:
    """A failure within a transaction calls the rollback hook of an earlier job task."""
    rolled_back: list[str] = []

    @job_task(retry_attempts=0)
    def write() -> str:
        return "written"

    @write.on_rollback
    def undo(_: Transaction) -> None:
        rolled_back.append("write")

    @flow
    def run() -> None:
        with transaction():
            states.append(write(return_state=True))
            fail()

    states: list[Any] = []
    with pytest.raises(LookupError):
        run()
    assert rolled_back == ["write"]


def test_a_rollback_leaves_the_tasks_of_a_subflow_with_it(api: Api) -> None:
    """A task run of a subflow that the flow around it rolls back stays the subflow's."""
    ids: list[UUID] = []

    @job_task(pool="thread", retry_attempts=0)
    def write() -> str:
        return "written"

    @flow
    def inner() -> None:
        ids.append(own_id())
        write()

    @flow
    def outer() -> None:
        with transaction():
            inner()
            raise LookupError("there is none")

    with pytest.raises(LookupError):
        outer()
    wait_for(lambda: [run["state_name"] for run in api.task_runs(ids[0])] == ["RolledBack"])


def test_a_retry_that_is_cancelled_beside_a_cached_result_keeps_no_lock(executor: JobExecutor, scratch: Path) -> None:
    """A job that is cancelled while its retry waits ends with the result that another has cached, and keeps no lock."""
    key, fails, locks = "cached by another", iter([True]), FileSystemLockManager(scratch)
    policy = CacheKeyFnPolicy(cache_key_fn=lambda *_: key)
    locking = policy.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=locks)

    @job_task(cache_policy=locking, persist_result=True, retry_attempts=1, retry_delay=600, pool="thread")
    def fail_once() -> str:
        if next(fails, False):
            raise ConnectionError
        return "value"

    @flow
    def run() -> str | None:
        retried = fail_once.submit()
        wait_for(lambda: retried.state.name == "AwaitingRetry")
        fail_once()
        executor.cancel(str(retried.task_run_id))
        retried.wait()
        return retried.state.name

    ended = run()
    assert not locks.is_locked(key)
    assert ended == "Cached"


def test_a_crash_is_not_cached(scratch: Path) -> None:
    """A call after a crash runs the function again instead of returning the crash."""

    @job_task(cache_policy=INPUTS, persist_result=True, retry_attempts=0)
    def crash(path: str) -> str:
        seen = Path(path)
        if not seen.exists():
            seen.touch()
            raise WorkerCrashedError("the worker is gone", exit_signal=9)
        return "second time"

    rolled_back: list[str] = []
    crash.on_rollback(lambda _: rolled_back.append("crash"))

    @flow
    def run() -> Any:
        with pytest.raises(WorkerCrashedError):
            crash(str(scratch / "seen"))
        return crash(str(scratch / "seen"))

    assert run() == "second time"


def test_hooks_are_called_and_on_failure_for_crashes_too() -> None:
    """Running, completion and failure hooks are called; on_failure is called for crashes too."""
    called: list[tuple[str, str | None]] = []

    def record_as(name: str) -> Any:
        return lambda task, task_run, state: called.append((name, state.name))

    async def record_async(task: Any, task_run: Any, state: State[Any]) -> None:
        called.append(("async", state.name))

    hooks: dict[str, Any] = {"on_failure": [record_as("failure"), record_async], "on_running": [record_as("running")]}

    @job_task(retry_attempts=1, retry_delay=0, on_completion=[record_as("completion")], **hooks)
    def second_time() -> None:
        if current_job().attempt == 1:
            raise ConnectionError

    @job_task(retry_attempts=0, **hooks)
    def crash() -> None:
        raise WorkerCrashedError("gone")

    @flow
    def run() -> None:
        second_time()
        crash.submit().wait()

    run()
    assert called == [
        ("running", "Running"), ("running", "Retrying"), ("completion", "Completed"),
        ("running", "Running"), ("failure", "Crashed"), ("async", "Crashed"),
    ]  # fmt: skip


def test_retry_condition_fn_can_forbid_a_retry(api: Api) -> None:
    """A job task whose retry_condition_fn returns False fails after one attempt."""

    @job_task(retry_attempts=3, retry_delay=0, retry_condition_fn=lambda task, run, state: False)
    def down() -> None:
        raise ConnectionError

    @flow
    def run() -> Any:
        future = down.submit()
        future.wait()
        return future.task_run_id

    assert api.state_names(run()) == ["Pending", "Running", "Failed"]


def test_names_tags_and_metadata_reach_the_server_and_the_job(api: Api) -> None:
    """The run name and tags reach the server; tool_name and metadata reach the job."""

    @job_task(task_run_name="double-{x}", tags=["own"], metadata={"stage": "test"}, tool_name="tool-{x}")
    def look(x: int) -> Any:
        job = current_job()
        return job.job_id, job.tool_name, job.metadata

    @flow
    def run() -> Any:
        with tags("around"):
            future = look.submit(7)
        result = future.result()
        return future.task_run_id, result

    task_run_id, result = run()
    assert result == (str(task_run_id), "tool-7", {"stage": "test"})
    task_run = api.task_run(task_run_id)
    assert (task_run["name"], sorted(task_run["tags"])) == ("double-7", ["around", "own"])


def test_a_job_in_a_thread_can_submit_others() -> None:
    """The function of a job in a thread can submit job tasks and plain tasks."""

    @job_task(pool="thread")
    def parent(x: int) -> Any:
        get_run_logger().info("submitting")
        return [double.submit(x).result(), plain.submit(x).result()]

    @flow
    def run() -> Any:
        return parent.submit(5).result()

    assert run() == [10, 6]


def test_a_flow_in_a_flow_has_its_own_runner() -> None:
    """Job tasks of a subflow and of its parent run before, in and after the subflow."""

    @flow
    def inner(x: int) -> Any:
        return double.submit(x).result()

    @flow
    def outer() -> Any:
        before = double.submit(1)
        return inner(2), before.result(), double.submit(3).result()

    assert outer() == (4, 2, 6)


def test_calls_with_the_same_dedupe_key_run_once_and_end_alike() -> None:
    """Task runs with the same dedupe_key share one attempt, and its value or error."""
    calls: list[int] = []

    @job_task(pool="thread", dedupe_key="once-{x}", retry_attempts=0)
    def once(x: int) -> Any:
        calls.append(x)
        time.sleep(0.3)
        if x < 0:
            raise LookupError("negative")
        return [x]

    @flow
    def run() -> Any:
        good, bad = [once.submit(1) for _ in range(3)], [once.submit(-1) for _ in range(2)]
        ends = [future.result(raise_on_failure=False) for future in [*good, *bad]]
        return ends, once(1)

    (*values, first, second), again = run()
    assert values == [[1]] * 3
    assert isinstance(first, LookupError)
    assert isinstance(second, LookupError)
    assert again == [1]
    assert sorted(calls) == [-1, 1, 1]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_engine_of_prefects_asks_the_retry_condition(is_async: bool) -> None:
    """In an engine of Prefect's, which task workers use, a condition that refuses a retry counts, sync or async."""
    attempts: list[int] = []

    def once(task: object, task_run: Any, state: object) -> bool:
        return bool(task_run.run_count < 2)

    async def once_async(task: object, task_run: Any, state: object) -> bool:
        return once(task, task_run, state)

    @job_task(pool="thread", retries=3, retry_condition_fn=once_async if is_async else once)
    def fail() -> None:
        attempts.append(1)
        raise ConnectionError("refused")

    state: Any = run_task_sync(task=fail, parameters={}, return_type="state")
    assert (len(attempts), state.name) == (2, "Failed")
