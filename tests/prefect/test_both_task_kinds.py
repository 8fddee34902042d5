"""Tests that a job task, and a plain task under JobTaskRunner, behave alike in every pool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_run_logger, task
from prefect.assets import materialize
from prefect.cache_policies import INPUTS
from prefect.transactions import Transaction, transaction

from executor_adapter import JobExecutor
from executor_adapter.config import Settings
from executor_adapter.config.sections import JobSettings
from executor_adapter.exceptions import MemoryLimitError, WorkerCrashedError
from executor_adapter.prefect import JobTaskRunner, job_options, job_task
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")

KINDS = ["job task", "plain task"]
POOLS = ["thread", "coroutine", "process"]


def by_day(kind: str, pool: str) -> Any:
    """Return the mark of a combination: a runner starts a pool of its own.

    Coroutines go the way of threads; test_job_task.py has those of job tasks.
    """
    return () if pool == "thread" or (kind, pool) == ("job task", "process") else pytest.mark.nightly


NAMES = [pytest.param(kind, marks=by_day(kind, "process")) for kind in KINDS]


class TaskKind:
    """Makes tasks of one kind, whose functions run as jobs in one pool."""

    def __init__(self, name: str, pool: str) -> None:
        self.is_plain, self.pool = name == "plain task", pool
        self.flow: Any = flow(task_runner=JobTaskRunner(max_workers=2)) if self.is_plain else flow

    def task(self, function: Callable[..., Any], **options: Any) -> Any:
        if self.is_plain:
            return job_options(pool=self.pool)(task(function, **options))
        return job_task(function, pool=self.pool, **{"retries": 0, **options})

    def choose(self, sync: Any, coroutine: Any) -> Any:
        return coroutine if self.pool == "coroutine" else sync


@pytest.fixture(
    params=[
        pytest.param((kind, pool), id=f"{kind} in a {pool}", marks=by_day(kind, pool))
        for kind in KINDS
        for pool in POOLS
    ]
)
def kind(request: pytest.FixtureRequest) -> TaskKind:
    return TaskKind(*request.param)


def record(path: str, value: int) -> int:
    """Note the call in a file and in the log; return ten times the value."""
    with open(path, "a") as calls:
        calls.write("x")
    get_run_logger().info("recording %s", value)
    return value * 10


async def record_async(path: str, value: int) -> int:
    """Do the same as `record`, in a coroutine."""
    return record(path, value)


def refuse() -> None:
    """Raise a LookupError."""
    raise LookupError("refused")


async def refuse_async() -> None:
    """Raise a LookupError, in a coroutine."""
    raise LookupError("refused")


def test_results_are_persisted_cached_and_logged(kind: TaskKind, api: Api, scratch: Path) -> None:
    """A second call with the same inputs is Cached; results, names, hooks and logs are right."""
    hooked: list[str] = []
    write = kind.task(
        kind.choose(record, record_async),
        cache_policy=INPUTS,
        persist_result=True,
        task_run_name="record-{value}",
        on_completion=[lambda task, task_run, state: hooked.append(state.name)],
    )

    @kind.flow
    def run() -> Any:
        value = time.time_ns()
        first = write.submit(str(scratch / "calls"), value)
        first.wait()
        second = write.submit(str(scratch / "calls"), value)
        second.wait()
        futures.extend([first, second])
        return value

    futures: list[Any] = []
    value = run()
    first, second = futures
    assert (scratch / "calls").read_text() == "x"
    assert first.result() == second.result() == value * 10
    assert api.state_names(second.task_run_id) == ["Pending", "Running", "Cached"]
    assert api.task_run(first.task_run_id)["state"]["data"]["storage_key"]
    assert api.task_run(first.task_run_id)["name"] == f"record-{value}"
    assert hooked == ["Completed", "Cached"]
    wait_for(lambda: f"recording {value}" in api.messages(first.task_run_id))


def test_a_failure_rolls_its_transaction_back(kind: TaskKind, scratch: Path) -> None:
    """A failure calls the rollback hook of an earlier task in the same transaction."""
    undone: list[str] = []

    def undo(_: Transaction) -> None:
        undone.append("undone")

    write, fail = kind.task(kind.choose(record, record_async)), kind.task(kind.choose(refuse, refuse_async))
    write.on_rollback(undo)

    @kind.flow
    def run() -> None:
        with transaction():
            write.submit(str(scratch / "calls"), 1).result()
            fail.submit().result()

    with pytest.raises(LookupError, match="refused"):
        run()
    assert undone == ["undone"]


def die() -> None:
    """Kill the process that runs the function."""
    os._exit(3)


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_rolls_back_and_is_not_cached(name: str, scratch: Path) -> None:
    """A crash is raised, rolls its transaction back, and is not stored under the cache key."""
    kind = TaskKind(name, "process")
    undone: list[str] = []
    write, crash = kind.task(record), kind.task(die, cache_policy=INPUTS, persist_result=True)
    write.on_rollback(lambda _: undone.append("undone"))

    @kind.flow
    def run() -> Any:
        try:
            with transaction():
                write.submit(str(scratch / "calls"), 1).result()
                crash.submit().result()
        except WorkerCrashedError:
            undone.append("raised")
        again = crash.submit()
        again.wait()
        return again.state.name

    assert run() == "Crashed"
    assert undone == ["undone", "raised"]


def note_times(path: str) -> None:
    """Write when the function started and ended."""
    with open(path, "a") as times:
        times.write(f"{time.time()} ")
        time.sleep(0.3)
        times.write(f"{time.time()}\n")


@pytest.mark.parametrize("name", KINDS)
def test_a_tags_concurrency_limit_holds(name: str, api: Api, scratch: Path) -> None:
    """With a limit of one for their tag, two tasks run one after the other."""
    limit = {"name": f"tag:{name.replace(' ', '-')}", "limit": 1, "active": True}
    api.post("/v2/concurrency_limits/", limit)
    kind = TaskKind(name, "thread")
    limited = kind.task(note_times, tags=[name.replace(" ", "-")])

    @kind.flow
    def run() -> None:
        for future in [limited.submit(str(scratch / f"times-{number}")) for number in range(2)]:
            future.result()

    run()
    (_, ended), (begun, _) = sorted(
        [float(at) for at in (scratch / f"times-{number}").read_text().split()] for number in range(2)
    )
    assert begun >= ended


def own_pid() -> int:
    """Return the id of the process that runs the function."""
    return os.getpid()


@pytest.mark.parametrize("name", NAMES)
def test_assets_are_materialized(name: str, api: Api) -> None:
    """A task with assets emits a materialization event for each run."""
    key = f"file:///{name.replace(' ', '-')}/{time.time_ns()}"
    made: Any = (
        job_task(assets=[key], pool="process", retry_attempts=0)(own_pid)
        if name == "job task"
        else job_options(pool="process")(materialize(key)(own_pid))
    )

    @TaskKind(name, "process").flow
    def run() -> Any:
        return made.submit().result(), made.with_options(name="other").submit().result()

    assert os.getpid() not in run()

    def events() -> list[Any]:
        body = {"filter": {"resource": {"id": [key]}}}
        return [event["event"] for event in api.post("/events/filter", body)["events"]]

    wait_for(lambda: events().count("prefect.asset.materialization.succeeded") == 2)


# --- the table of states, for plain tasks ---


def answer() -> int:
    """Return a value."""
    return 42


def fail_once(path: str) -> None:
    """Fail in the first attempt."""
    if not Path(path).exists():
        Path(path).touch()
        raise ConnectionError("refused")


def sleep_long() -> None:
    """Sleep longer than any limit here."""
    time.sleep(30)


def break_data() -> None:
    """Raise an error that is not retried."""
    b"\xff".decode()


def eat_memory() -> int:
    """Use 1 GiB and keep it."""
    blocks = [bytearray(16 << 20) for _ in range(64)]
    time.sleep(30)
    return len(blocks)


RETRIED = ["AwaitingRetry", "Retrying", "Completed"]
ONCE_MORE = {"retries": 1, "retry_delay_seconds": 0.1}
ROWS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], list[str], str, str]] = {
    "completed": (answer, {}, {}, ["Completed"], "COMPLETED", ""),
    "retried": (fail_once, ONCE_MORE, {}, RETRIED, "COMPLETED", ""),
    "timed out": (sleep_long, {"timeout_seconds": 1}, {}, ["TimedOut"], "FAILED", "TIMEOUT_ERROR: "),
    "past its deadline": (sleep_long, {"retries": 3}, {"deadline": 1}, ["TimedOut"], "FAILED", "DEADLINE_EXCEEDED: "),
    "crashed": (die, {}, {}, ["Crashed"], "CRASHED", "WORKER_CRASHED: "),
    "out of memory": (eat_memory, {}, {"memory_limit": "400MiB"}, ["OutOfMemory"], "CRASHED", "MEMORY_LIMIT: "),
    "failed": (break_data, {"retries": 3}, {}, ["Failed"], "FAILED", "DATA_ERROR: "),
}


@pytest.mark.nightly
def test_plain_tasks_show_each_row_of_the_table_of_states(api: Api, scratch: Path) -> None:
    """Each kind of end has its states, its message and its run count."""

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="process"))
    def run() -> None:
        for name, (function, task_options, options, *_) in ROWS.items():
            arguments = [str(scratch / "seen")] if name == "retried" else []
            made = job_options(**options)(task(function, **task_options))
            futures[name] = made.submit(*arguments)
            futures[name].wait()

    futures: dict[str, Any] = {}
    run()
    for name, (*_, names, state_type, message) in ROWS.items():
        states = api.states(futures[name].task_run_id)
        assert [state["name"] for state in states] == ["Pending", "Running", *names], name
        assert states[-1]["type"] == state_type
        assert (states[-1]["message"] or "").startswith(message)
        assert api.task_run(futures[name].task_run_id)["run_count"] == len(names[:-1]) // 2 + 1
    retried = api.states(futures["retried"].task_run_id)[2]
    assert retried["type"] == "SCHEDULED"
    assert retried["message"] == "attempt 1 of 2: NETWORK_ERROR: ConnectionError: refused"
    with pytest.raises(MemoryLimitError):
        futures["out of memory"].result()


def test_a_queue_timeout_of_the_settings_counts_from_the_submission() -> None:
    """Tasks that the settings give a queue_timeout are all in the queue at once, where its time counts."""
    release = threading.Event()

    @job_task(pool="thread", retry_attempts=0)
    def work() -> None:
        release.wait(PATIENCE)

    @flow
    def run() -> None:
        futures = [work.submit() for _ in range(12)]
        wait_for(lambda: executor.stats().jobs_pending == 11)
        release.set()
        assert {future.wait() or future.state.name for future in futures} == {"Completed"}

    with JobExecutor(1, config=Settings(job=JobSettings(queue_timeout=PATIENCE))) as executor:
        run()


def test_a_plain_task_past_its_queue_timeout_is_never_running(api: Api, executor: JobExecutor, scratch: Path) -> None:
    """A task that got no slot within its queue_timeout goes from Pending to TimedOut."""
    late = job_options(queue_timeout=0.2)(task(answer))

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="thread"))
    def run() -> None:
        holding = task(note_times).submit(str(scratch / "times"))
        while not (scratch / "times").exists():
            time.sleep(0.01)
        futures.append(late.submit())
        futures[0].wait()
        holding.wait()

    futures: list[Any] = []
    run()
    assert api.state_names(futures[0].task_run_id) == ["Pending", "TimedOut"]
