"""JobTaskRunner: the interface of a Prefect task runner, and what it adds for plain tasks."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudpickle
import pytest
from prefect import allow_failure, flow, get_run_logger, tags, task, unmapped
from prefect.context import TagsContext
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.settings import PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS, temporary_settings
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from executor_adapter import JobExecutor, RetryPolicy, RetryRule, current_job
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.prefect import JobTaskRunner, job_options, job_task
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api")

POOLS = ["thread", pytest.param("process", marks=pytest.mark.nightly)]


@task
def double(x: int) -> int:
    """Return twice `x`."""
    return 2 * x


@task
async def double_async(x: int) -> int:
    """Return twice `x`, from a coroutine."""
    await asyncio.sleep(0)
    return 2 * x


@task
def fail(message: str = "no") -> None:
    """Raise a LookupError."""
    raise LookupError(message)


@task
def current_tags() -> set[str]:
    """Return the tags of the current context."""
    return set(TagsContext.get().current_tags)


@task
def pid() -> int:
    """Return the id of the process that runs the task."""
    return os.getpid()


_prepared: list[str] = []


def prepare(word: str) -> None:
    """Initialize a worker: note the word."""
    _prepared.append(word)


@task
def prepared_words() -> list[str]:
    """Return the words that `prepare` has noted in this process."""
    return _prepared


# --- the interface of a Prefect task runner ---


def test_a_duplicate_is_another_runner_with_the_same_options() -> None:
    """`duplicate` returns an equal runner; runners with other options are not equal."""
    runner = JobTaskRunner(max_workers=3, pool="process", memory_limit="1GiB", initializer=prepare, initargs=("a",))
    other = runner.duplicate()
    assert isinstance(other, JobTaskRunner)
    assert other is not runner
    assert other == runner
    assert runner != JobTaskRunner(max_workers=4, pool="process")
    assert runner != "a runner"
    assert runner.name == "job"


class LabelledJobTaskRunner(JobTaskRunner):
    """A runner with an `__init__` of its own."""

    def __init__(self, max_workers: int | None = None, label: str = "") -> None:
        super().__init__(max_workers, pool="thread")
        self.label = label


def test_a_subclass_with_its_own_init_can_be_duplicated_and_pickled() -> None:
    """A duplicate and an unpickled copy of a subclass have its attributes and run tasks."""
    runner = LabelledJobTaskRunner(3, label="mine")
    for other in (runner.duplicate(), pickle.loads(pickle.dumps(runner))):
        assert isinstance(other, LabelledJobTaskRunner)
        assert (other, other.label) == (runner, "mine")
        with other:
            assert other.submit(double, {"x": 1}).result() == 2


def test_cancel_all_ends_running_tasks_and_starts_no_further_one(api: Api, tmp_path: Path) -> None:
    """After cancel_all every task run is Cancelled, with the time of its end, and no waiting one has started."""

    @task
    def hang(number: int) -> None:
        (tmp_path / str(number)).touch()
        time.sleep(60)

    with JobTaskRunner(1, pool="process") as runner:
        futures = [runner.submit(hang, {"number": number}) for number in range(3)]
        begun = wait_for(lambda: os.listdir(tmp_path))  # Any of the three may be first.
        runner.cancel_all()
        assert {future.state.name for future in futures if not future.wait(PATIENCE)} == {"Cancelled"}
    assert os.listdir(tmp_path) == begun
    assert all(api.task_run(future.task_run_id)["end_time"] for future in futures)


def test_a_running_future_is_an_input_and_not_a_parent(api: Api, tmp_path: Path) -> None:
    """A running future among the arguments is recorded as an input of the task run only."""

    @task
    def slow() -> int:
        (tmp_path / "begun").touch()
        while not (tmp_path / "end").exists():
            time.sleep(0.01)
        return 1

    @flow(task_runner=JobTaskRunner(2, pool="thread"))
    def run() -> UUID:
        upstream = slow.submit()
        wait_for((tmp_path / "begun").exists)
        downstream = double.submit(upstream)  # type: ignore[arg-type]
        (tmp_path / "end").touch()
        assert downstream.result() == 2
        return downstream.task_run_id

    assert api.task_run(run())["task_inputs"].keys() == {"x"}


def test_a_runner_must_be_entered_exactly_once() -> None:
    """Submitting to a runner that is not entered raises, and so does entering it twice."""
    runner = JobTaskRunner()
    with pytest.raises(RuntimeError, match="Task runner is not started"):
        runner.submit(double, {"x": 1})
    with runner, pytest.raises(RuntimeError, match="already started"):
        runner.__enter__()
    with pytest.raises(RuntimeError, match="Task runner is not started"):
        runner.submit(double, {"x": 1})


def test_an_unpickled_runner_is_not_entered_and_has_its_options() -> None:
    """A copy of an entered runner equals it, and can be entered itself."""
    with JobTaskRunner(max_workers=2, pool="thread") as runner:
        assert runner.submit(double, {"x": 1}).result() == 2
        copies = pickle.loads(pickle.dumps(runner)), cloudpickle.loads(cloudpickle.dumps(runner))
    assert copies[0] == copies[1] == runner
    with copies[1] as copy:
        assert copy.submit(double, {"x": 2}).result() == 4


@pytest.mark.parametrize("pool", POOLS)
def test_a_runner_outside_a_flow_submits_and_maps_tasks(pool: str) -> None:
    """Futures, mapped values and tags are right without a flow, in both pools."""
    with tags("a", "b"), JobTaskRunner(max_workers=2, pool=pool) as runner:
        future = runner.submit(double, {"x": 21})
        mapped = runner.map(double_async, {"x": [1, 2, 3]})
        seen = runner.submit(current_tags.with_options(tags=["own"]), {})
        assert isinstance(future, PrefectFuture)
        assert isinstance(future.task_run_id, UUID)
        assert isinstance(future.wrapped_future, Future)
        assert isinstance(mapped, PrefectFutureList)
        assert (future.result(), mapped.result(), seen.result()) == (42, [2, 4, 6], {"a", "b"})


def test_entering_a_runner_starts_no_thread(executor: JobExecutor) -> None:
    """A copy of the runner may be entered wherever a child task runs, so it must cost nothing."""
    before = {thread.name for thread in threading.enumerate()}
    with JobTaskRunner(pool="process"):
        assert {thread.name for thread in threading.enumerate()} <= before


# --- in a flow ---


@pytest.mark.parametrize("pool", POOLS)
def test_futures_and_annotations_are_resolved_as_inputs(pool: str) -> None:
    """Futures, wait_for, unmapped, allow_failure and quote work in both pools."""

    @task
    def add(x: int, others: list[int], last: Any) -> Any:
        return x + sum(others) if isinstance(last, Exception) else None

    @task
    def as_it_is(value: Any) -> str:
        return type(value).__name__

    @flow(task_runner=JobTaskRunner(max_workers=2, pool=pool))
    def run() -> Any:
        first = double.submit(1)
        second = double.submit(first, wait_for=[first])
        mapped = add.map([second, 0], unmapped([10, 20]), allow_failure(fail.submit()))
        after_failure = double.submit(1, wait_for=[fail.submit()])
        after_failure.wait()
        quoted = as_it_is.submit(quote([1, 2]))
        return second.result(), mapped.result(), after_failure.state.name, quoted.result()

    assert run() == (4, [34, 30], "NotReady", "list")


def test_an_async_flow_submits_and_awaits_tasks() -> None:
    """An async flow can submit tasks, await one, and call one directly."""

    @flow(task_runner=JobTaskRunner(max_workers=2, pool="thread"))
    async def run() -> Any:
        futures = [double.submit(1), double_async.submit(2)]
        return [future.result() for future in futures], await double_async(3), double(4)

    assert asyncio.run(run()) == ([2, 4], 6, 8)


def test_tasks_that_wait_for_their_own_tasks_do_not_deadlock() -> None:
    """Each task waits for the next one down, and there are fewer slots than tasks."""

    @task
    def countdown(n: int) -> int:
        return n if n == 0 else countdown.submit(n - 1).result()

    @task
    async def countdown_async(n: int) -> int:
        return n if n == 0 else countdown_async.submit(n - 1).result()

    @flow(task_runner=JobTaskRunner(max_workers=2))
    def run() -> Any:
        return countdown.submit(8).result(), countdown_async.submit(8).result()

    assert run() == (0, 0)


@pytest.mark.nightly
def test_a_job_in_a_process_cannot_submit_tasks() -> None:
    """A submit in a worker process raises, and the message names the alternatives."""

    @task
    def submit() -> None:
        double.submit(1)

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="process"))
    def run() -> None:
        submit.submit().result()

    with pytest.raises(RuntimeError, match="in a worker process cannot submit tasks"):
        run()


@pytest.mark.nightly
def test_a_subflow_and_with_options_use_their_own_runners() -> None:
    """Each flow runs its tasks in the pool of its own runner."""

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="process"))
    def inner() -> Any:
        return pid.submit().result()

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="thread"))
    def outer() -> Any:
        before = pid.submit()
        return before.result(), inner(), inner.with_options(task_runner=JobTaskRunner(pool="thread"))()

    outside, inside, elsewhere = outer()
    assert outside == elsewhere == os.getpid() != inside


@pytest.fixture(scope="module")
def in_process(prefect_api: str) -> tuple[int, list[str]]:
    """What a runner's worker process says of itself: its id, and what the initializer has noted there."""

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="process", initializer=prepare, initargs=("ready",)))
    def run() -> tuple[int, list[str]]:
        return pid.submit().result(), prepared_words.submit().result()

    return run()


def test_an_initializer_runs_in_each_worker(in_process: tuple[int, list[str]]) -> None:
    """The initializer has run in the worker before its first job."""
    assert in_process[1] == ["ready"]


def test_a_runner_runs_tasks_in_its_pool(in_process: tuple[int, list[str]]) -> None:
    """Tasks of a runner with pool="process" run in another process."""
    assert in_process[0] != os.getpid()


def test_a_generator_is_refused_at_submit() -> None:
    """A generator task cannot be submitted; called directly it works."""

    @task
    def numbers() -> Iterator[int]:
        yield 1

    @flow(task_runner=JobTaskRunner())
    def run() -> Any:
        with pytest.raises(InvalidJobError, match="return a list"):
            numbers.submit()
        return list(numbers())

    assert run() == [1]


def test_cancelling_the_wrapped_future_has_no_effect() -> None:
    """A wrapped future refuses to be cancelled, and each task run completes."""

    @flow(task_runner=JobTaskRunner(max_workers=1))
    def run() -> Any:
        futures = [double.submit(x) for x in range(20)]
        assert not any(future.wrapped_future.cancel() for future in futures)
        return [future.result() for future in futures]

    assert run() == [2 * x for x in range(20)]


def test_the_end_of_a_flow_waits_for_running_and_cancels_waiting_tasks() -> None:
    """The end of a flow waits for running tasks and cancels waiting ones, in the gate and in the queue."""
    begun, ended = threading.Event(), threading.Event()

    @task
    def slow() -> str:
        begun.set()
        assert ended.wait(PATIENCE)
        return "done"

    @flow(task_runner=JobTaskRunner(max_workers=1))
    def run() -> None:
        futures.append(slow.submit())
        assert begun.wait(PATIENCE)
        futures.extend(double.submit(x) for x in range(20))
        ending.start()

    def end_when_others_are_over() -> None:
        wait_for(lambda: {future.state.name for future in futures[1:]} == {"Cancelled"})
        ended.set()

    futures: list[Any] = []
    ending = threading.Thread(target=end_when_others_are_over)
    run()
    ending.join()
    assert futures[0].result() == "done"


def test_an_interrupted_flow_ends_its_jobs_at_once() -> None:
    """A KeyboardInterrupt in the flow cancels its running job within seconds."""
    begun = threading.Event()

    @task
    async def endless() -> None:
        begun.set()
        await asyncio.sleep(3600)

    @flow(task_runner=JobTaskRunner(max_workers=1))
    def run() -> None:
        futures.append(endless.submit())
        assert begun.wait(PATIENCE)
        raise KeyboardInterrupt

    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    assert futures[0].state.name == "Cancelled"


# --- how a plain task's options are translated ---


@pytest.mark.parametrize(
    ("delays", "seconds"),
    [(0.05, [0.05, 0.05]), ([0.05, 0.3], [0.05, 0.3]), (exponential_backoff(backoff_factor=0.1), [0.1, 0.2])],
)
def test_each_of_prefects_retries_is_made_once_with_its_delay(
    api: Api, scratch: Path, delays: Any, seconds: list[float]
) -> None:
    """A plain task fails in three attempts, and waits before each retry for its delay."""

    @task(retries=2, retry_delay_seconds=delays, retry_jitter_factor=0.01)
    def down() -> None:
        with (scratch / "attempts").open("a") as attempts:
            attempts.write("x")
        raise ConnectionError("refused")

    @flow(task_runner=JobTaskRunner())
    def run() -> None:
        futures.append(down.submit())
        futures[0].wait()

    futures: list[Any] = []
    run()
    assert (scratch / "attempts").read_text() == "xxx"
    states = api.states(futures[0].task_run_id)
    assert [state["name"] for state in states] == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Failed",
    ]  # fmt: skip
    # From the start of the attempt that failed to that of the next; the retry is due no later than its delay says.
    waited = [_seconds(states[number]["timestamp"], states[number + 2]["timestamp"]) for number in (1, 3)]
    due = [_seconds(state["timestamp"], state["state_details"]["scheduled_time"]) for state in states[2:5:2]]
    for delay, took, due_in in zip(seconds, waited, due, strict=True):
        assert due_in / 1.01 <= delay <= took / 0.99


def _seconds(earlier: str, later: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_retry_condition_fn_is_called_in_the_engines_thread() -> None:
    """The retry condition of a plain task is called once, never in the supervisor's thread."""
    asked: list[str] = []

    def refuse(*_: object) -> bool:
        asked.append(threading.current_thread().name)
        return False

    @flow(task_runner=JobTaskRunner(max_workers=1))
    def run() -> None:
        fail.with_options(retries=3, retry_condition_fn=refuse).submit().wait()

    run()
    assert len(asked) == 1
    assert asked[0].startswith("task-engine")


def crash_three_times(path: str) -> str:
    """Kill the worker in the first three attempts."""
    attempts = Path(path)
    attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
    if len(attempts.read_text()) < 4:
        os._exit(3)
    return "survived"


@pytest.mark.nightly
def test_all_retries_may_follow_crashes(scratch: Path) -> None:
    """A plain task with three retries survives three crashes."""

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="process"))
    def run() -> Any:
        return task(crash_three_times, retries=3).submit(str(scratch / "attempts")).result()

    assert run() == "survived"


def test_job_options_choose_a_pool_and_a_policy_for_one_task() -> None:
    """One task's job_options win over the runner's pool, and survive with_options."""
    calls: list[int] = []

    @job_options(pool="thread", retry=RetryPolicy(retry_attempts=2, retry_delay=0, rules=(RetryRule(codes=("MINE",)),)))
    @task
    def here() -> int:
        calls.append(current_job().attempt)
        if current_job().attempt < 3:
            error = LookupError("again")
            error.error_code = "MINE"  # type: ignore[attr-defined]
            raise error
        return os.getpid()

    @flow(task_runner=JobTaskRunner(max_workers=2, pool="process"))  # No task starts a process.
    def run() -> Any:
        return here.submit().result(), here.with_options(name="renamed").submit().result()

    assert run() == (os.getpid(),) * 2
    assert calls == [1, 2, 3, 1, 2, 3]


def test_job_options_keep_the_task_object() -> None:
    """`job_options` returns the same task; a variant has options of its own; a copy keeps them."""
    plain = task(double.fn)
    assert job_options(pool="thread")(plain) is plain
    assert plain.fn is double.fn
    variant = job_options(memory_limit="1GiB", pool="process")(plain.with_options())
    assert vars(plain)["job_options"] == {"pool": "thread"}
    assert vars(variant)["job_options"] == {"pool": "process", "memory_limit": "1GiB"}
    assert vars(cloudpickle.loads(cloudpickle.dumps(plain)))["job_options"] == {"pool": "thread"}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: job_options(pol="thread"), TypeError, "did you mean pool"),
        (lambda: job_options(max_runtime=-1)(task(double.fn)), InvalidJobError, "max_runtime=-1"),
        (lambda: job_options(pool="thread")(double.fn), TypeError, "above @task"),  # type: ignore[type-var]
        (lambda: job_options(pool="thread")(job_task(double.fn)), TypeError, "is a job task: pass these options"),
        (lambda: JobTaskRunner(memory_limt=1), TypeError, "did you mean memory_limit"),
        (lambda: JobTaskRunner(retry_attempts=1), TypeError, "is set for each task"),
        (lambda: JobTaskRunner(pool="rocket"), InvalidJobError, "JobTaskRunner: pool='rocket'"),
        (lambda: JobTaskRunner(max_workers=0), ValueError, "at least 1"),
    ],
)
def test_wrong_options_are_refused_where_they_are_written(wrong: Any, error: type[Exception], message: str) -> None:
    """An unknown or wrong option of job_options or JobTaskRunner raises; the message says why."""
    with pytest.raises(error, match=message):
        wrong()


def test_a_job_task_uses_the_innermost_executor() -> None:
    """A job task uses the runner's executor, or that of a `with` block inside the flow."""

    @job_task(pool="thread", retry_attempts=0)
    def executor_of_mine() -> bool:
        return any(job.job_id == current_job().job_id for job in nearer.jobs())

    @flow(task_runner=JobTaskRunner(max_workers=2, pool="process"))
    def run() -> Any:
        outside = executor_of_mine.submit().result()
        with nearer:
            return outside, executor_of_mine.submit().result(), executor_of_mine()

    nearer = JobExecutor(max_workers=1)
    assert run() == (False, True, True)


def test_a_direct_call_of_a_plain_task_is_no_job() -> None:
    """Only submitted plain tasks run as jobs."""

    @task
    def is_a_job() -> bool:
        try:
            return bool(current_job())
        except RuntimeError:
            return False

    @flow(task_runner=JobTaskRunner(max_workers=1, pool="thread"))
    def run() -> Any:
        return is_a_job(), is_a_job.submit().result()

    assert run() == (False, True)


def test_every_end_is_recorded_when_the_flow_returns(api: Api) -> None:
    """When the flow returns, the server has the final state of each task run."""

    @flow(task_runner=JobTaskRunner(max_workers=2))
    def run() -> None:
        get_run_logger().debug("submitting")
        futures.extend([*double.map(range(30)), fail.submit()])

    futures: list[Any] = []
    run()
    names = [api.task_run(future.task_run_id)["state_name"] for future in futures]
    assert names == [future.state.name for future in futures]
    assert "Pending" not in names


def test_threads_are_as_many_as_prefects_setting_says() -> None:
    """Where neither the program nor the configuration has a number, Prefect's setting of its thread pool counts."""
    with temporary_settings({PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS: 7}):
        executor = JobExecutor(config=Settings())
        own = JobExecutor(config=Settings(executor=ExecutorSettings(max_workers={"thread": 2})))
    with executor, own:
        assert [each.max_workers["thread"] for each in (executor, own) if isinstance(each.max_workers, dict)] == [7, 2]
