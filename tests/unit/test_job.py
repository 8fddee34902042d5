"""Tests of Job: the fields that it accepts and the states that it passes through."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import pydoc
import sys
import time
from typing import Any
from uuid import RFC_4122, UUID

import pytest

import executor_adapter
from executor_adapter import ErrorCode, Job, JobResult, JobStatus, RetryPolicy
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.ids import Uuid7Generator, uuid7
from executor_adapter.job.results import JobResults
from executor_adapter.job.status import LEGAL_TRANSITIONS


def work() -> None: ...


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": 3}, "3 is not callable"),
        ({"function": "no_colon"}, "'no_colon' is not callable"),
        ({"function": work, "max_runtime": -1}, "greater than 0"),
        ({"function": work, "max_runtime": float("nan")}, "finite"),
        ({"function": work, "retry_attempts": -1}, "greater than or equal to 0"),
        ({"function": work, "retry_delay": float("inf")}, "finite"),
        ({"function": work, "memory_limit": "512 potatoes"}, "'512 potatoes' is not a size"),
        ({"function": work, "memory_limit": 0}, "0 bytes is too little for a Python process: pass at least 8 MiB"),
        (
            {"function": work, "memory_limit": 512},
            "512 bytes is too little for a Python process: pass at least 8 MiB, or .*'512MiB'",
        ),
        (
            {"function": work, "memory_limit": "7MiB"},
            "memory_limit='7MiB'.* 7 MiB is too little for a Python process: pass at least 8 MiB",
        ),
        ({"function": work, "memory_limit": True}, "memory_limit=True must be a number"),
        (
            {"function": work, "memory_limit": "9" * 400 + "GiB"},
            "'9+' is more memory than any machine has: leave the limit out",
        ),
        ({"function": work, "max_runtime": True}, "max_runtime=True must be a number"),
        ({"function": work, "retry_delay": False}, "retry_delay=False must be a number"),
        ({"function": work, "retry_attempts": True}, "retry_attempts=True must be a number"),
        ({"function": work, "priority": True}, "priority=True must be a number"),
        (
            {"function": work, "pool": "swimming"},
            "pool='swimming' must be 'auto', 'coroutine', 'thread', 'process', 'ssh', 'dask' or 'ray'",
        ),
        (
            {"function": work, "pool": "slurm"},
            "pool='slurm' must be 'auto', 'coroutine', 'thread', 'process', 'ssh', 'dask' or 'ray'",
        ),
        ({"function": work, "job_id": ""}, "at least 1 character"),
        ({"function": work, "max_runtme": 3}, "max_runtme"),
        ({}, "function"),
    ],
)
def test_an_invalid_field_is_rejected(fields: dict[str, Any], message: str) -> None:
    """An invalid field is rejected with a message that names the value."""
    with pytest.raises(InvalidJobError, match=message):
        Job(**fields)


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 * 2**20), ("1.5 GB", 1_500_000_000), ("10000000", 10_000_000), (2**30, 2**30)]
)
def test_sizes_have_units(text: Any, size: int) -> None:
    """A memory limit can be given in bytes or with a unit."""
    assert Job(function=work, memory_limit=text).memory_limit == size


def test_none_means_no_limit() -> None:
    """None means no memory limit."""
    assert Job(function=work, memory_limit=None, max_runtime=None).memory_limit is None


@pytest.mark.parametrize("before", JobStatus)
@pytest.mark.parametrize("after", JobStatus)
def test_only_legal_transitions_are_made(before: JobStatus, after: JobStatus) -> None:
    """`advance` makes the legal transitions and rejects all others."""
    job = Job(function=work)
    job.state.status = before
    if after in LEGAL_TRANSITIONS[before]:
        job.advance(after)
        assert job.status is after
    else:
        with pytest.raises(InvalidJobError, match=f"is {before}: it cannot become {after}"):
            job.advance(after)


def test_times_are_aware_and_ordered() -> None:
    """Times of a job have a time zone, and its duration is measured from start to end."""
    job = Job(function=work)
    assert (job.started_at, job.completed_at, job.duration) == (None, None, None)
    job.advance(JobStatus.RUNNING, ago=2.0)
    job.advance(JobStatus.COMPLETED)
    assert job.completed_at is not None
    assert job.completed_at.tzinfo is not None
    assert job.duration is not None
    assert job.duration >= 2.0


@pytest.mark.parametrize("set_by", [3600.0, -3600.0])
def test_setting_the_wall_clock_changes_no_duration(monkeypatch: pytest.MonkeyPatch, set_by: float) -> None:
    """The duration of a job, while it runs and when it has ended, is what has passed, however the clock is set."""
    job = Job(function=work)
    job.advance(JobStatus.RUNNING)
    monkeypatch.setattr("executor_adapter.job.model.running_clock", lambda: (job.state.began or 0.0) + 0.5)
    monkeypatch.setattr(time, "time", lambda: job.created_at.timestamp() + set_by)
    assert job.duration == pytest.approx(0.5)
    job.advance(JobStatus.COMPLETED)
    assert job.duration == pytest.approx(0.5)


def test_states_and_codes_are_strings() -> None:
    """Statuses and error codes are equal to their strings."""
    assert JobStatus.COMPLETED == "completed"
    assert f"{JobStatus.FAILED}" == "failed"
    assert ErrorCode.TIMEOUT_ERROR == "TIMEOUT_ERROR"


def test_equality_is_identity() -> None:
    """Two jobs with the same id are not equal."""
    job = Job(function=work)
    assert job != Job(function=work, job_id=job.job_id)
    assert {job: 1}[job] == 1


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        Job.model_copy,
        lambda job: Job.model_construct(**dict(job)),
        lambda job: Job.model_validate(dict(job)),
        *(
            lambda job, protocol=each: pickle.loads(pickle.dumps(job, protocol))
            for each in (0, 2, pickle.DEFAULT_PROTOCOL)
        ),
    ],
)
def test_a_copy_is_a_new_job(copied: Any) -> None:
    """A copy has the fields of its job and starts as PENDING."""
    job = Job(function=work, kwargs={"a": 1})
    job.advance(JobStatus.RUNNING)
    assert copied(job).status is JobStatus.PENDING
    assert copied(job).kwargs == {"a": 1}


def test_jobs_share_the_names_of_their_fields() -> None:
    """The values of a job take a third of the memory of a dict that holds their names too: a million may be queued."""
    for job in (Job(function=work, priority=3), Job(function=work).model_copy()):
        assert vars(job).keys() == Job.model_fields.keys()
        assert sys.getsizeof(vars(job)) < 0.4 * sys.getsizeof(dict(vars(job).items()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_runtime", -5, "max_runtime=-5 must be greater than 0"),
        ("memory_limit", 512, "512 bytes is too little for a Python process: pass at least 8 MiB"),
        ("pool", "swimming", "pool='swimming' must be .*'coroutine', 'thread', 'process', 'ssh', 'dask' or 'ray'"),
        ("function", 3, "3 is not callable: pass a function"),
        ("job_id", "", "at least 1 character"),
    ],
)
def test_an_assigned_field_is_checked(field: str, value: Any, message: str) -> None:
    """An invalid value is rejected in an assignment and in a copy, and the job stays as it was."""
    job = Job(function=work)
    before = getattr(job, field)
    with pytest.raises(InvalidJobError, match=message):
        setattr(job, field, value)
    with pytest.raises(InvalidJobError, match=message):
        job.model_copy(update={field: value})
    assert getattr(job, field) == before


def test_an_assigned_field_is_converted() -> None:
    """A field that is assigned or copied is converted as at construction."""
    job = Job(function=work)
    state = job.state
    job.memory_limit = "512MiB"  # type: ignore[assignment]
    assert (job.memory_limit, job.state) == (512 * 2**20, state)
    copied = job.model_copy(update={"memory_limit": "1GiB", "job_id": "another"})
    assert (copied.memory_limit, copied.job_id, job.job_id != "another") == (2**30, "another", True)
    assert copied.model_fields_set == {"function", "memory_limit", "job_id"}


@pytest.mark.parametrize("name", ["max_runtme", "status", "state", "live"])
def test_a_copy_rejects_unknown_fields(name: str) -> None:
    """A copy rejects names that are not fields of Job."""
    with pytest.raises(InvalidJobError, match=f"'{name}' is not a field of Job: "):
        Job(function=work).model_copy(update={name: 3})


def test_the_closest_field_is_suggested() -> None:
    """The message about an unknown field suggests the closest field."""
    with pytest.raises(InvalidJobError, match=r"'max_runtme' is not a field of Job: did you mean max_runtime\?"):
        Job(function=work).model_copy(update={"max_runtme": 3})


def test_a_function_is_serialised_as_its_reference() -> None:
    """A job is serialised with the reference of its function."""
    assert json.loads(Job(function=json.loads).model_dump_json())["function"] == "json:loads"
    assert Job(function=functools.partial(json.loads, "1")).model_dump()["function"] == "json:loads"
    assert Job(function="json:loads").model_dump()["function"] == "json:loads"


def test_the_policy_is_made_of_two_fields_unless_given() -> None:
    """The policy is made from retry_attempts and retry_delay unless `retry` is given."""
    assert Job(function=work, retry_attempts=1, retry_delay=2.0).policy == RetryPolicy(
        retry_attempts=1, retry_delay=2.0
    )
    policy = RetryPolicy(retry_attempts=7)
    assert Job(function=work, retry=policy).policy is policy


def test_ids_sort_by_age_and_are_version_7() -> None:
    """Generated ids are UUIDs of version 7, of which no two are equal, and which sort in the order they were made."""
    ids = [uuid7() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert all(id_[14] == "7" and UUID(id_).variant == RFC_4122 for id_ in ids)


def test_generators_of_ids_share_nothing() -> None:
    """Ids of two processes made at the same time differ, also before the last digits, which count."""
    first, second = (Uuid7Generator()() for _ in range(2))
    assert first[15:30] != second[15:30]


def test_the_public_names_are_exported() -> None:
    """The package exports the documented names, and an unknown one raises AttributeError."""
    assert set(executor_adapter.__all__) >= {
        "Job", "JobStatus", "ErrorCode", "JobResult", "JobExecutor", "JobQueue", "JobContext", "RetryPolicy",
        "RetryRule", "current_job",
    }  # fmt: skip
    assert all(getattr(executor_adapter, name) is not None for name in executor_adapter.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Jobb'"):
        executor_adapter.Jobb  # noqa: B018


def test_each_field_is_described_where_people_look() -> None:
    """The JSON schema describes each field, and `help(Job)` does so too."""
    properties = Job.model_json_schema()["properties"]
    assert [name for name in Job.model_fields if not properties[name].get("description")] == []
    shown = pydoc.render_doc(Job, renderer=pydoc.plaintext)
    assert "max_runtime: Seconds that one attempt may run. A hard limit" in shown


def test_a_number_may_be_text() -> None:
    """Numbers come as text from the environment; a job takes it as the number."""
    job = Job(function=work, max_runtime="60", retry_attempts="2")  # type: ignore[arg-type]
    assert (job.max_runtime, job.retry_attempts) == (60.0, 2)


def test_a_result_is_shown_whose_values_own_code_fails() -> None:
    """A notebook shows a result also where the repr of its value raises."""

    class Unshowable:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    result = JobResult(job_id="its-id", status=JobStatus.COMPLETED, value=[Unshowable()])
    assert "Unshowable instance" in JobResults([result])._repr_html_()
