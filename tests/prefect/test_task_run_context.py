"""Tests what a function sees of Prefect in each pool, and which of its output reaches the log of its task run."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import prefect.runtime
import pytest
from prefect import flow, get_run_logger, tags, task
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext, TagsContext, TaskRunContext, get_run_context, with_context
from prefect.events import emit_event
from prefect.filesystems import LocalFileSystem
from prefect.settings import (
    PREFECT_LOGGING_EXTRA_LOGGERS,
    PREFECT_TASK_DEFAULT_RETRIES,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Completed
from pydantic import PrivateAttr

from executor_adapter import Job, JobExecutor, current_job
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.prefect import PRELOAD, JobTask, job_task, run_jobs
from executor_adapter.prefect.child.contexts import JobRunContext
from executor_adapter.prefect.child.payload import task_run_payload
from executor_adapter.worker.context import BoundCall
from tests.prefect.conftest import Api, own_id
from tests.waiting import PATIENCE, wait_for


def use_prefect(word: str) -> dict[str, Any]:
    """Log and print by every way, and return what the function sees of Prefect."""
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


async def use_prefect_async(word: str) -> dict[str, Any]:
    """Do the same as `use_prefect`, in a coroutine."""
    return use_prefect(word)


@pytest.mark.parametrize("pool", ["thread", "coroutine", "process"])
def test_logger_print_and_runtime_work_in_every_pool(api: Api, executor: JobExecutor, pool: str) -> None:
    """The function sees its task run, with what its arguments resolved to, and flow run; its lines are logged once."""
    task: Any = job_task(
        use_prefect_async if pool == "coroutine" else use_prefect, pool=pool, log_prints=True, name="say"
    )

    @flow(name="talk")
    def run() -> Any:
        with tags("around"):
            future = task.submit(Completed(data="hello"))
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
    """Write lines by logging, print, stderr and another program."""
    logging.getLogger("a.library").warning("a warning of a library")
    for number in range(count):
        print("line", number)
    sys.stderr.write("to stderr\n")
    subprocess.run(["echo", "from a program"], check=True)


def test_the_output_of_a_process_is_logged_in_order(api: Api, executor: JobExecutor) -> None:
    """With log_prints, all output of a worker and its child programs is in the log of the task run."""
    task = job_task(write_lines, pool="process", log_prints=True)

    @flow
    def run() -> Any:
        future = task.submit(300)
        future.result()
        return future.task_run_id

    task_run_id = run()
    wait_for(lambda: any("Finished in state" in message for message in _all_messages(api, task_run_id)))
    messages = _all_messages(api, task_run_id)
    assert [message for message in messages if message.startswith("line ")] == [f"line {n}" for n in range(300)]
    assert {"to stderr", "from a program"} <= set(messages)
    assert "a warning of a library" not in messages


def warn_here() -> None:
    """Write a line in each way that Prefect does not log by itself, and log by two loggers."""
    print("printed")
    sys.stderr.write("to stderr\n")
    subprocess.run(["echo", "from a program"], check=True)
    logging.getLogger("other.library").warning("of another library")
    logging.getLogger("chosen.library").info("of a chosen library")
    get_run_logger().info("logged")


@pytest.mark.parametrize("seam", ["job_task", pytest.param("run_jobs", marks=pytest.mark.nightly)])
def test_output_and_other_loggers_are_not_sent_by_default(
    api: Api, executor: JobExecutor, capfd: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch, seam: str
) -> None:
    """As in any Prefect task, output goes to the program's own, and only chosen loggers to the task run's log."""
    monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", "chosen")
    caplog.set_level(logging.INFO, "chosen")

    @flow
    def run() -> str:
        with temporary_settings({PREFECT_LOGGING_EXTRA_LOGGERS: "chosen"}):
            if seam == "run_jobs":
                run_jobs([Job(function=warn_here, pool="process", job_id="warning"), Job(function=warn_here)])
                return next(run["id"] for run in api.task_runs(own_id()) if run["dynamic_key"] == "warning")
            future = job_task(warn_here, pool="process").submit()
            future.wait()
            return str(future.task_run_id)

    task_run_id = run()
    wait_for(lambda: "logged" in api.messages(task_run_id))
    own = set(api.messages(task_run_id)) & {"printed", "to stderr", "from a program", "of another library"}
    assert own == set()
    assert "of a chosen library" in api.messages(task_run_id)
    out, err = capfd.readouterr()
    assert {"printed", "from a program"} <= set(out.splitlines())
    assert "to stderr" in err.splitlines()
    assert ("other.library", logging.WARNING, "of another library") in caplog.record_tuples


def log_at_each_level() -> None:
    """Write a line at each level by an extra logger, and one by the run logger."""
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("levelled.library").log(level, logging.getLevelName(level))
    get_run_logger().info("logged")


def test_extra_loggers_have_in_a_worker_the_level_that_they_have_in_the_flow(
    api: Api, executor: JobExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker's extra loggers follow the level in the flow, also when the flow changes it between two tasks."""
    task = job_task(log_at_each_level, pool="process")

    @flow
    def run() -> list[Any]:
        ids = []
        with temporary_settings({PREFECT_LOGGING_EXTRA_LOGGERS: "levelled"}):
            for level in (logging.DEBUG, logging.WARNING):
                caplog.set_level(level, "levelled")
                ids.append((future := task.submit()).task_run_id)
                future.result()
        return ids

    for task_run_id, expected in zip(run(), (["DEBUG", "INFO", "WARNING"], ["WARNING"]), strict=True):
        wait_for(lambda task_run_id=task_run_id: "logged" in api.messages(task_run_id))
        assert [line for line in api.messages(task_run_id) if line.isupper()] == expected


def _all_messages(api: Api, task_run_id: Any) -> list[str]:
    messages: list[str] = []
    while page := api.messages(task_run_id, offset=len(messages)):
        messages += page
    return messages


def messages_of_a_run(task: JobTask[..., Any], api: Api) -> list[str]:
    """Run `task`, which fails, in a flow; return its whole log."""

    @flow
    def run() -> Any:
        future = task.submit()
        future.wait()
        return future.task_run_id

    task_run_id = run()
    wait_for(lambda: any("Finished in state" in message for message in api.messages(task_run_id)))
    return api.messages(task_run_id)


def crash_loudly() -> None:
    """Print a line and crash in C code."""
    print("last words")
    sys.stdout.flush()
    os.abort()


def test_the_last_output_before_a_crash_is_in_the_log(api: Api, executor: JobExecutor) -> None:
    """The last printed line and the interpreter's crash report are in the message of the failure."""
    task = job_task(crash_loudly, pool="process", retry_attempts=0)

    messages = messages_of_a_run(task, api)
    (failure,) = (message for message in messages if "Job failed: WorkerCrashedError" in message)
    *_, end = failure.partition("The end of its output:\n")  # Of two pipes, either may be read first.
    assert {"last words", "Fatal Python error: Aborted"} <= set(end.splitlines())


def fail_deep_inside() -> None:
    """Raise in a nested call."""

    def inside() -> None:
        raise LookupError("deep")

    inside()


def test_the_remote_traceback_is_in_the_log(api: Api, executor: JobExecutor) -> None:
    """The log has the line of the function that raised in the worker."""
    task = job_task(fail_deep_inside, pool="process", retry_attempts=0)

    messages = messages_of_a_run(task, api)
    assert any('raise LookupError("deep")' in message for message in messages)


def test_a_job_in_a_process_cannot_submit_tasks(prefect_api: str, executor: JobExecutor) -> None:
    """A submit in a worker process raises."""

    @job_task(pool="process", retry_attempts=0)
    def submit() -> None:
        job_task(write_lines).submit(1)

    @flow
    def run() -> None:
        submit()

    with pytest.raises(RuntimeError, match="in a worker process cannot submit tasks"):
        run()


@task
def inner_task(x: int) -> int:
    """Return `x` plus one, as a plain task."""
    return x + 1


@task
async def inner_async_task(x: int) -> int:
    """Return `x` plus one, as an async task."""
    return x + 1


@job_task(pool="thread", retry_attempts=0)
def inner_job_task(x: int) -> int:
    """Return `x` plus one, as a job task."""
    return x + 1


@flow
def inner_flow(x: int) -> int:
    """Return `x` plus one, by a task of a flow."""
    return inner_task(x)


INNER: dict[str, Any] = {
    "plain": inner_task,
    "async": inner_async_task,
    "job": inner_job_task,
    "flow": inner_flow,
}


def call_inner(kind: str) -> Any:
    """Call the inner task or flow of that kind."""
    called = INNER[kind](1)
    return asyncio.run(called) if inspect.iscoroutine(called) else called


@pytest.mark.parametrize("kind", INNER)
def test_tasks_and_flows_called_in_a_worker_run_there(api: Api, executor: JobExecutor, kind: str) -> None:
    """A task or flow that a job calls in a worker completes, and the server records it."""
    calls = job_task(call_inner, pool="process", retry_attempts=0, max_runtime=PATIENCE)

    @flow
    def run() -> Any:
        return calls.submit(kind).result(), prefect.runtime.flow_run.id

    value, flow_run_id = run()
    assert value == 2
    if kind == "job":  # The call returns once the server has recorded it.
        assert [each["state_name"] for each in api.task_runs(flow_run_id)] == ["Completed"] * 2
    wait_for(lambda: [each["state_name"] for each in api.task_runs(flow_run_id)] == ["Completed"] * 2)


def test_a_task_called_by_a_job_of_run_jobs_runs_in_its_thread(api: Api, executor: JobExecutor) -> None:
    """A task that a job of run_jobs calls completes, and the server records it."""

    @flow
    def run() -> Any:
        (result,) = run_jobs([Job(function=call_inner, args=("plain",), pool="thread")])
        return result.value, prefect.runtime.flow_run.id

    value, flow_run_id = run()
    assert value == 2
    wait_for(lambda: [each["state_name"] for each in api.task_runs(flow_run_id)] == ["Completed"] * 2)


@dataclasses.dataclass
class Window:
    """A parameter that is no plain value."""

    start: int
    days: list[int]


def describe_run(window: Window, rows: list[dict[str, Any]], *, mode: str = "fast") -> dict[str, Any]:
    """Return what the run's contexts say of it."""
    context, flow_context = get_run_context(), FlowRunContext.get()
    assert isinstance(context, TaskRunContext)
    assert flow_context is not None
    task, task_run, state = context.task, context.task_run, context.task_run.state
    assert state is not None
    other = with_context(read_other_run)()
    return {
        "parameters": prefect.runtime.task_run.parameters,
        "same objects": context.parameters["window"] is window and context.parameters["rows"] is rows,
        "calls itself": task.fn is describe_run or task.fn.__qualname__ == describe_run.__qualname__,
        "task": (task.name, task.description, task.isasync, sorted(task.tags), task.version),
        "retries": (task.retries, task.retry_delay_seconds, task.timeout_seconds),
        "policy": (task_run.empirical_policy.retries, task_run.empirical_policy.retry_delay),
        "hooks": [hook.__name__ for hook in task.on_completion_hooks],
        "state": (state.type.value, state.name, task_run.state_name, state.state_details.task_run_id == task_run.id),
        "state id": str(state.id),
        "counts": (task_run.run_count, task_run.flow_run_run_count),
        "started": context.start_time == state.timestamp,
        "persists": context.persist_result,
        "serializer": context.result_store.serializer.type,
        "flow": (flow_context.flow.name, flow_context.flow.isasync, flow_context.flow.retries),
        "flow parameters": prefect.runtime.flow_run.parameters,
        "flow state": prefect.runtime.flow_run.flow_name and flow_context.flow_run.state.name,
        "other": other,
    }


def read_other_run() -> dict[str, Any]:
    """Return what a context says that was serialized and entered anew."""
    context = get_run_context()
    assert isinstance(context, TaskRunContext)
    get_run_logger().info("logged in another context")
    return {"task run": str(context.task_run.id), "parameters": list(context.parameters), "task": context.task.name}


def note_end(*_: object) -> None:
    """Do nothing: a hook."""


def test_a_worker_has_the_whole_task_run(api: Api, executor: JobExecutor) -> None:
    """Parameters, the task's own attributes, the state, the result store and the flow run are those of the flow."""
    parameters = {"window": Window(3, [1, 2]), "rows": [{"a": 1}] * 100, "mode": "fast"}
    described = job_task(
        describe_run,
        pool="process",
        name="described",
        retries=2,
        retry_delay_seconds=[3, 4],
        timeout_seconds=60,
        tags=["own"],
        version="7",
        persist_result=True,
        on_completion=[note_end],
    )

    @flow(name="describing", retries=1, validate_parameters=False)
    def run(window: Window, lock: Any, dates: list[str]) -> Any:
        with tags("around"):
            future = described.submit(parameters["window"], parameters["rows"])
        return future.task_run_id, future.result()

    task_run_id, seen = run(Window(1, []), threading.Lock(), ["2020-01-01"])
    lock = seen["flow parameters"].pop("lock")
    assert seen["flow parameters"] == {"window": Window(1, []), "dates": ["2020-01-01"]}
    assert "was not sent to this worker process: it cannot be pickled" in repr(lock)
    with pytest.raises(AttributeError, match="flow parameter lock was not sent"):
        lock.acquire()
    (running,) = (state for state in api.states(task_run_id) if state["name"] == "Running")
    assert seen | {"flow parameters": None} == {
        "parameters": parameters,
        "same objects": True,
        "calls itself": True,
        "task": ("described", describe_run.__doc__, False, ["own"], "7"),
        "retries": (2, [3, 4], 60.0),
        "policy": (2, [3, 4]),
        "hooks": ["note_end"],
        "state": ("RUNNING", "Running", "Running", True),
        "state id": running["id"],
        "counts": (1, 1),
        "started": True,
        "persists": True,
        "serializer": "pickle",
        "flow": ("describing", False, 1),
        "flow parameters": None,
        "flow state": "Running",
        "other": {"task run": str(task_run_id), "parameters": list(parameters), "task": "described"},
    }


def result_storage_block() -> str:
    """Return the id of the saved block that stores the results of the task run, as its context says."""
    context = get_run_context()
    assert isinstance(context, TaskRunContext)
    return str(context.result_store.result_storage_block_id)


class LockedFileSystem(LocalFileSystem):
    """A block that cannot be pickled."""

    _block_type_slug = "locked-file-system"
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


def storage_path() -> str:
    """Return where the results of the task run are stored, as its context says."""
    context = get_run_context()
    assert isinstance(context, TaskRunContext)
    assert isinstance(context.result_store.result_storage, LocalFileSystem)
    return str(context.result_store.result_storage.basepath)


def test_results_in_a_worker_name_their_saved_block(api: Api, executor: JobExecutor, tmp_path: Path) -> None:
    """Results that are stored in a worker name the saved block of their flow, by which other programs load them."""
    saved = LocalFileSystem(basepath=str(tmp_path)).save("results-of-workers", overwrite=True)

    @flow(result_storage="local-file-system/results-of-workers")
    def run() -> str:
        return job_task(result_storage_block, pool="process", retry_attempts=0)()

    assert run() == str(saved)


def test_a_result_storage_that_cannot_be_pickled_is_used_in_workers(
    api: Api, executor: JobExecutor, tmp_path: Path
) -> None:
    """A block that cannot be pickled is made anew in the worker, from its fields."""

    storage = LockedFileSystem(basepath=str(tmp_path))
    storage.save("locked", overwrite=True)

    @flow(result_storage=storage)
    def run() -> str:
        return job_task(storage_path, pool="process", retry_attempts=0)()

    assert run() == str(tmp_path)


def describe_bulk(count: int, **others: Any) -> dict[str, Any]:
    """Return what the context of a job of run_jobs says, in its second attempt."""
    context = get_run_context()
    assert isinstance(context, TaskRunContext)
    if context.task_run.run_count == 1:
        raise ConnectionError
    state = context.task_run.state
    assert state is not None
    return {
        "parameters": prefect.runtime.task_run.parameters,
        "task": (
            context.task.name,
            context.task.retries,
            context.task.retry_delay_seconds,
            context.task.timeout_seconds,
        ),
        "state": (state.name, context.task_run.run_count),
        "names": (prefect.runtime.flow_run.flow_name, prefect.runtime.task_run.name),
        "with": with_context(read_other_run)()["task run"] == prefect.runtime.task_run.id,
    }


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_a_job_of_run_jobs_has_the_whole_task_run(prefect_api: str, executor: JobExecutor, pool: Any) -> None:
    """Parameters, the task and the state are true in the second attempt of a job of run_jobs."""

    @flow(name="bulk")
    def run() -> Any:
        (result,) = run_jobs(
            [
                Job(
                    job_id="described",
                    function=describe_bulk,
                    args=(3,),
                    kwargs={"rows": [{"a": 1}]},
                    pool=pool,
                    max_runtime=60,
                    retry_attempts=1,
                    retry_delay=0.01,
                )
            ]
        )
        return result.value

    assert run() == {
        "parameters": {"count": 3, "others": {"rows": [{"a": 1}]}},
        "task": ("describe_bulk", 1, 0.01, 60.0),
        "state": ("Retrying", 2),
        "names": ("bulk", "describe_bulk-described"),
        "with": True,
    }


class Unhashable:
    """A callable object that Prefect makes a task of, but no cache can hold."""

    __hash__ = None  # type: ignore[assignment]

    async def __call__(self, x: int) -> int:
        """Return `x`."""
        return x


def wait_for_something(wait_for: str) -> str:
    """Return the parameter, whose name Prefect reserves."""
    return wait_for


@pytest.mark.parametrize(
    ("function", "args", "parameters", "isasync"),
    [
        (len, ([1],), {"obj": [1]}, False),
        (dict, (), {}, False),
        (Unhashable(), (1,), {"x": 1}, True),
        (wait_for_something, ("x",), {"wait_for": "x"}, False),
        (functools.partial(use_prefect_async, "x"), (), {}, True),
    ],
)
def test_every_callable_has_a_task_in_its_context(
    function: Any, args: Any, parameters: dict[str, Any], isasync: bool
) -> None:
    """A callable of which Prefect makes no task has one in the context of its job, with the job's facts."""
    task_run = {"id": str(uuid4()), "name": "run", "task_key": "task", "dynamic_key": "1"}
    task = '{"plain":{"retries":7},"refused":{"on_commit_hooks":"it is odd"}}'
    received = {"task": task, "task_run": task_run, "log_prints": False, "persist_result": False}
    context = JobRunContext.of(received, BoundCall(function, args, {}))
    assert (context.task.fn, context.task.isasync, context.task.retries) == (function, isasync, 7)
    assert context.parameters == parameters
    with pytest.raises(AttributeError, match="on_commit_hooks was not sent to this worker process: it is odd"):
        context.task.on_commit_hooks.append(print)


EVENTS = 20


def emit_events() -> str:
    """Emit events, named after the task run, just before the end; return its id."""
    task_run_id = str(prefect.runtime.task_run.id)
    for number in range(EVENTS):
        emit_event(f"test.{task_run_id}", resource={"prefect.resource.id": f"test.{number}"})
    return task_run_id


def emit_events_when_stopped() -> None:
    """Sleep past the limit, and emit events when stopped."""
    try:
        time.sleep(60)
    finally:
        emit_events()


def check_events(api: Api, task_run_id: str) -> None:
    """Check that all events arrive and are related to the task run and its flow run."""

    def arrived() -> list[dict[str, Any]]:
        return api.events(f"test.{task_run_id}")

    wait_for(lambda: len(arrived()) == EVENTS, what=arrived)
    flow_run_id = api.task_run(task_run_id)["flow_run_id"]
    wanted = {f"prefect.task-run.{task_run_id}", f"prefect.flow-run.{flow_run_id}"}
    for event in arrived():
        assert wanted <= {related["prefect.resource.id"] for related in event["related"]}


@pytest.mark.parametrize("start_method", ["guardian", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_events_of_a_worker_that_exits_are_sent(api: Api, start_method: Any) -> None:
    """Events emitted last of all arrive, though the worker exits at once."""
    task = job_task(emit_events, pool="process")
    config = Settings(executor=ExecutorSettings(start_method=start_method))

    @flow
    def run() -> str:
        with JobExecutor(1, config=config):
            task_run_id: str = task.submit().result()
        return task_run_id

    check_events(api, run())


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_events_of_run_jobs_are_sent(api: Api, executor: JobExecutor, pool: Any) -> None:
    """Events of a job of run_jobs arrive from a thread and from a process."""

    @flow
    def run() -> Any:
        (result,) = run_jobs([Job(function=emit_events, pool=pool)], executor=executor)
        return result.value

    check_events(api, run())


def test_a_job_stopped_at_its_limit_can_still_emit_events(api: Api, executor: JobExecutor) -> None:
    """Events emitted while the job is stopped arrive."""
    task = job_task(emit_events_when_stopped, pool="process", max_runtime=3.0, retry_attempts=0)

    @flow
    def run() -> str:
        future = task.submit()
        future.wait()
        assert future.state.name == "TimedOut"
        return str(future.task_run_id)

    check_events(api, run())


def test_a_preloaded_process_has_no_thread_and_enters_the_payload_in_few_calls() -> None:
    """Preloading starts no thread, beside which none may be forked; the payload is below 2 KB, without the parameters.

    It is entered without validation: in few calls of Python.
    """
    task = job_task(use_prefect, log_prints=False)
    task_run = TaskRun(task_key="use_prefect", dynamic_key="1", name="use_prefect-1", tags=["a"])
    payload = task_run_payload(task, task_run)
    assert len(payload) < 2048
    # In a process of its own: the scope leaves logging to the worker.
    measure = (
        f"import sys, threading, {', '.join(PRELOAD)}\n"
        "print(threading.active_count())\n"
        "import executor_adapter.prefect.child.task_run_context as child\n"
        "from executor_adapter.worker.context import BoundCall\n"
        "call = BoundCall(print, (), {})\n"
        "def enter():\n    with child.task_run_scope(sys.argv[1], call): pass\n"
        "enter()\ncalls = []\n"
        "sys.setprofile(lambda frame, event, argument: calls.append(event) if event == 'call' else None)\n"
        "enter()\nsys.setprofile(None)\nprint(len(calls))"
    )
    command = [sys.executable, "-c", measure, payload]
    threads, calls = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert threads == 1
    assert calls < 200


@job_task(pool="process", retry_attempts=0)
def read_settings() -> tuple[int, int, str | None]:
    """Return the worker's id, and Prefect's default retries: in the settings, and in the environment."""
    variable = os.environ.get("PREFECT_TASKS_DEFAULT_RETRIES")
    return os.getpid(), get_current_settings().tasks.default_retries, variable


def test_a_worker_has_the_settings_of_each_flow_run(prefect_api: str, executor: JobExecutor) -> None:
    """A worker shared by three flow runs has the settings of each while it runs its job."""
    run = flow(lambda: read_settings.submit().result())
    before = run()
    with temporary_settings({PREFECT_TASK_DEFAULT_RETRIES: 7}):
        assert run() == (before[0], 7, "7")
    assert run() == before == (before[0], 0, None)
