"""Options of a job task are checked where they are written, and Prefect's names are translated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import Task
from prefect import task as plain_task
from prefect.settings import (
    PREFECT_TASK_DEFAULT_RETRIES,
    PREFECT_TASK_DEFAULT_RETRY_DELAY_SECONDS,
    temporary_settings,
)
from prefect.tasks import exponential_backoff

from executor_adapter import RetryPolicy
from executor_adapter.config import Settings
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor.defaults import JobDefaults
from executor_adapter.prefect import JobTask, JobTaskRunner, job_options, job_task
from executor_adapter.prefect.options.job_options import AS_A_TASK, JOB_OPTIONS, job_of_call, options_of
from executor_adapter.prefect.options.retries import policy_of_task


def double(x: int) -> int:
    """Return twice `x`."""
    return 2 * x


async def double_on_loop(x: int) -> int:
    return 2 * x


def test_a_bare_decorator_makes_a_job_task() -> None:
    """`job_task` without options makes a JobTask with the function's name."""
    task = job_task(double)
    assert isinstance(task, JobTask)
    assert isinstance(task, Task)
    assert task.name == "double"
    assert task.fn is double


def test_assets_may_be_given_with_the_function() -> None:
    """`job_task(function, assets=...)` materializes as `job_task(assets=...)(function)` does."""
    tasks: list[Any] = [job_task(double, assets=["file:///doubled"]), job_task(assets=["file:///doubled"])(double)]  # type: ignore[call-overload]
    assert [asset.key for task in tasks for asset in task.assets] == ["file:///doubled"] * 2


def test_a_job_task_has_the_defaults_of_a_task() -> None:
    """A job task without options has all that a plain task has: its retries, its limit, its settings."""
    plain, job = vars(plain_task(double)), vars(job_task(double))
    differing = {name for name in plain.keys() | job.keys() if plain.get(name) != job.get(name)}
    assert differing == {"job_options"}
    job_of_call = job_task(double).make_job("id", {"x": 1})
    assert (job_of_call.policy.retry_attempts, job_of_call.max_runtime) == (0, None)


def test_a_retry_delay_of_job_options_is_for_the_retries_of_the_task() -> None:
    """A plain task keeps its own retries where `job_options` gives only their delay."""
    task = job_options(retry_delay=5)(plain_task(retries=4)(double))
    policy = job_of_call(task, options_of(task, {}), "id", {"x": 1}).policy
    assert (policy.retry_attempts, policy.retry_delay) == (4, 5.0)


def test_fields_of_a_job_and_options_of_a_task_go_together() -> None:
    """Job fields reach the job, and task options the task."""
    task = job_task(pool="process", max_runtime=600, retry_attempts=2, tags=["nightly"], name="Double it")(double)
    job = task.make_job("an-id", {"x": 21})
    assert (task.name, task.tags) == ("Double it", {"nightly"})
    assert (job.job_id, job.pool, job.max_runtime, job.retry_attempts) == ("an-id", "process", 600, 2)
    assert (job.function, job.args, job.kwargs) == (double, (21,), {})


def test_an_unknown_option_is_refused_with_the_one_that_was_meant() -> None:
    """An unknown option raises TypeError with the nearest known name."""
    with pytest.raises(TypeError, match=r"no option 'max_runtme': did you mean max_runtime\?"):
        job_task(max_runtme=1)(double)
    with pytest.raises(TypeError, match="neither a field of Job nor an option of a Prefect task"):
        job_task(xyzzy=1)(double)
    with pytest.raises(TypeError, match="job_id"):
        job_task(job_id="mine")(double)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_runtime": -1}, "max_runtime=-1"),
        ({"pool": "rocket"}, "pool='rocket'"),
        ({"retry_attempts": -2}, "retry_attempts=-2"),
        ({"memory_limit": "lots"}, "memory_limit='lots'"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(options: dict[str, Any], message: str) -> None:
    """A wrong value raises InvalidJobError in one line with the value and the function."""
    with pytest.raises(InvalidJobError, match=message) as refusal:
        job_task(**options)(double)
    assert "\n" not in str(refusal.value)
    assert "double" in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        {"retries": 1, "retry_attempts": 1},
        {"retries": 1, "retry": RetryPolicy()},
        {"timeout_seconds": 1, "max_runtime": 1},
        {"retry_delay_seconds": 1, "retry_delay": 1},
    ],
)
def test_an_option_under_two_names_is_refused(options: dict[str, Any]) -> None:
    """Prefect's name and the job's name for the same option cannot be combined."""
    with pytest.raises(InvalidJobError, match="mean the same: give one of them"):
        job_task(**options)(double)


def test_prefects_option_names_set_the_job_fields() -> None:
    """retries, timeout_seconds and retry_delay_seconds set the fields of the job."""
    job = job_task(retries=2, timeout_seconds=5)(double).make_job("id", {"x": 1})
    assert (job.policy.retry_attempts, job.max_runtime) == (2, 5.0)
    job = job_task(retries=3, retry_delay_seconds=7)(double).make_job("id", {"x": 1})
    assert (job.policy.retry_attempts, job.policy.delays, job.policy.jitter) == (3, (7.0,), 0.0)


def test_prefects_retries_alone_mean_no_delay() -> None:
    """`retries` without a delay retries at once, as in Prefect; `retry_attempts` waits as the policy says."""
    assert job_task(retries=2)(double).make_job("id", {"x": 1}).policy.delay_before(1) == 0
    assert job_task(retries=2, retry_delay=5)(double).make_job("id", {"x": 1}).policy.delay_before(1) == 5
    assert job_task(retry_attempts=2)(double).make_job("id", {"x": 1}).policy.delay_before(1) == 60
    with temporary_settings({PREFECT_TASK_DEFAULT_RETRY_DELAY_SECONDS: 7}):
        assert job_task(retries=2)(double).make_job("id", {"x": 1}).policy.delay_before(1) == 7
    with temporary_settings({PREFECT_TASK_DEFAULT_RETRIES: 2}):
        assert job_task(double).make_job("id", {"x": 1}).policy.delay_before(1) == 0


@pytest.mark.parametrize(
    ("delays", "expected"),
    [([1, 2.5], (1.0, 2.5)), (exponential_backoff(backoff_factor=3), (3.0, 6.0, 12.0)), (0, (0.0,))],
)
def test_prefects_delays_may_be_a_number_a_list_or_a_callable(delays: Any, expected: tuple[float, ...]) -> None:
    """Each form of retry_delay_seconds gives the delays of the policy, for both kinds of task."""
    task = job_task(retries=3, retry_delay_seconds=delays, retry_jitter_factor=0.5)(double)
    assert (task.job_options["retry"].delays, task.job_options["retry"].jitter) == (expected, 0.5)
    assert task.with_options(retry_delay=9).job_options["retry"].delay_before(2) == 18
    assert policy_of_task(plain_task(retries=3, retry_delay_seconds=delays)(double)).delays == expected


@pytest.mark.parametrize("delays", [["soon"], "soon", -1, [float("nan")], True])
def test_wrong_delays_are_refused(delays: Any) -> None:
    """retry_delay_seconds must be numbers of 0 or more."""
    with pytest.raises(InvalidJobError, match=r"delays\.0="):
        job_task(retries=2, retry_delay_seconds=delays)(double)


def test_a_negative_jitter_is_refused() -> None:
    """retry_jitter_factor must be 0 or more."""
    with pytest.raises(InvalidJobError, match=r"jitter=-0\.5"):
        job_task(retries=2, retry_delay_seconds=1, retry_jitter_factor=-0.5)(double)


def test_equal_delays_are_shown_as_one_number() -> None:
    """The task shows one delay where all delays are equal."""
    assert job_task(retries=3, retry_delay_seconds=5)(double).retry_delay_seconds == 5


def test_a_class_method_can_be_a_job_task() -> None:
    """`job_task` above `classmethod` checks the function below it."""

    class Held:
        @job_task(pool="thread", max_runtime=5)
        @classmethod
        def method(cls) -> str:
            return cls.__name__

    assert Held.method.job_options == {"pool": "thread", "max_runtime": 5}


def test_the_task_shows_the_retries_and_the_limit_to_prefect() -> None:
    """retries, retry_delay_seconds and timeout_seconds of the task are those of the job."""
    task = job_task(retry_attempts=3, retry_delay=60, max_runtime=5)(double)
    assert (task.retries, task.retry_delay_seconds, task.timeout_seconds) == (3, [60, 120, 240], 5)
    assert task.with_options(max_runtime=None).timeout_seconds is None
    assert job_task(retry_attempts=0)(double).retries == 0


def test_with_options_changes_both_kinds_and_leaves_the_rest() -> None:
    """`with_options` changes job fields and task options in a copy, and checks them."""
    task = job_task(pool="process", max_runtime=5, name="first", tags=["a"])(double)
    other = task.with_options(max_runtime=9, name="second")
    assert isinstance(other, JobTask)
    assert (other.name, other.tags, other.job_options) == ("second", {"a"}, {"pool": "process", "max_runtime": 9})
    assert (task.name, task.job_options["max_runtime"]) == ("first", 5)
    with pytest.raises(InvalidJobError, match="max_runtime=0"):
        task.with_options(max_runtime=0)


def test_with_options_keeps_hooks_and_the_latest_retry_options_win() -> None:
    """`with_options` keeps hooks, and its retry options win over the policy."""
    task = job_task(retry=RetryPolicy(retry_attempts=5, retry_delay=1))(double)

    @task.on_failure
    def notify(*_: object) -> None: ...

    other = task.with_options(retry_attempts=1)
    assert other.on_failure_hooks == [notify]
    assert other.make_job("id", {"x": 1}).policy == RetryPolicy(retry_attempts=1, retry_delay=1)
    assert other.retries == 1
    assert task.with_options(retries=2).retries == 2
    assert task.with_options(retry_delay_seconds=9).retries == 5
    assert job_task(double).with_options(retries=2).make_job("id", {"x": 1}).policy.delay_before(1) == 0


def test_tool_name_and_dedupe_key_take_arguments_of_the_call() -> None:
    """`{parameter}` in tool_name and dedupe_key is replaced by the argument."""
    task = job_task(tool_name="tool {x:02d} {{}}", dedupe_key="double-{x.real!r}")(double)
    job = task.make_job("id", {"x": 3})
    assert (job.tool_name, job.dedupe_key) == ("tool 03 {}", "double-3")


@pytest.mark.parametrize(
    ("options", "delays"),
    [({"retry_delay_seconds": 5}, (5,) * 4), ({"retry_delay_seconds": exponential_backoff(2)}, (2, 4, 8, 16))],
)
def test_a_delay_alone_leaves_the_retries_to_the_settings(options: Any, delays: tuple[float, ...]) -> None:
    """With retry_delay_seconds alone, the settings say how many retries; without those there is none."""
    filled = JobDefaults(Settings.model_validate({"executor": {"job_task": {"retry_attempts": 4}}}).for_job_tasks())
    for task in (job_task(**options)(double), job_task(double).with_options(**options)):
        job = job_of_call(task, task.job_options, "id", {"x": 1})
        job.model_fields_set.difference_update(AS_A_TASK)
        assert job.policy.retry_attempts == 0
        filled.fill_in(job)
        assert tuple(job.policy.delay_before(retry) for retry in range(1, job.policy.retry_attempts + 1)) == delays
    closed = job_of_call(task := job_task(retries=0, **options)(double), task.job_options, "id", {"x": 1})
    filled.fill_in(closed)
    assert closed.policy.retry_attempts == 0


def test_prefects_default_retry_settings_fill_in_missing_options() -> None:
    """Tasks without retry options use Prefect's default retry settings."""
    with temporary_settings({PREFECT_TASK_DEFAULT_RETRIES: 2, PREFECT_TASK_DEFAULT_RETRY_DELAY_SECONDS: [1, 5]}):
        task = job_task(double)
        assert (task.retries, task.make_job("id", {"x": 1}).policy.delays) == (2, (1.0, 5.0))
        assert job_task(retries=1)(double).retry_delay_seconds == 1
        assert job_task(retry_attempts=3, retry_delay=9)(double).retry_delay_seconds == [9, 18, 36]
        assert job_task(retry=RetryPolicy(retry_attempts=4, retry_delay=0))(double).retries == 4
    with temporary_settings({PREFECT_TASK_DEFAULT_RETRIES: 0}):
        assert job_task(double).retries == 0
    assert job_task(double).retries == 0


def test_a_generator_function_is_refused() -> None:
    """A generator function cannot be a job task; the message says what to return."""

    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidJobError, match="return a list"):
        job_task(numbers)


def test_a_method_can_be_a_job_task() -> None:
    """The job of a method gets `self` as its first argument."""

    class Tool:
        factor = 3

        @job_task(retry_attempts=0)
        def times(self, x: int) -> int:
            return self.factor * x

    tool = Tool()
    job = Tool.times.make_job("id", {"self": tool, "x": 2})
    assert job.function(*job.args, **job.kwargs) == 6


@pytest.mark.parametrize(
    ("decorate", "kind", "message"),
    [
        (
            lambda: job_task("process"),
            TypeError,
            "job_task: 'process' is not a function: write @job_task(pool='process')",
        ),
        (
            lambda: job_task(pool="process")(plain_task(double)),
            TypeError,
            "job_task: double is a task already: write @job_task(...) in place of @task, or job_task(double.fn, ...)",
        ),
        (
            lambda: job_task(job_task(double), retry_attempts=2),
            TypeError,
            "job_task: double is a job task already: use double.with_options(...)",
        ),
        (
            lambda: job_task(pool="thread", memory_limit="200MiB")(double),
            InvalidJobError,
            "task double: memory_limit needs a process of its own, and pool='thread' has none: use pool='process'",
        ),
        (
            lambda: job_task(pool="thread", resources={"GPU": 1})(double),
            InvalidJobError,
            "task double: resources: a GPU is given to a process, by CUDA_VISIBLE_DEVICES, and pool='thread' has none",
        ),
        (
            lambda: job_task(pool="coroutine", soft_timeout=1)(double_on_loop),
            InvalidJobError,
            "task double_on_loop: soft_timeout=1.0 is not supported in pool='coroutine'",
        ),
        (
            lambda: job_task(pool="process")(double).with_options(pool="thread", memory_limit="1GiB"),
            InvalidJobError,
            "task double: memory_limit needs a process of its own",
        ),
        (
            lambda: job_task(tool_name="{tool}")(double),
            InvalidJobError,
            "task double: '{tool}': {tool} is not a parameter of the function",
        ),
        (
            lambda: job_task(double).with_options(dedupe_key="once {}"),
            InvalidJobError,
            "task double: 'once {}': {} is not a parameter of the function",
        ),
        (
            lambda: job_options(dedupe_key="{x")(plain_task(double)),
            InvalidJobError,
            "task double: expected '}' before end of string",
        ),
        (
            lambda: JobTaskRunner(tool_name="{tool"),
            InvalidJobError,
            "JobTaskRunner: expected '}' before end of string",
        ),
        (
            lambda: job_task(max_runtime="5m")(double),
            InvalidJobError,
            "task double: max_runtime='5m' must be a number of seconds: give 300",
        ),
        (
            lambda: JobTaskRunner(max_worker=5),
            TypeError,
            "JobTaskRunner has no option 'max_worker': did you mean max_workers?",
        ),
        (
            lambda: JobTaskRunner(pool="proces"),
            InvalidJobError,
            "JobTaskRunner: pool='proces' must be 'auto', 'coroutine', 'thread', 'process', 'ssh', 'dask' or 'ray'",
        ),
        (
            lambda: job_task()(double).submit(),
            RuntimeError,
            "double.submit needs a flow run around it: call it in a func",
        ),
        (
            lambda: job_task()(double).map([1]),
            RuntimeError,
            "double.map needs a flow run around it: call it in a function",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(decorate: Callable[[], Any], kind: type[Exception], message: str) -> None:
    """A wrong decorator, runner or submission raises one line with the mistake and the way out, at once."""
    with pytest.raises(kind) as caught:
        decorate()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_limit_may_wait_for_the_settings_pool() -> None:
    """A memory limit without a pool is accepted when decorated, because the settings may name the pool."""
    assert job_task(memory_limit="200MiB")(double).job_options == {"memory_limit": "200MiB"}


def test_help_names_the_options_of_a_job_task() -> None:
    """The docstring of `job_task` names every option of a job."""
    words = set(re.findall(r"\w+", job_task.__doc__ or ""))
    assert words >= JOB_OPTIONS
