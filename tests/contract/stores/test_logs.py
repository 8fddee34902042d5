"""The logs of jobs: what their functions log and print, in every store and from every pool."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor, current_job
from executor_adapter.config import Settings
from executor_adapter.job.ids import uuid7
from executor_adapter.job.status import JobStatus
from executor_adapter.persistence.log_lines import LogLines
from executor_adapter.store import (
    MAX_LOG_LINES,
    JobRecord,
    JobStore,
    LogLine,
    StoreUnavailableError,
    Written,
    open_store,
)
from executor_adapter.store.host import new_host
from executor_adapter.worker.context import JobContext
from tests.contract.stores.databases import url_of
from tests.waiting import wait_for


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    with url_of(request.param, tmp_path) as url:
        store = open_store(url)
        yield store
        store.close()


def store_job(store: JobStore, job_id: str) -> None:
    """Store a job that finished an hour ago."""
    host = new_host()
    store.register(host, lease=60)
    ended = time.time() - 3600
    record = JobRecord(job_id=job_id, status=JobStatus.COMPLETED, created_at=ended, completed_at=ended)
    store.write(host.host_id, [replace(record, host=host.host_id)], lease=60)


def line(job_id: str, seq: int, text: str = "") -> LogLine:
    return LogLine(job_id, 1, seq, float(seq), logging.INFO, "mine", text or f"line {seq}")


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


# --- the store ---


def test_lines_come_back_as_they_were_written(any_store: JobStore) -> None:
    """A log is read in order, for its own job alone, after a given line or limited to the newest."""
    store_job(any_store, "a")
    store_job(any_store, "b")
    any_store.write_lines([line("a", 1), line("b", 2), line("a", 3), line("a", 4)])
    assert any_store.lines("a") == [line("a", 1), line("a", 3), line("a", 4)]
    assert texts(any_store.lines("a", after=1)) == ["line 3", "line 4"]
    assert texts(any_store.lines("a", limit=2)) == ["line 3", "line 4"]
    assert any_store.lines("nobody") == []


def test_lines_of_several_threads_have_numbers_of_their_own(mocker: MockerFixture) -> None:
    """Two threads that log at once after the clock was set back give their lines different numbers."""
    job = JobContext("a", 1, emit=mocker.Mock())
    lines, store = LogLines({"a": Job(function=str)}), mocker.Mock()
    record = logging.LogRecord("mine", logging.INFO, "", 1, "text", (), None)
    others: list[threading.Thread] = []

    class Past(int):
        """A time at whose comparison another thread logs."""

        def __lt__(self, other: int) -> bool:
            if not others:
                others.append(threading.Thread(target=lines.on_record, args=(record, job)))
                others[0].start()
                others[0].join(0.2)
            return True

    lines.on_record(record, job)
    mocker.patch("time.time_ns", return_value=Past())
    lines.on_record(record, job)
    others[0].join()
    lines.write_to(store)
    numbers = [line.seq for line in store.write_lines.call_args.args[0]]
    assert len(set(numbers)) == 3
    assert numbers == sorted(numbers)


def test_the_newest_lines_stay(any_store: JobStore) -> None:
    """A store keeps the newest lines of each job, however many another job logs."""
    store_job(any_store, "loud")
    store_job(any_store, "quiet")
    any_store.write_lines([line("quiet", 1)])
    for begin in range(0, 2 * MAX_LOG_LINES, 500):
        any_store.write_lines([line("loud", begin + n) for n in range(500)])
    kept = any_store.lines("loud", limit=10 * MAX_LOG_LINES)
    assert (len(kept), kept[0].seq, kept[-1].seq) == (MAX_LOG_LINES, MAX_LOG_LINES, 2 * MAX_LOG_LINES - 1)
    assert len(any_store.lines("quiet")) == 1


def test_cleanup_deletes_the_lines_of_a_job(any_store: JobStore) -> None:
    """Deleting a job deletes its log."""
    store_job(any_store, "old")
    any_store.write_lines([line("old", 1)])
    assert any_store.cleanup(max_age_hours=0.5) == 1
    assert any_store.lines("old") == []


# --- from functions ---


def log_lines(prints: bool) -> None:
    current_job().logger.warning("by the job's logger %s", 1)
    logging.getLogger("library").error("by a library")
    if prints:
        print("printed")


async def log_on_loop(prints: bool) -> None:
    log_lines(prints)


@pytest.mark.parametrize("pool", ["thread", "coroutine", "process"])
def test_what_a_function_logs_is_in_its_job_s_log(any_store: JobStore, pool: str) -> None:
    """A job's log has the records of every logger and, from worker processes, printed lines."""
    with JobExecutor(2, config=Settings(), store=any_store) as executor:
        function: Any = log_on_loop if pool == "coroutine" else log_lines
        job = Job(function=function, args=(pool == "process",), pool=pool)
        logging.getLogger("library").error("outside of any job")
        executor.run(job)
    found = any_store.lines(job.job_id)
    assert [(stored.source, stored.level, stored.text, stored.attempt) for stored in found[:2]] == [
        ("executor_adapter.job", logging.WARNING, "by the job's logger 1", 1),
        ("library", logging.ERROR, "by a library", 1),
    ]
    assert texts(found[2:]) == (["printed"] if pool == "process" else [])


def log_badly() -> str:
    try:
        raise LookupError("on purpose")
    except LookupError:
        logging.getLogger("library").exception("failed")
    logging.getLogger("library").warning("%d items", "no number")
    return "ended"


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_what_is_logged_badly_costs_no_job(pool: str, mocker: MockerFixture) -> None:
    """A message that its arguments do not fit harms no job; a traceback is in the log as it is elsewhere."""
    mocker.patch.object(logging, "raiseExceptions", new=False)
    with JobExecutor(1, config=Settings(), store="memory:") as executor:
        job = Job(function=log_badly, pool=pool, retry_attempts=0)
        assert executor.run(job) == "ended"
        executor.flush()
        assert executor.store is not None
        found = texts(executor.store.lines(job.job_id))
    assert found[0].startswith("failed\nTraceback (most recent call last)")
    assert found[0].endswith("LookupError: on purpose")
    assert found[1] == ("%d items" if pool == "thread" else "--- Logging error ---")


def log_and_wait(path: str) -> None:
    current_job().logger.warning("begun")
    while not Path(path).exists():
        time.sleep(0.01)


def test_lines_are_stored_while_the_job_runs(any_store: JobStore, tmp_path: Path) -> None:
    """Lines are stored within seconds, while the job still runs."""
    with JobExecutor(1, config=Settings(), store=any_store) as executor:
        job = Job(function=log_and_wait, args=(str(tmp_path / "end"),), pool="thread")
        future = executor.submit(job)
        wait_for(lambda: texts(any_store.lines(job.job_id)) == ["begun"])
        assert not future.done()
        (tmp_path / "end").touch()


def test_a_job_s_log_is_stored_before_its_end(any_store: JobStore, mocker: MockerFixture) -> None:
    """A reader who sees a job's end in the store finds its whole log there, even if writing is slow."""
    seen: dict[str, list[str]] = {}
    write = any_store.write

    def look_after_writing(host_id: str, *args: Any, **kwargs: Any) -> Written:
        written = write(host_id, *args, **kwargs)
        seen.update((job.job_id, texts(any_store.lines(job.job_id))) for job in jobs)
        return written

    mocker.patch.object(any_store, "write", look_after_writing)
    jobs = [Job(function=log_text, args=("last words",), pool=pool) for pool in ("thread", "process")]
    with JobExecutor(2, config=Settings(), store=any_store) as executor:
        for job in jobs:
            executor.run(job)
            executor.flush()
            assert seen[job.job_id] == ["last words"]


def test_a_log_that_cannot_be_written_does_not_block_its_job(
    mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that no store can hold is dropped, and its job is recorded all the same."""
    store = open_store("memory:")
    mocker.patch.object(store, "write_lines", side_effect=ValueError("not this line"))
    with JobExecutor(1, config=Settings(), store=store) as executor:
        job = Job(function=log_text, args=("hello",), pool="thread")
        executor.run(job)
        executor.flush()
        assert store.get(job.job_id).status is JobStatus.COMPLETED  # type: ignore[union-attr]
    assert [r.getMessage() for r in caplog.records if r.name == "executor_adapter.store"] == [
        "1 lines of job logs cannot be recorded and are dropped"
    ]


def log_text(text: str) -> None:
    current_job().logger.warning(text)


def test_lines_that_databases_cannot_hold_are_changed(any_store: JobStore) -> None:
    """NUL characters and lone surrogates are replaced, and very long lines are cut."""
    with JobExecutor(1, config=Settings(), store=any_store) as executor:
        job = Job(function=log_text, args=("nul \0 half \ud800 long " + "x" * 100_000,), pool="thread")
        executor.run(job)
    (stored,) = any_store.lines(job.job_id)
    assert stored.text.startswith("nul \N{REPLACEMENT CHARACTER} half ? long xxx")
    assert len(stored.text) < 20_000


def test_the_log_record_factory_is_restored() -> None:
    """The program's own log record factory is in place again once the last executor is closed."""
    before = logging.getLogRecordFactory()
    with JobExecutor(1, config=Settings(), store="memory:") as executor:
        executor.run(Job(function=list, job_id=uuid7()))
        assert logging.getLogRecordFactory() is not before
    assert logging.getLogRecordFactory() is before


def test_a_factory_that_a_library_puts_around_ours_may_stay() -> None:
    """A later executor captures each record once, whether a factory around an earlier one's stays or goes."""
    before = logging.getLogRecordFactory()
    try:
        with store_of_logs() as (first, _):
            ours = logging.getLogRecordFactory()
            logging.setLogRecordFactory(lambda *args, **kwargs: ours(*args, **kwargs))
            log_once(first)
        around = logging.getLogRecordFactory()
        with store_of_logs() as (second, store):
            assert texts(store.lines(log_once(second))) == ["once"]
            logging.setLogRecordFactory(ours)  # As a library that undoes what it has done.
            assert texts(store.lines(log_once(second))) == ["once"]
            logging.setLogRecordFactory(around)
    finally:
        logging.setLogRecordFactory(before)


@contextmanager
def store_of_logs() -> Iterator[tuple[JobExecutor, JobStore]]:
    store = open_store("memory:")
    with JobExecutor(1, config=Settings(), store=store) as executor:
        yield executor, store


def log_once(executor: JobExecutor) -> str:
    """Run a job that logs, and return its id once its lines are stored."""
    job = Job(function=log_text, args=("once",), pool="thread")
    executor.run(job)
    executor.flush()
    return job.job_id


def test_of_too_many_lines_the_newest_wait_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lines come while a write fails, and more than may wait, the oldest are dropped."""
    monkeypatch.setattr("executor_adapter.persistence.log_lines.MAX_WAITING_LINES", 3)
    lines = LogLines({})
    job: Any = SimpleNamespace(job=SimpleNamespace(job_id="job"), number=1)
    written: list[str] = []

    def fail(batch: list[LogLine]) -> None:
        lines.on_message(job, "output", ("stdout", "4"))
        raise StoreUnavailableError

    def write(batch: list[LogLine]) -> None:
        written.extend(line.text for line in batch)

    for text in "123":
        lines.on_message(job, "output", ("stdout", text))
    failing, working = (cast(JobStore, SimpleNamespace(write_lines=each)) for each in (fail, write))
    with pytest.raises(StoreUnavailableError):
        lines.write_to(failing)
    lines.write_to(working)
    assert written == ["2", "3", "4"]
