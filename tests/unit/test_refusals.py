"""What can never work is refused where it is asked for, with the value and the way out, and nothing is started."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy, RetryRule
from executor_adapter.config import JobSettings, Settings
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.model import check_are_jobs
from executor_adapter.job.transition import Transition
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler
from executor_adapter.store import open_store
from executor_adapter.supervision.rate_limiter import ToolLimit

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
def told() -> list[Transition]:
    """What the executor said of its jobs."""
    return []


@pytest.fixture
def executor(told: list[Transition]) -> Iterator[JobExecutor]:
    with JobExecutor(1, config=Settings(), observers=[told.append]) as executor:
        yield executor


@pytest.mark.parametrize("submit", ["submit", "run"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (work, r"<function work at \w+> is not a Job: make one, Job\(function=work, args=\(...\)\)"),
        ("tests:work", r"'tests:work' is not a Job: make one, Job\(function=work, args=\(...\)\)"),
        (None, "None is not a Job: make one"),
    ],
)
def test_what_is_no_job_is_not_run(
    executor: JobExecutor, told: list[Transition], submit: str, given: Any, said: str
) -> None:
    with pytest.raises(InvalidJobError, match=said):
        getattr(executor, submit)(given)
    assert told == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Job(function=work, job_id="one"), r"job one is a single Job: pass a list, \[job\]"),
        (work, "<function work at .*> is not iterable: pass a list or an iterator of Jobs"),
        (3, "3 is not iterable: pass a list"),
    ],
)
def test_what_holds_no_jobs_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InvalidJobError, match=said):
        check_are_jobs(given)


def test_what_may_hold_jobs_is_left_to_be_drawn() -> None:
    """Nothing is taken from an iterator."""
    drawn = iter([Job(function=work)])
    check_are_jobs(drawn)
    check_are_jobs([])
    assert len(list(drawn)) == 1


def test_what_is_no_job_is_not_queued() -> None:
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
    told: list[Transition],
    function: Any,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Called, it would "complete" without having run a line."""
    (tmp_path / "numbers_of_mine.py").write_text("def numbers():\n    yield 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InvalidJobError, match=r"is a generator function: .* Have it return a list, or submit a function"
    ):
        executor.submit(Job(function=function, pool=pool))
    assert told == []


@pytest.mark.parametrize("function", [len, int, functools.partial(work, 1), "builtins:len"])
def test_other_functions_are_no_generators(executor: JobExecutor, function: Any) -> None:
    args = ((),) if function in (len, "builtins:len") else ()
    assert executor.run(Job(function=function, args=args)) in (0, 1)


def test_an_id_that_is_live_is_taken_until_a_copy_has_its_own(executor: JobExecutor) -> None:
    """What each of the two messages advises works."""
    job = Job(function=work, args=(1,), queue_timeout=60, tool_name="held")
    held = JobExecutor(1, config=Settings(), tool_limits={"held": ToolLimit(rate=1e-3, buffer=0)})
    try:
        held.submit(job.model_copy(update={"job_id": "first"})).result(timeout=20)
        held.submit(job)  # it waits for its tool
        with pytest.raises(InvalidJobError, match=r"submitted already: .*job.model_copy\(update={'job_id': ...}\)"):
            held.submit(job)
        with pytest.raises(InvalidJobError, match=r"is live already: .*job.model_copy\(update={'job_id': ...}\)"):
            held.submit(job.model_copy())
        assert executor.run(job.model_copy(update={"job_id": "another", "tool_name": None})) == 1
    finally:
        held.shutdown(timeout=0)


COUNTS = [
    (0, "=0 {}: use at least 1"),
    (-1, "=-1 {}: use at least 1"),
    (2.5, "=2.5 is not a whole number: use 1 or more"),
    (True, "=True is not a whole number: use 1 or more"),
    ("3", "='3' is not a whole number: use 1 or more"),
]


@pytest.mark.parametrize(("value", "said"), COUNTS)
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
def test_what_is_no_count_is_refused(
    name: str, too_few: str, make: Callable[[Any], Any], value: Any, said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        make(value)
    assert str(caught.value).startswith(name + said.format(too_few))


@pytest.mark.parametrize(("value", "said"), [*COUNTS, (NAN, "=nan is not a whole number: use 1 or more")])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_window_that_lets_no_job_start_is_refused_when_map_is_called(
    executor: JobExecutor, told: list[Transition], value: Any, said: str, ordered: bool
) -> None:
    with pytest.raises(ValueError) as caught:
        executor.map(work, [1], window=value, ordered=ordered)
    assert str(caught.value).startswith("window" + said.format("lets no job start"))
    assert told == []


@pytest.mark.parametrize(
    ("function", "fields", "said"),
    [
        (work, {"pool": "x"}, "'coroutine', 'thread' or 'process' .*input_value='x'"),
        (work, {"max_runtime": -1}, "greater than 0 .*input_value=-1"),
        (work, {"max_runtme": 1}, "max_runtme"),
        (work, {"memory_limit": "1GiB"}, "memory_limit needs a process of its own, .*: pool='process'"),
        (work, {"job_id": "a"}, "job_id='a' cannot be that of each job: leave it out"),
        (work, {"args": (1,)}, r"args=\(1,\) cannot be that of each job: leave it out"),
        (work, {"dedupe_key": "k"}, "dedupe_key='k' makes one job of all that are live: leave it out, or submit jobs"),
        (takes_none, {}, "takes_none cannot be called with the args and kwargs of the job: too many positional"),
        (work, {"kwargs": {"value": 1}}, "work cannot be called .*: multiple values for argument 'value'"),
        (generates, {}, "is a generator function"),
        ("nowhere:work", {}, "'nowhere:work' cannot be imported"),
        (3, {}, "3 is not callable: pass a function"),
    ],
)
def test_what_no_job_of_a_map_can_be_is_refused_when_map_is_called(
    executor: JobExecutor, told: list[Transition], function: Any, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        executor.map(function, [1, 2], **fields)
    assert told == []


def test_a_map_s_jobs_may_say_that_they_have_no_twin(executor: JobExecutor) -> None:
    assert [result.value for result in executor.map(work, [1, 2], dedupe_key=None)] == [1, 2]


@pytest.mark.parametrize(
    ("job", "said"),
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
def test_arguments_that_no_call_takes_are_refused(
    executor: JobExecutor, told: list[Transition], job: Job, said: str
) -> None:
    """A retry would only find that again."""
    with pytest.raises(InvalidJobError, match=said):
        executor.submit(job)
    assert told == []


class GivesArguments(JobExecutor):
    async def execute_job(self, job: Job) -> Any:
        return await job.function(sum(job.args))


def test_who_calls_the_function_himself_may_give_it_what_it_takes() -> None:
    with GivesArguments(1, config=Settings()) as executor:
        assert executor.run(Job(function=takes_one_on_loop)) == 0
        assert [result.value for result in executor.map(takes_one_on_loop, [3, 4], [5, 6])] == [8, 10]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"function": takes_one_on_loop, "args": (1,), "soft_timeout": 5},
            "soft_timeout=5.0 cannot be kept in pool='coroutine': choose 'thread' or 'process'",
        ),
        (
            {"function": work, "soft_timeout": 5, "max_runtime": 5},
            "soft_timeout=5.0 leaves no time before max_runtime=5.0: give less",
        ),
        (
            {"function": work, "pool": "process", "soft_timeout": 3601},
            "soft_timeout=3601.0 leaves no time before max_runtime=3600.0: give less",
        ),
    ],
)
def test_a_soft_timeout_that_cannot_be_kept_is_refused(
    executor: JobExecutor, told: list[Transition], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidJobError) as caught:
        executor.submit(Job(**fields))
    assert str(caught.value) == said
    assert told == []


def test_map_asks_the_settings_too(told: list[Transition]) -> None:
    """What they give to jobs counts in what is refused at once."""
    config = Settings(job=JobSettings(max_runtime=5))
    with JobExecutor(1, config=config, observers=[told.append]) as executor:
        with pytest.raises(InvalidJobError, match=r"soft_timeout=9.0 leaves no time before max_runtime=5.0 of the set"):
            executor.map(work, [1], soft_timeout=9)
        assert told == []
        assert [result.value for result in executor.map(work, [1, 2], soft_timeout=4)] == [1, 2]


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (NAN, "rate=nan is not a finite number: use more than 0, or None"),
        (INF, "rate=inf is not a finite number: use more than 0, or None"),
        (True, "rate=True is not a finite number"),
        ("5", "rate='5' is not a finite number"),
        (0, "rate=0 lets no job start: use more than 0, or None"),
        (-1.5, "rate=-1.5 lets no job start: use more than 0, or None"),
    ],
)
def test_a_rate_that_no_clock_can_keep_is_refused(rate: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ToolLimit(rate=rate)


@pytest.mark.parametrize("value", [INF, NAN, True])
@pytest.mark.parametrize("name", ["retry_delay", "backoff_coefficient", "memory_factor"])
def test_a_rule_s_numbers_are_finite(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}\n.*(number|greater than or equal).*input_value={value}"):
        RetryRule(codes=("*",), **{name: value})


@pytest.mark.parametrize("name", ["retry_attempts", "retry_delay", "max_delay", "jitter", "crash_attempts"])
def test_a_policy_s_numbers_are_no_truths(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}\n.*must be a number.*input_value=True"):
        RetryPolicy(**{name: True})


AGES = [-5, -0.001, NAN, INF, "1", None, True]


@pytest.mark.parametrize("age", AGES)
def test_an_age_that_is_none_forgets_no_job(age: Any) -> None:
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
def test_a_store_forgets_no_job_of_no_age(tmp_path: Path, url: str, age: Any) -> None:
    store = open_store(url.format(tmp_path))
    try:
        with pytest.raises(ValueError, match=f"max_age_hours={age!r} is not an age: use 0 .* or more"):
            store.cleanup(age)
    finally:
        store.close()


def test_an_age_that_no_job_has_forgets_none() -> None:
    """However long: a hundred million years are not past the end of the calendar."""
    scheduler = CollectionScheduler(config=Settings())
    assert asyncio.run(scheduler.cleanup_old_jobs(1e12)) == 0
