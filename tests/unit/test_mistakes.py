"""Tests of mistakes: each is answered in one line with the mistake, the nearest right thing and the way out."""

from __future__ import annotations

import asyncio
import datetime
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from executor_adapter import Job, JobExecutor, RetryPolicy, RetryRule
from executor_adapter.config import JobSettings, Settings
from executor_adapter.exceptions import ConfigurationError, InvalidJobError
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler
from executor_adapter.store import open_store


def f(x: Any = None) -> Any:
    return x


@pytest.fixture(scope="module")
def executor() -> JobExecutor:
    return JobExecutor(1, config=Settings())  # It starts nothing until it gets a job.


CALLS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("map_field", lambda ex: ex.map(f, [1], max_runtim=1), InvalidJobError,
     "'max_runtim' is not a field of Job: did you mean max_runtime?"),
    ("job_by_position", lambda _: Job(f, (1,)), TypeError,  # type: ignore[misc]
     "Job takes its fields by name: write Job(function=f, args=(1,))"),
    ("job_arguments", lambda _: Job(f, 1, 2, pool="thread"), TypeError,  # type: ignore[misc]
     "Job takes its fields by name: write Job(function=f, args=(1, 2), pool='thread')"),
    ("job_field", lambda _: Job(max_runtim=1), InvalidJobError,
     "'max_runtim' is not a field of Job: did you mean max_runtime?; function is missing: give function=..."),
    ("job_celery", lambda _: Job(function=f, time_limit=1), InvalidJobError,
     "'time_limit' is not a field of Job: did you mean max_runtime?"),
    ("job_pool", lambda _: Job(function=f, pool="proces"), InvalidJobError,  # type: ignore[arg-type]
     "pool='proces' must be 'auto', 'coroutine', 'thread', 'process', 'ssh', 'dask' or 'ray': did you mean 'process'?"),
    ("job_minutes", lambda _: Job(function=f, max_runtime="5m"), InvalidJobError,  # type: ignore[arg-type]
     "max_runtime='5m' must be a number of seconds: give 300"),
    ("job_timedelta", lambda _: Job(function=f, retry_delay=datetime.timedelta(minutes=2)),  # type: ignore[arg-type]
     InvalidJobError, "retry_delay=datetime.timedelta(seconds=120) must be a number of seconds: give 120"),
    ("job_args", lambda _: Job(function=f, args=5), InvalidJobError,  # type: ignore[arg-type]
     "args=5 must be a tuple: (5,)"),
    ("job_nested", lambda _: Job(function=f, retry={"attempts": 3}), InvalidJobError,  # type: ignore[arg-type]
     "'retry.attempts' is not a field of RetryPolicy: did you mean retry_attempts?"),
    ("job_several", lambda _: Job(function=3, priority="x"), InvalidJobError,  # type: ignore[arg-type]
     "function=3 is not callable: pass a function or 'package.module:function'; priority='x' must be a whole number"),
    ("job_set", lambda _: setattr(Job(function=f), "max_runtim", 3), InvalidJobError,
     "'max_runtim' is not a field of Job: did you mean max_runtime?"),
    ("job_set_value", lambda _: setattr(Job(function=f), "max_runtime", -3), InvalidJobError,
     "max_runtime=-3 must be greater than 0"),
    ("policy", lambda _: RetryPolicy(attempts=3), InvalidJobError,
     "'attempts' is not a field of RetryPolicy: did you mean retry_attempts?"),
    ("policy_position", lambda _: RetryPolicy(3), TypeError,  # type: ignore[misc]
     "RetryPolicy takes its fields by name: write RetryPolicy(retry_attempts=3)"),
    ("policy_set", lambda _: setattr(RetryPolicy(), "jitter", 0), InvalidJobError,
     "jitter cannot be changed: make another, with model_copy(update={'jitter': ...})"),
    ("rule", lambda _: RetryRule(code=("X",)), InvalidJobError,
     "'code' is not a field of RetryRule: did you mean codes?; codes is missing: give codes=..."),
    ("job_policy", lambda _: Job(function=f, retry=3), InvalidJobError,  # type: ignore[arg-type]
     "retry=3 must be a RetryPolicy"),
    ("settings", lambda _: Settings(executor={"max_worker": 3}), ConfigurationError,  # type: ignore[arg-type]
     "Settings: executor.max_worker is not a key: did you mean max_workers? allowed are capacity, cpu_affinity"),
    ("section", lambda _: JobSettings(timeout=3), ConfigurationError,
     "JobSettings: timeout is not a key: did you mean max_runtime? allowed are deadline"),
    ("store_windows", lambda _: open_store(r"C:\jobs\jobs.db"), ConfigurationError,
     "store.url: 'C:\\\\jobs\\\\jobs.db' is a path on Windows, and this is linux: give 'memory:', 'sqlite:///path'"),
    ("store_path", lambda _: open_store("/var/jobs.db"), ConfigurationError,
     "store.url: '/var/jobs.db' is a path, not a URL: give 'sqlite:////var/jobs.db'"),
    ("store_slashes", lambda _: open_store("sqlite://jobs.db"), ConfigurationError,
     "store.url: 'sqlite://jobs.db' has two slashes: give 'sqlite:///jobs.db'"),
    ("store_name", lambda _: open_store("postgress://me@host/db"), ConfigurationError,
     "store.url: 'postgress' is not a store: did you mean 'postgresql'? give 'memory:'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_a_mistake_is_named_in_one_line(
    executor: JobExecutor, call: Callable[[Any], Any], kind: type[Exception], message: str
) -> None:
    """A wrong call raises one line with the mistake, what was probably meant, and what to write."""
    with pytest.raises(kind) as caught:
        call(executor)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


ADDED: list[tuple[str, Callable[[Any, Any], Any], type[Exception], str]] = [
    ("order", lambda c, p: c.add_manual_job("collect", "radar", f), InvalidJobError,
     "function='radar' is not callable: pass a function or 'package.module:function'; tool_name=f must be a text"),
    ("no_type", lambda c, p: c.add_manual_job(f, "radar"), InvalidJobError,
     "function='radar' is not callable: pass a function or 'package.module:function'; job_type=f must be a text"),
    ("argument", lambda c, p: c.add_manual_job("collect", f, y=1), InvalidJobError,
     "f takes no argument 'y': it takes x"),
    ("option", lambda c, p: c.add_manual_job("collect", f, tool="radar"), InvalidJobError,
     "f takes no argument 'tool': did you mean tool_name?"),
    ("field", lambda c, p: c.add_manual_job("collect", f, max_runtime=5), InvalidJobError,
     "'max_runtime' is a field of Job, not an argument: make a Job with it and give that to job_queue.add_job"),
    ("processing", lambda c, p: p.add_processing_job("collect", f), InvalidJobError,
     "function='collect' is not callable: pass a function or 'package.module:function'; tool_name=f must be a text"),
]  # fmt: skip


@pytest.mark.parametrize(("add", "kind", "message"), [case[1:] for case in ADDED], ids=[case[0] for case in ADDED])
def test_a_wrong_job_is_not_added(add: Callable[[Any, Any], Any], kind: type[Exception], message: str) -> None:
    """A scheduler refuses a wrong call in one line, and keeps no job of it."""
    schedulers = CollectionScheduler(1, config=Settings()), ProcessingScheduler(1, config=Settings())

    async def main() -> None:
        with pytest.raises(kind) as caught:
            await add(*schedulers)
        assert str(caught.value).startswith(message)
        assert [await scheduler.get_all_jobs() for scheduler in schedulers] == [[], []]

    asyncio.run(main())


def test_a_model_inside_another_is_named_by_its_path() -> None:
    """A Job that a model of the user's own holds is refused by pydantic, with the path to the wrong field."""

    class Plan(BaseModel):
        job: Job

    with pytest.raises(ValidationError) as caught:
        Plan.model_validate({"job": {"function": f, "max_runtime": -1}})
    assert caught.value.errors()[0]["loc"] == ("job", "max_runtime")


def test_a_subclass_may_have_its_own_constructor() -> None:
    """The constructor of a user's subclass of Job runs, and its wrong fields are refused in one line too."""

    class Download(Job):
        def __init__(self, url: str, **fields: Any) -> None:
            super().__init__(function=f, args=(url,), **fields)

    assert Download(url="a", max_runtime=5).args == ("a",)
    with pytest.raises(InvalidJobError, match=r"^max_runtime=-1 must be greater than 0$"):
        Download(url="a", max_runtime=-1)


def test_a_job_is_made_copied_and_pickled_as_before() -> None:
    """The checks change nothing for right fields."""
    job = Job(function="builtins:len", args=((),), max_runtime=5)
    assert pickle.loads(pickle.dumps(job)).max_runtime == 5
    assert job.model_copy(update={"max_runtime": 6}).max_runtime == 6
    assert Job.model_validate({"function": f}).function is f


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("attempts", "retry_attempts"),
        ("func", "function"),
        ("memory", "memory_limit"),
        ("retry_delay_seconds", "retry_delay"),
        ("soft_time_limit", "soft_timeout"),
        ("timeout", "max_runtime"),
    ],
)
def test_a_name_of_another_library_leads_to_ours(theirs: str, ours: str) -> None:
    """Names that other libraries have for our options are known, where their spelling does not lead to ours too."""
    with pytest.raises(InvalidJobError, match=f"did you mean {ours}?"):
        Job(function=f, **{theirs: 1})  # type: ignore[arg-type]
