"""What a function sees of Prefect in each pool, and what it says reaches the server against its task run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any

import prefect.runtime
import pytest
from prefect import flow, get_run_logger, tags
from prefect.client.schemas.objects import TaskRun
from prefect.context import TagsContext

from executor_adapter import JobExecutor, current_job
from executor_adapter.prefect import PRELOAD, JobTask, job_task, wait_until_recorded
from executor_adapter.prefect.child import task_run_payload
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


def test_the_payload_is_small_and_entering_it_is_quick() -> None:
    task = job_task(say_all, log_prints=False)
    task_run = TaskRun(task_key="say_all", dynamic_key="1", name="say_all-1", tags=["a"])
    parameters = {"word": "hello", "frame": bytearray(10_000_000), "text": "x" * 5000}
    payload = task_run_payload(task, task_run, parameters)
    assert len(payload) < 2048
    assert json.loads(payload)["parameters"] == {"word": "hello"}
    # In a process of its own: the scope leaves logging to the worker.
    measure = (
        "import sys, timeit, executor_adapter.prefect.child as child\n"
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
