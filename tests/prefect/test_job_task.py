"""A job task is a Prefect task: called, submitted, mapped, cached and rolled back as one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import allow_failure, flow, get_run_logger, tags, task, unmapped
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State
from prefect.exceptions import UnfinishedRun
from prefect.futures import as_completed
from prefect.transactions import Transaction, transaction

from executor_adapter import current_job
from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.prefect import job_task, wait_until_recorded
from tests.prefect.conftest import Api, Wait

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


@job_task(retry_attempts=0)
def double(x: int) -> int:
    return 2 * x


@job_task(retry_attempts=0)
async def double_async(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


@job_task(retry_attempts=0)
def fail(message: str = "no") -> None:
    raise LookupError(message)


@task
def plain(x: int) -> int:
    return x + 1


def test_it_is_called_submitted_and_mapped_in_a_flow() -> None:
    @flow
    def run() -> tuple[Any, ...]:
        return double(1), double.submit(2).result(), double.map([3, 4]).result(), double(x=5, return_state=True)

    called, submitted, mapped, state = run()
    assert (called, submitted, mapped) == (2, 4, [6, 8])
    assert isinstance(state, State)


def test_async_functions_run_in_sync_and_async_flows() -> None:
    @flow
    def run() -> Any:
        return double_async.submit(1).result()

    @flow
    async def run_async() -> tuple[Any, ...]:
        mapped = double.map([1, 2])
        return await double_async(3), double_async.submit(4).result(), double(5), mapped.result()

    assert run() == 2
    assert asyncio.run(run_async()) == (6, 8, 10, [2, 4])


def test_outside_a_flow_it_runs_as_a_task_does(api: Api, wait_for: Wait) -> None:
    state = double(21, return_state=True)
    task_run_id = state.state_details.task_run_id
    assert state.result() == 42
    assert double(1) == 2
    assert asyncio.run(double_async(2)) == 4
    with pytest.raises(LookupError, match="no"):
        fail()
    wait_for(lambda: api.state_names(task_run_id) == ["Pending", "Running", "Completed"], 60)
    with pytest.raises(RuntimeError, match="outside of a flow"):
        double.submit(1)


def test_a_failure_raises_the_functions_own_exception_and_fails_the_flow() -> None:
    @flow
    def run() -> None:
        assert fail.submit().state is not None
        fail("called directly")

    with pytest.raises(LookupError, match="called directly"):
        run()


def test_futures_of_tasks_and_job_tasks_are_each_others_inputs() -> None:
    @flow
    def run() -> list[Any]:
        first = plain.submit(1)
        second = double.submit(first)
        third = plain.submit(second)
        fourth = double.submit(third, wait_for=[second])
        done = {future.result() for future in as_completed([first, second, third, fourth])}
        return [fourth.result(), done]

    assert run() == [10, {2, 4, 5, 10}]


def test_what_waits_for_a_failed_task_is_not_run(api: Api) -> None:
    @flow
    def run() -> None:
        futures.append(double.submit(1, wait_for=[fail.submit()]))
        futures[0].wait()
        assert wait_until_recorded().complete

    futures: list[Any] = []
    run()
    assert futures[0].state.name == "NotReady"
    with pytest.raises(UnfinishedRun):
        futures[0].result()
    assert api.state_names(futures[0].task_run_id) == ["Pending", "NotReady"]


def test_map_knows_unmapped_and_allow_failure() -> None:
    @job_task(retry_attempts=0)
    def add(x: int, factors: list[int], other: Any) -> int:
        return x * sum(factors) + (0 if isinstance(other, Exception) else other)

    @flow
    def run() -> Any:
        return add.map([1, 2], unmapped([10, 20]), allow_failure(fail.submit())).result()

    assert run() == [30, 60]


def test_with_options_is_a_job_task_with_the_other_limits() -> None:
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


def test_a_cached_result_needs_no_attempt(api: Api) -> None:
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
        wait_until_recorded()
        return first, second.state, value

    first, second, value = run()
    assert calls == [value]
    assert second.result() == first.result() == value * 10
    assert api.state_names(second.state_details.task_run_id) == ["Pending", "Running", "Cached"]


def test_a_failure_rolls_the_transaction_back(api: Api) -> None:
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


def test_a_crash_is_not_cached_and_rolls_back(scratch: Path) -> None:
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
    called: list[tuple[str, str | None]] = []

    def hook(name: str) -> Any:
        return lambda task, task_run, state: called.append((name, state.name))

    async def tell(task: Any, task_run: Any, state: State[Any]) -> None:
        called.append(("async", state.name))

    hooks: dict[str, Any] = {"on_failure": [hook("failure"), tell], "on_running": [hook("running")]}

    @job_task(retry_attempts=1, retry_delay=0, on_completion=[hook("completion")], **hooks)
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


def test_retry_condition_fn_has_a_say(api: Api) -> None:
    @job_task(retry_attempts=3, retry_delay=0, retry_condition_fn=lambda task, run, state: False)
    def down() -> None:
        raise ConnectionError

    @flow
    def run() -> Any:
        future = down.submit()
        future.wait()
        wait_until_recorded()
        return future.task_run_id

    assert api.state_names(run()) == ["Pending", "Running", "Failed"]


def test_names_tags_and_metadata_reach_the_server_and_the_job(api: Api) -> None:
    @job_task(task_run_name="double-{x}", tags=["own"], metadata={"stage": "test"}, tool_name="tool-{x}")
    def look(x: int) -> Any:
        job = current_job()
        return job.job_id, job.tool_name, job.metadata

    @flow
    def run() -> Any:
        with tags("around"):
            future = look.submit(7)
        result = future.result()
        wait_until_recorded()
        return future.task_run_id, result

    task_run_id, result = run()
    assert result == (str(task_run_id), "tool-7", {"stage": "test"})
    task_run = api.task_run(task_run_id)
    assert (task_run["name"], sorted(task_run["tags"])) == ("double-7", ["around", "own"])


def test_a_job_in_a_thread_can_submit_others() -> None:
    @job_task(pool="thread")
    def parent(x: int) -> Any:
        get_run_logger().info("submitting")
        return [double.submit(x).result(), plain.submit(x).result()]

    @flow
    def run() -> Any:
        return parent.submit(5).result()

    assert run() == [10, 6]


def test_a_flow_in_a_flow_has_its_own_runner() -> None:
    @flow
    def inner(x: int) -> Any:
        return double.submit(x).result()

    @flow
    def outer() -> Any:
        before = double.submit(1)
        return inner(2), before.result(), double.submit(3).result()

    assert outer() == (4, 2, 6)


def test_calls_with_one_dedupe_key_run_once_and_end_alike() -> None:
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
