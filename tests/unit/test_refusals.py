"""Tests of rejections: invalid input is rejected at once, with the value and the fix, and nothing starts."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy, RetryRule
from executor_adapter.config import JobSettings, Settings
from executor_adapter.exceptions import InvalidJobError, JobSerializationError
from executor_adapter.job.model import check_are_jobs
from executor_adapter.job.transition import Transition
from executor_adapter.job.validation import ToolLimit
from executor_adapter.pools.transport.envelope import returned
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler
from executor_adapter.store import open_store
from tests.contract.test_supervisor_machine import SimulatedExecutor
from tests.insides import supervisor_of
from tests.waiting import PATIENCE

NAN, INF = float("nan"), float("inf")


def work(value: int = 0) -> int:
    return value


def takes_none() -> int:
    return 0


async def takes_one_on_loop(value: int) -> int:
    return value


def generates() -> Iterator[int]:
    yield 1


async def generates_on_loop() -> AsyncIterator[int]:
    yield 1


class Generates:
    def __call__(self) -> Iterator[int]:
        yield 1

    def method(self) -> Iterator[int]:
        yield 1


@pytest.fixture
def transitions() -> list[Transition]:
    """The transitions of the executor's jobs."""
    return []


@pytest.fixture
def executor(transitions: list[Transition]) -> Iterator[JobExecutor]:
    with JobExecutor(1, config=Settings(), observers=[transitions.append]) as executor:
        yield executor


@pytest.mark.parametrize("submit", ["submit", "run"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (work, r"work is not a Job: make one, Job\(function=work, args=\(...\)\)"),
        ("tests:work", r"'tests:work' is not a Job: make one, Job\(function=work, args=\(...\)\)"),
        (None, "None is not a Job: make one"),
    ],
)
def test_an_object_that_is_not_a_job_is_refused(
    executor: JobExecutor, transitions: list[Transition], submit: str, given: Any, message: str
) -> None:
    """Submitting something other than a Job raises InvalidJobError, which shows how to make one."""
    with pytest.raises(InvalidJobError, match=message):
        getattr(executor, submit)(given)
    assert transitions == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Job(function=work, job_id="one"), r"job one is a single Job: pass a list, \[job\]"),
        (work, "<function work at .*> is not iterable: pass a list or an iterator of Jobs"),
        (3, "3 is not iterable: pass a list"),
    ],
)
def test_an_object_that_is_not_a_list_of_jobs_is_refused(given: Any, message: str) -> None:
    """A single Job, or an object that cannot be iterated, is refused where many jobs are expected."""
    with pytest.raises(InvalidJobError, match=message):
        check_are_jobs(given)


def test_checking_jobs_consumes_no_iterator() -> None:
    """Checking takes nothing from an iterator."""
    drawn = iter([Job(function=work)])
    check_are_jobs(drawn)
    check_are_jobs([])
    assert len(list(drawn)) == 1


def test_an_object_that_is_not_a_job_is_not_queued() -> None:
    """A scheduler's queue refuses something other than a Job."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        with pytest.raises(InvalidJobError, match=r"is not a Job: make one, Job\(function=work"):
            await scheduler.job_queue.add_job(work)  # type: ignore[arg-type]
        assert await scheduler.get_all_jobs() == []

    asyncio.run(main())


@pytest.mark.parametrize("pool", ["auto", "thread", "process"])
@pytest.mark.parametrize(
    "function",
    [
        generates,
        generates_on_loop,
        functools.partial(generates),
        Generates(),
        Generates().method,
        "numbers_of_mine:numbers",
    ],
    ids=["sync", "async", "partial", "object", "method", "reference"],
)
def test_a_generator_function_is_refused_in_every_pool(
    executor: JobExecutor,
    transitions: list[Transition],
    function: Any,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A generator function is refused: called, it would complete without running a line."""
    (tmp_path / "numbers_of_mine.py").write_text("def numbers():\n    yield 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InvalidJobError, match=r"is a generator function: .* Return a list instead, or submit a function"
    ):
        executor.submit(Job(function=function, pool=pool))
    assert transitions == []


@pytest.mark.parametrize("function", [len, int, functools.partial(work, 1), "builtins:len"])
def test_other_callables_are_accepted(executor: JobExecutor, function: Any) -> None:
    """Builtins, classes, partials and references to them are accepted."""
    args = ((),) if function in (len, "builtins:len") else ()
    assert executor.run(Job(function=function, args=args)) in (0, 1)


def test_a_live_id_is_refused_until_a_copy_has_its_own(executor: JobExecutor) -> None:
    """A live job or a copy with its id is refused, and the way that the message names works."""
    job = Job(function=work, args=(1,), queue_timeout=60, tool_name="held")
    held = JobExecutor(1, config=Settings(), tool_limits={"held": ToolLimit(rate=1e-3, buffer=0)})
    try:
        held.submit(job.model_copy(update={"job_id": "first"})).result(timeout=PATIENCE)
        held.submit(job)  # it waits for its tool
        with pytest.raises(InvalidJobError, match=r"submitted already: .*job.model_copy\(update={'job_id': ...}\)"):
            held.submit(job)
        with pytest.raises(InvalidJobError, match=r"is live already: .*job.model_copy\(update={'job_id': ...}\)"):
            held.submit(job.model_copy())
        assert executor.run(job.model_copy(update={"job_id": "another", "tool_name": None})) == 1
    finally:
        held.shutdown(timeout=0)


def test_a_live_job_that_is_refused_as_driven_keeps_its_options() -> None:
    """`drive` refuses a job that was submitted, and leaves its retries and its limit as they are."""
    job = Job(function=asyncio.sleep, args=(60,))
    with JobExecutor(1, config=Settings()) as executor:
        executor.submit(job)
        with pytest.raises(InvalidJobError, match="was submitted already"):
            executor.drive(job)
        assert (job.max_runtime, job.retry_attempts) == (3600.0, 3)
        executor.shutdown(timeout=0)


COUNTS = [
    (0, "=0 {}: use at least 1"),
    (-1, "=-1 {}: use at least 1"),
    (2.5, "=2.5 is not a whole number: use 1 or more"),
    (True, "=True is not a whole number: use 1 or more"),
    ("3", "='3' is not a whole number: use 1 or more"),
]


@pytest.mark.parametrize(("value", "message"), COUNTS)
@pytest.mark.parametrize(
    ("name", "too_few", "make"),
    [
        ("max_workers", "leaves no worker", lambda value: JobExecutor(value)),
        ("max_pending", "leaves no place", lambda value: JobExecutor(1, max_pending=value)),
        ("max_concurrent_jobs", "lets no job start", lambda value: CollectionScheduler(value)),
        ("max_concurrent_jobs", "lets no job start", lambda value: ProcessingScheduler(value)),
        ("max_concurrent", "lets no job start", lambda value: ToolLimit(max_concurrent=value)),
        ("burst", "lets no job start", lambda value: ToolLimit(burst=value)),
    ],
)
def test_an_invalid_count_is_refused(
    name: str, too_few: str, make: Callable[[Any], Any], value: Any, message: str
) -> None:
    """A count that is not a whole number from 1 on is refused with its name and value."""
    with pytest.raises(ValueError) as caught:
        make(value)
    assert str(caught.value).startswith(name + message.format(too_few))


@pytest.mark.parametrize(("value", "message"), [*COUNTS, (NAN, "=nan is not a whole number: use 1 or more")])
@pytest.mark.parametrize("ordered", [True, False])
def test_map_refuses_an_invalid_window_at_once(
    executor: JobExecutor, transitions: list[Transition], value: Any, message: str, ordered: bool
) -> None:
    """`map` refuses an invalid window when it is called, and starts nothing."""
    with pytest.raises(ValueError) as caught:
        executor.map(work, [1], window=value, ordered=ordered)
    assert str(caught.value).startswith("window" + message.format("lets no job start"))
    assert transitions == []


@pytest.mark.parametrize(
    ("function", "fields", "message"),
    [
        (work, {"pool": "x"}, "pool='x' must be 'auto', 'coroutine', 'thread', 'process', 'ssh', 'dask' or 'ray'"),
        (work, {"max_runtime": -1}, "max_runtime=-1 must be greater than 0"),
        (work, {"max_runtme": 1}, "max_runtme"),
        (work, {"memory_limit": "1GiB"}, "memory_limit needs a process of its own, .*: use pool='process'"),
        (work, {"job_id": "a"}, "job_id='a' cannot be the same for every job: leave it out"),
        (work, {"args": (1,)}, r"args=\(1,\) cannot be the same for every job: leave it out"),
        (work, {"dedupe_key": "k"}, "dedupe_key='k' would merge all live jobs into one: leave it out, or submit jobs"),
        (takes_none, {}, "takes_none cannot be called with the args and kwargs of the job: too many positional"),
        (work, {"kwargs": {"value": 1}}, "work cannot be called .*: multiple values for argument 'value'"),
        (generates, {}, "is a generator function"),
        ("nowhere:work", {}, "'nowhere:work' cannot be imported"),
        (3, {}, "3 is not callable: pass a function"),
    ],
)
def test_map_refuses_invalid_job_fields_at_once(
    executor: JobExecutor, transitions: list[Transition], function: Any, fields: dict[str, Any], message: str
) -> None:
    """`map` rejects an invalid function or field when it is called, and starts nothing."""
    with pytest.raises(ValueError, match=message):
        executor.map(function, [1, 2], **fields)
    assert transitions == []


def test_map_leaves_no_job_behind_where_a_later_one_cannot_be_sent() -> None:
    """The jobs that it had submitted before are cancelled, as those of a consumer that stops."""
    with SimulatedExecutor(1) as executor:
        with pytest.raises(JobSerializationError):
            list(executor.map(print, [1, 2], [None, threading.Lock()], pool="process"))
        pool: Any = next(iter(supervisor_of(executor).pools.made.values()))
        assert pool.workers[0].stopping
        pool.end(pool.workers[0], returned(None))
        assert executor.jobs() == []


def test_map_accepts_a_dedupe_key_of_none(executor: JobExecutor) -> None:
    """`map` accepts dedupe_key=None."""
    assert [result.value for result in executor.map(work, [1, 2], dedupe_key=None)] == [1, 2]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(function=takes_none, args=(1,)), "takes_none cannot be called .*: too many positional arguments"),
        (
            Job(function=work, kwargs={"valeu": 1}),
            "work cannot be called .*: got an unexpected keyword argument 'valeu'",
        ),
        (
            Job(function=takes_one_on_loop),
            "takes_one_on_loop cannot be called .*: missing a required argument: 'value'",
        ),
        (Job(function=takes_none, args=(1,), pool="process"), "takes_none cannot be called"),
    ],
)
def test_arguments_that_the_function_does_not_take_are_refused(
    executor: JobExecutor, transitions: list[Transition], job: Job, message: str
) -> None:
    """Arguments that do not fit the function's signature are refused at submit, not retried."""
    with pytest.raises(InvalidJobError, match=message):
        executor.submit(job)
    assert transitions == []


class GivesArguments(JobExecutor):
    async def execute_job(self, job: Job) -> Any:
        return await job.function(sum(job.args))


def test_an_overridden_execute_job_may_pass_other_arguments() -> None:
    """Arguments are not checked where an overridden execute_job calls the function."""
    with GivesArguments(1, config=Settings()) as executor:
        assert executor.run(Job(function=takes_one_on_loop)) == 0
        assert [result.value for result in executor.map(takes_one_on_loop, [3, 4], [5, 6])] == [8, 10]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"function": takes_one_on_loop, "args": (1,), "soft_timeout": 5},
            "soft_timeout=5.0 is not supported in pool='coroutine': use 'thread' or 'process'",
        ),
        (
            {"function": work, "soft_timeout": 5, "max_runtime": 5},
            "soft_timeout=5.0 leaves no time before max_runtime=5.0: use a smaller value",
        ),
        (
            {"function": work, "pool": "process", "soft_timeout": 3601},
            "soft_timeout=3601.0 leaves no time before max_runtime=3600.0: use a smaller value",
        ),
    ],
)
def test_a_soft_timeout_without_effect_is_refused(
    executor: JobExecutor, transitions: list[Transition], fields: dict[str, Any], message: str
) -> None:
    """A soft_timeout in a coroutine, or not below max_runtime, is refused."""
    with pytest.raises(InvalidJobError) as caught:
        executor.submit(Job(**fields))
    assert str(caught.value) == message
    assert transitions == []


def test_map_checks_jobs_with_the_settings_filled_in(transitions: list[Transition]) -> None:
    """`map` also refuses fields that conflict with the settings' defaults."""
    config = Settings(job=JobSettings(max_runtime=5))
    with JobExecutor(1, config=config, observers=[transitions.append]) as executor:
        with pytest.raises(InvalidJobError, match=r"soft_timeout=9.0 leaves no time before max_runtime=5.0 of the set"):
            executor.map(work, [1], soft_timeout=9)
        assert transitions == []
        assert [result.value for result in executor.map(work, [1, 2], soft_timeout=4)] == [1, 2]


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (NAN, "rate=nan is not a finite number: use more than 0, or None"),
        (INF, "rate=inf is not a finite number: use more than 0, or None"),
        (True, "rate=True is not a finite number"),
        ("5", "rate='5' is not a finite number"),
        (0, "rate=0 lets no job start: use more than 0, or None"),
        (-1.5, "rate=-1.5 lets no job start: use more than 0, or None"),
    ],
)
def test_an_invalid_rate_is_refused(rate: Any, message: str) -> None:
    """A rate that is not a finite number above 0 is refused."""
    with pytest.raises(ValueError, match=message):
        ToolLimit(rate=rate)


@pytest.mark.parametrize("value", [INF, NAN, True])
@pytest.mark.parametrize("name", ["retry_delay", "backoff_coefficient", "memory_factor"])
def test_a_rule_s_numbers_are_finite(name: str, value: Any) -> None:
    """A retry rule refuses numbers that are infinite, NaN or bools."""
    with pytest.raises(ValueError, match=f"{name}={value} must be .*(number|greater than or equal)"):
        RetryRule(codes=("*",), **{name: value})


@pytest.mark.parametrize("name", ["retry_attempts", "retry_delay", "max_delay", "jitter", "crash_attempts"])
def test_a_policy_s_numbers_are_not_bools(name: str) -> None:
    """A retry policy refuses bools as numbers."""
    with pytest.raises(ValueError, match=f"{name}=True must be a number"):
        RetryPolicy(**{name: True})


AGES = [-5, -0.001, NAN, INF, "1", None, True]


@pytest.mark.parametrize("age", AGES)
def test_an_invalid_age_deletes_no_job(age: Any) -> None:
    """A scheduler's cleanup refuses an invalid age and deletes nothing."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.start()
        try:
            job = Job(function=work)
            await scheduler.job_queue.add_job(job)
            for forget in (scheduler.cleanup_old_jobs, scheduler.job_queue.cleanup_old_jobs):
                with pytest.raises(ValueError, match=f"max_age_hours={age!r} is not an age: use 0 .* or more"):
                    await forget(age)
            assert await scheduler.get_all_jobs() == [job]
        finally:
            scheduler.close()

    asyncio.run(main())


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("url", ["memory:", "sqlite:///{}/jobs.db"])
def test_a_store_refuses_an_invalid_age(tmp_path: Path, url: str, age: Any) -> None:
    """A store's cleanup refuses an invalid age."""
    store = open_store(url.format(tmp_path))
    try:
        with pytest.raises(ValueError, match=f"max_age_hours={age!r} is not an age: use 0 .* or more"):
            store.cleanup(age)
    finally:
        store.close()


def test_a_very_large_age_is_accepted() -> None:
    """An age of a hundred million years is accepted and deletes nothing."""
    scheduler = CollectionScheduler(config=Settings())
    assert asyncio.run(scheduler.cleanup_old_jobs(1e12)) == 0
