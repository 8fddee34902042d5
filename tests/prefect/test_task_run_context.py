"""What a function sees of Prefect in each pool, and what it says reaches the server against its task run."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import subprocess
import sys
import time
from typing import Any

import prefect.runtime
import pytest
from prefect import flow, get_run_logger, tags, task
from prefect.client.schemas.objects import TaskRun
from prefect.context import TagsContext
from prefect.events import emit_event
from prefect.settings import PREFECT_TASK_DEFAULT_RETRIES, get_current_settings, temporary_settings

from executor_adapter import Job, JobExecutor, current_job
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.prefect import PRELOAD, JobTask, job_task, run_jobs, wait_until_recorded
from executor_adapter.prefect.child.task_run_context import task_run_payload
from tests.prefect.conftest import Api, Wait


def say_all(word: str) -> dict[str, Any]:
    get_run_logger().info("logged %s", word)
    print("printed", word)
    current_job().logger.warning("the job's logger says %s", word)
    return {
        "task run": prefect.runtime.task_run.id,
        "task": prefect.runtime.task_run.task_name,
        "name": prefect.runtime.task_run.name,
        "run count": prefect.runtime.task_run.run_count,
        "parameters": prefect.runtime.task_run.parameters,
        "flow run": prefect.runtime.flow_run.id,
        "flow": prefect.runtime.flow_run.flow_name,
        "tags": sorted(TagsContext.get().current_tags | set(prefect.runtime.task_run.tags)),
        "pid": os.getpid(),
    }


async def say_all_async(word: str) -> dict[str, Any]:
    return say_all(word)


@pytest.mark.parametrize("pool", ["thread", "coroutine", "process"])
def test_logger_print_and_runtime_work_in_every_pool(
    api: Api, executor: JobExecutor, wait_for: Wait, pool: str
) -> None:
    task: Any = job_task(say_all_async if pool == "coroutine" else say_all, pool=pool, log_prints=True, name="say")

    @flow(name="talk")
    def run() -> Any:
        with tags("around"):
            future = task.submit("hello")
        return future.result(), future.task_run_id

    seen, task_run_id = run()
    task_run = wait_for(lambda: api.task_run(task_run_id) if api.task_run(task_run_id).get("end_time") else None)
    assert seen | {"pid": None} == {
        "task run": str(task_run_id),
        "task": "say",
        "name": task_run["name"],
        "run count": 1,
        "parameters": {"word": "hello"},
        "flow run": task_run["flow_run_id"],
        "flow": "talk",
        "tags": ["around"],
        "pid": None,
    }
    assert (seen["pid"] != os.getpid()) == (pool == "process")
    wait_for(lambda: any("Finished in state" in message for message in api.messages(task_run_id)))
    messages = api.messages(task_run_id)
    assert messages.count("logged hello") == 1
    assert messages.count("printed hello") == 1


def write_lines(count: int) -> None:
    logging.getLogger("a.library").warning("a warning of a library")
    for number in range(count):
        print("line", number)
    sys.stderr.write("to stderr\n")
    subprocess.run(["echo", "from a program"], check=True)


def test_output_of_a_process_is_its_task_runs_log_in_order_and_whole(
    api: Api, executor: JobExecutor, wait_for: Wait
) -> None:
    task = job_task(write_lines, pool="process")

    @flow
    def run() -> Any:
        future = task.submit(300)
        future.result()
        wait_until_recorded()
        return future.task_run_id

    task_run_id = run()
    wait_for(lambda: any("Finished in state" in message for message in _all_messages(api, task_run_id)))
    messages = _all_messages(api, task_run_id)
    assert [message for message in messages if message.startswith("line ")] == [f"line {n}" for n in range(300)]
    assert {"to stderr", "from a program", "a warning of a library"} <= set(messages)


def _all_messages(api: Api, task_run_id: Any) -> list[str]:
    messages: list[str] = []
    while page := api.messages(task_run_id, offset=len(messages)):
        messages += page
    return messages


def messages_of_a_run(task: JobTask[..., Any], api: Api, wait_for: Wait) -> list[str]:
    """The log of a run of `task` that fails, once it says how it finished."""

    @flow
    def run() -> Any:
        future = task.submit()
        future.wait()
        return future.task_run_id

    task_run_id = run()
    wait_for(lambda: any("Finished in state" in message for message in api.messages(task_run_id)))
    return api.messages(task_run_id)


def crash_loudly() -> None:
    print("last words")
    sys.stdout.flush()
    os.abort()


def test_the_last_words_of_a_crash_are_in_the_log(api: Api, executor: JobExecutor, wait_for: Wait) -> None:
    task = job_task(crash_loudly, pool="process", retry_attempts=0)

    messages = messages_of_a_run(task, api, wait_for)
    assert "last words" in messages
    assert any("Fatal Python error: Aborted" in message for message in messages)


def fail_deep_inside() -> None:
    def inside() -> None:
        raise LookupError("deep")

    inside()


def test_the_remote_traceback_is_in_the_log(api: Api, executor: JobExecutor, wait_for: Wait) -> None:
    task = job_task(fail_deep_inside, pool="process", retry_attempts=0)

    messages = messages_of_a_run(task, api, wait_for)
    assert any('raise LookupError("deep")' in message for message in messages)


def test_a_job_in_a_process_cannot_submit_tasks(prefect_api: str, executor: JobExecutor) -> None:
    @job_task(pool="process", retry_attempts=0)
    def submit() -> None:
        job_task(write_lines).submit(1)

    @flow
    def run() -> None:
        submit()

    with pytest.raises(RuntimeError, match="in a worker process cannot submit tasks"):
        run()


@task
def plain_below(x: int) -> int:
    return x + 1


@task
async def plain_async_below(x: int) -> int:
    return x + 1


@job_task(pool="thread", retry_attempts=0)
def job_below(x: int) -> int:
    return x + 1


@flow
def flow_below(x: int) -> int:
    return plain_below(x)


BELOW: dict[str, Any] = {
    "plain": plain_below,
    "async": plain_async_below,
    "job": job_below,
    "flow": flow_below,
}


def call_below(kind: str) -> Any:
    called = BELOW[kind](1)
    return asyncio.run(called) if inspect.iscoroutine(called) else called


@pytest.mark.parametrize("kind", BELOW)
def test_what_a_job_in_a_process_calls_runs_there_as_a_task_or_flow_run(
    api: Api, executor: JobExecutor, wait_for: Wait, kind: str
) -> None:
    calls = job_task(call_below, pool="process", retry_attempts=0, max_runtime=60)

    @flow
    def run() -> Any:
        return calls.submit(kind).result(), prefect.runtime.flow_run.id

    value, flow_run_id = run()
    assert value == 2
    if kind == "job":  # the call returns when the server knows
        assert [each["state_name"] for each in api.task_runs(flow_run_id)] == ["Completed"] * 2
    wait_for(lambda: [each["state_name"] for each in api.task_runs(flow_run_id)] == ["Completed"] * 2)


def test_so_does_what_one_of_many_jobs_calls_in_a_thread(api: Api, executor: JobExecutor, wait_for: Wait) -> None:
    @flow
    def run() -> Any:
        (result,) = run_jobs([Job(function=call_below, args=("plain",), pool="thread")])
        return result.value, prefect.runtime.flow_run.id

    value, flow_run_id = run()
    assert value == 2
    wait_for(lambda: [each["state_name"] for each in api.task_runs(flow_run_id)] == ["Completed"] * 2)


EVENTS = 20


def emit(name: str) -> str:
    """Emit events last of all; the task run's id."""
    for number in range(EVENTS):
        emit_event(f"said.{name}", resource={"prefect.resource.id": f"said.{name}.{number}"})
    return str(prefect.runtime.task_run.id)


def emit_when_ended(name: str) -> None:
    try:
        time.sleep(60)
    finally:
        emit(name)


def check_events(api: Api, wait_for: Wait, name: str, task_run_id: str) -> None:
    """All are there, and related to the task run and its flow run."""
    wait_for(lambda: len(api.events(f"said.{name}")) == EVENTS)
    flow_run_id = api.task_run(task_run_id)["flow_run_id"]
    wanted = {f"prefect.task-run.{task_run_id}", f"prefect.flow-run.{flow_run_id}"}
    for event in api.events(f"said.{name}"):
        assert wanted <= {related["prefect.resource.id"] for related in event["related"]}


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_the_events_of_a_worker_that_goes_are_sent_and_related(api: Api, wait_for: Wait, start_method: Any) -> None:
    """What a function emits last of all arrives, though its worker is let go of at once."""
    task = job_task(emit, pool="process")
    config = Settings(executor=ExecutorSettings(start_method=start_method))

    @flow
    def run(name: str) -> str:
        with JobExecutor(1, config=config):
            task_run_id: str = task.submit(name).result()
        return task_run_id

    check_events(api, wait_for, start_method, run(start_method))


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_so_are_those_of_many_jobs(api: Api, wait_for: Wait, pool: Any) -> None:
    @flow
    def run() -> Any:
        with JobExecutor(1, config=Settings()) as executor:
            (result,) = run_jobs([Job(function=emit, args=(pool,), pool=pool)], executor=executor)
        return result.value

    check_events(api, wait_for, pool, run())


def test_a_job_that_is_ended_at_its_limit_can_still_say_so(api: Api, wait_for: Wait) -> None:
    task = job_task(emit_when_ended, pool="process", max_runtime=1.0, retry_attempts=0)

    @flow
    def run() -> str:
        with JobExecutor(1, config=Settings()):
            future = task.submit("ended")
            future.wait()
        assert future.state.name == "TimedOut"
        return str(future.task_run_id)

    check_events(api, wait_for, "ended", run())


def test_the_payload_is_small_and_entering_it_is_quick() -> None:
    task = job_task(say_all, log_prints=False)
    task_run = TaskRun(task_key="say_all", dynamic_key="1", name="say_all-1", tags=["a"])
    parameters = {"word": "hello", "frame": bytearray(10_000_000), "text": "x" * 5000}
    payload = task_run_payload(task, task_run, parameters)
    assert len(payload) < 2048
    assert json.loads(payload)["parameters"] == {"word": "hello"}
    # In a process of its own: the scope leaves logging to the worker.
    measure = (
        "import sys, timeit, executor_adapter.prefect.child.task_run_context as child\n"
        "def enter():\n    with child.task_run_scope(sys.argv[1]): pass\n"
        "enter()\nprint(min(timeit.repeat(enter, number=100, repeat=5)) / 100)"
    )
    command = [sys.executable, "-c", measure, payload]
    seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seconds < 0.002  # 0.1 ms where nothing else runs


def test_what_a_worker_needs_can_be_preloaded_without_threads() -> None:
    """A process that has threads must not be forked."""
    imports = "\n".join(f"import {name}" for name in PRELOAD)
    script = f"{imports}\nimport threading\nprint(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"


@job_task(pool="process", retry_attempts=0)
def settings_here() -> tuple[int, str | None]:
    return get_current_settings().tasks.default_retries, os.environ.get("PREFECT_TASKS_DEFAULT_RETRIES")


def test_a_worker_has_the_settings_of_each_flow_run(prefect_api: str) -> None:
    """One worker for all three: the settings of one flow run are gone in the next."""
    run = flow(lambda: settings_here.submit().result())
    with JobExecutor(1):
        before = run()
        with temporary_settings({PREFECT_TASK_DEFAULT_RETRIES: 7}):
            assert run() == (7, "7")
        assert run() == before == (0, None)
