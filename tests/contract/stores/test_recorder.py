"""The recorder: what is stored of an executor's jobs, and which jobs are refused."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.config import Settings
from executor_adapter.exceptions import InvalidJobError, JobSerializationError
from executor_adapter.job import Progress
from executor_adapter.store import JobStore, SignedPickles
from executor_adapter.store.sql.rows import MAX_ERROR_LENGTH, MAX_INTEGER
from tests.contract.stores import store_jobs
from tests.contract.stores.conftest import MakeStored, record_in, wait_for_end
from tests.waiting import PATIENCE, wait_for

ENDLESS: list[Any] = []
ENDLESS += [{"a": 1}, ENDLESS, ENDLESS]


def test_a_shutdown_records_every_end(make_stored: MakeStored, store: JobStore) -> None:
    """After a shutdown the store has the end of every job, with its times, error and attempts."""
    with make_stored() as executor:
        good = [executor.submit(Job(function=store_jobs.give, args=(n,))).job for n in range(700)]
        bad = Job(
            function=store_jobs.lose_connection, tool_name="radar", retry=RetryPolicy(retry_attempts=1, retry_delay=0)
        )
        executor.submit(bad)
    assert store.counts() == dict.fromkeys(JobStatus, 0) | {JobStatus.COMPLETED: 700, JobStatus.FAILED: 1}
    record = record_in(store, good[0].job_id)
    assert (record.completed_at, record.started_at) == (good[0].state.completed_at, good[0].state.started_at)
    record = record_in(store, bad.job_id)
    assert (record.error_code, record.error_message, record.tool_name) == (
        "NETWORK_ERROR",
        "ConnectionError: on purpose",
        "radar",
    )
    assert record.attempts == bad.attempts
    assert len(record.attempts) == 2


def test_a_job_is_restored_from_its_record(make_stored: MakeStored, store: JobStore) -> None:
    """A job restored from its record equals the original, and cannot be submitted again."""
    policy = RetryPolicy(retry_attempts=1, retry_delay=0.0, crash_attempts=7)
    job = Job(
        function=store_jobs.fail, kwargs={"code": 7}, max_runtime=5, priority=3, metadata={"a": [1]}, retry=policy
    )
    with make_stored() as executor:
        executor.submit(job)
    again = record_in(store, job.job_id).to_job()
    assert again.model_dump() == job.model_dump() | {"function": "tests.contract.stores.store_jobs:fail"}
    for name in ("status", "attempt", "attempts", "started_at", "completed_at", "duration", "error_code"):
        assert getattr(again, name) == getattr(job, name), name
    with make_stored() as executor, pytest.raises(InvalidJobError, match="submitted already"):
        executor.submit(again)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": lambda: None}, "cannot be stored: another process would not find it"),
        ({"function": store_jobs.give, "args": ({1, 2},)}, "argument 1 cannot be stored as JSON: it holds a set"),
        ({"function": store_jobs.give, "kwargs": {"value": [{"a": (1,)}]}}, "argument 'value' .* holds a tuple"),
        ({"function": store_jobs.give, "args": ({1: 2},)}, "argument 1 .* the key 1"),
        ({"function": store_jobs.give, "args": (float("nan"),)}, "argument 1 .* nan"),
        ({"function": store_jobs.give, "metadata": {"a": object()}}, "metadata cannot be stored: it holds a object"),
        (
            {"function": store_jobs.give, "args": (ENDLESS,)},
            "argument 1 .* nest more than 200 deep, perhaps in themselves",
        ),
        ({"function": store_jobs.give, "metadata": {"a": ENDLESS}}, "metadata cannot be stored: .* nest more than 200"),
        ({"function": store_jobs.give, "tool_name": "\udcff"}, "tool_name=.* cannot be stored"),
        ({"function": store_jobs.give, "job_id": "a\0"}, "job_id=.* cannot be stored"),
    ],
)
def test_jobs_that_another_process_could_not_run_are_refused(
    make_stored: MakeStored, fields: dict[str, Any], message: str
) -> None:
    """A job that cannot be stored is refused at submit, with the reason, and leaves nothing behind."""
    executor = make_stored()
    with pytest.raises(InvalidJobError, match=message):
        executor.submit(Job(**fields))
    assert executor.jobs() == []
    assert executor.flush(PATIENCE)


def test_arguments_are_not_pickled_unless_asked(make_stored: MakeStored, store: JobStore) -> None:
    """Arguments are stored as JSON, and pickled only with the setting `pickle_arguments`."""
    with make_stored() as executor:
        plain = executor.submit(Job(function=store_jobs.give, args=(1,))).job
    assert record_in(store, plain.job_id).pickled is None
    assert record_in(store, plain.job_id).arguments == ([1], {})
    with make_stored(settings={"pickle_arguments": True, "pickle_key": "k" * 32}) as executor:
        asked = executor.submit(Job(function=lambda value: len(value), args=({1, 2},))).job
    record = record_in(store, asked.job_id)
    assert record.arguments is None
    assert record.pickled is not None
    assert SignedPickles(["k" * 32]).load(record.pickled)[1] == ({1, 2},)
    assert record.to_job().args == ()  # Reading loads no pickle.


def test_arguments_that_cannot_be_pickled_are_refused(make_stored: MakeStored) -> None:
    """With `pickle_arguments`, what cannot be pickled is refused at submit, in words."""
    executor = make_stored(settings={"pickle_arguments": True, "pickle_key": "k" * 32})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, threading.Lock()):
        with pytest.raises(JobSerializationError, match=r"of job .* cannot be pickled: .*: pass something"):
            executor.submit(Job(function=store_jobs.give, args=(value,)))
    assert executor.jobs() == []


def test_a_result_is_not_stored(make_stored: MakeStored, url: str, tmp_path: Path) -> None:
    """A job's result is not written to the store."""
    secret = "correct horse battery staple"
    with make_stored() as executor:
        assert executor.run(Job(function=store_jobs.backwards, args=(secret[::-1],))) == secret
    if url.startswith("sqlite"):
        assert all(secret.encode() not in file.read_bytes() for file in tmp_path.glob("jobs.db*"))


def test_a_memory_store_takes_any_job() -> None:
    """A store in memory takes any function and arguments, because no other process runs the job."""
    with JobExecutor(2, config=Settings(), store="memory:") as executor:
        store = executor.store
        assert store is not None
        job = executor.submit(Job(function=lambda value: value, args=({1},))).job
        executor.flush()
        record = record_in(store, job.job_id)
        assert record.to_job() is job
    assert record_in(store, job.job_id).status is JobStatus.COMPLETED


def test_a_running_job_is_recorded_with_its_progress(make_stored: MakeStored, store: JobStore, tmp_path: Path) -> None:
    """Other processes see within seconds that a job runs, and its progress."""
    executor = make_stored()
    job = executor.submit(Job(function=store_jobs.report, args=(5, str(tmp_path / "go")))).job
    wait_for(lambda: (record := store.get(job.job_id)) is not None and record.status is JobStatus.RUNNING)
    wait_for(lambda: record_in(store, job.job_id).progress is not None)
    record = record_in(store, job.job_id)
    assert record.progress is not None
    assert (record.progress.done, record.progress.total, record.progress.message) == (5, 10, "half way")
    (tmp_path / "go").touch()
    assert wait_for_end(store, job.job_id).status is JobStatus.COMPLETED


def test_another_process_can_cancel_a_job(make_stored: MakeStored, store: JobStore, tmp_path: Path) -> None:
    """A cancel request in the store ends the job within seconds."""
    executor = make_stored()
    job = executor.submit(Job(function=store_jobs.wait_for_file, args=(str(tmp_path / "never"),))).job
    assert executor.flush()
    assert store.request_cancel(job.job_id)
    record = wait_for_end(store, job.job_id)
    assert (record.status, record.error_code) == (JobStatus.CANCELLED, "CANCELLED")


def test_an_idle_recorder_does_not_wake_up(make_stored: MakeStored) -> None:
    """The recorder's thread of an idle executor does not wake up."""
    executor = make_stored()
    executor.run(Job(function=store_jobs.give, args=(1,)))
    assert executor.flush()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "executor-recorder"]
    wait_for(lambda: _switches(thread.native_id) == (time.sleep(0.1), _switches(thread.native_id))[1])
    before = _switches(thread.native_id)
    time.sleep(1.5)
    assert _switches(thread.native_id) == before


def _switches(thread_id: int | None) -> int:
    status = Path(f"/proc/self/task/{thread_id}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary"))


def test_the_end_of_a_job_is_stored_whatever_it_made(
    make_stored: MakeStored, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a record that no database can hold the end is stored, so that the job never runs again."""
    executor = make_stored()
    jobs = [Job(function=store_jobs.give, args=(n,)) for n in range(5)]
    jobs[2].state.progress = Progress(object())  # type: ignore[arg-type]
    jobs[3].state.records_processed = 10**30
    for job in jobs:
        executor.submit(job)
    for job in jobs:
        assert wait_for_end(store, job.job_id).status is JobStatus.COMPLETED
    assert executor.flush(PATIENCE)
    assert record_in(store, jobs[2].job_id).progress is None
    assert record_in(store, jobs[3].job_id).records_processed == MAX_INTEGER
    odd = [record.job_id for record in caplog.records if "cannot be stored as it is" in record.message]  # type: ignore[attr-defined]
    assert set(odd) == {jobs[2].job_id}


def test_a_retry_of_that_is_no_text_is_metadata_alone(make_stored: MakeStored, store: JobStore) -> None:
    """A user's own `retry_of`, of another type than an id's, is stored as metadata and as nothing else."""
    with make_stored() as executor:
        job = executor.submit(Job(function=store_jobs.give, args=(1,), metadata={"retry_of": 1234})).job
    record = record_in(store, job.job_id)
    assert (record.status, record.metadata, record.retry_of) == (JobStatus.COMPLETED, {"retry_of": 1234}, None)


def test_a_job_without_a_row_is_not_taken_for_one_of_another_host(
    make_stored: MakeStored, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A job whose first record no database can hold runs on, although a later change of it finds no row."""
    executor = make_stored()
    job = Job(function=store_jobs.wait_for_file, args=(str(tmp_path / "go"),))
    job.state.crashes = 10**30
    future = executor.submit(job)
    wait_for(lambda: "is not in the store" in caplog.text and job.status is JobStatus.RUNNING)
    assert executor.flush(PATIENCE)
    job.state.crashes = 0
    (tmp_path / "go").touch()
    assert future.result(PATIENCE) is None
    assert executor.flush(PATIENCE)
    assert "another host" not in caplog.text


def test_errors_of_any_size_and_characters_are_stored(make_stored: MakeStored, store: JobStore) -> None:
    """A message of a million characters is cut, with its length; codes and messages that are not text are replaced."""
    executor = make_stored()
    jobs = [
        Job(function=store_jobs.fail_with, args=("x" * 1_000_000, "LONG"), retry_attempts=0),
        Job(function=store_jobs.fail_with, args=("caf\udce9\0", "CODE\udce9\0"), retry_attempts=0),
    ]
    for job in jobs:
        executor.submit(job)
    long, odd = (wait_for_end(store, job.job_id) for job in jobs)
    assert long.error_message is not None
    assert len(long.error_message) < MAX_ERROR_LENGTH + 100
    assert long.error_message.endswith("x... (1,000,000 characters)")
    assert long.attempts[0].error_message == long.error_message
    assert (odd.status, odd.error_code, odd.error_message) == (JobStatus.FAILED, "CODE?\ufffd", "caf?\ufffd")


@pytest.mark.parametrize("ends", [False, True], ids=["live", "ended"])
def test_a_refused_second_submit_changes_nothing(
    make_stored: MakeStored, store: JobStore, tmp_path: Path, ends: bool
) -> None:
    """A job that is submitted again, while it is live or just ended, is refused, and runs and is recorded as before."""
    executor = make_stored()
    go = tmp_path / "go"
    jobs = [Job(function=store_jobs.wait_for_file, args=(str(go),)) for _ in range(20)]
    if ends:
        go.touch()
    futures = []
    for job in jobs:
        futures.append(executor.submit(job))
        if ends:
            futures[-1].result()
        with pytest.raises(InvalidJobError, match="was submitted already"):
            executor.submit(job)
    go.touch()
    for future in futures:
        future.result()
    assert executor.flush()
    assert store.counts() == dict.fromkeys(JobStatus, 0) | {JobStatus.COMPLETED: 20}


def test_a_job_made_before_another_with_its_id_has_ended_runs(make_stored: MakeStored, store: JobStore) -> None:
    """A job may be made before another one with its id, and submitted to another executor once that one has ended."""
    job = Job(function=store_jobs.give, args=("late",), job_id="daily")
    other = make_stored()
    other.run(Job(function=store_jobs.give, args=("early",), job_id="daily"))
    assert other.flush()
    executor = make_stored()
    assert executor.run(job) == "late"
    assert executor.flush()
    record = record_in(store, "daily")
    assert (record.status, record.created_at) == (JobStatus.COMPLETED, job.state.created_at)
