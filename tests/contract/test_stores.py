"""The contract of stores: one suite over the store in memory, SQLite and a real PostgreSQL."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import delete

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.ids import uuid7
from executor_adapter.job.results import Attempt, Progress
from executor_adapter.job.status import JobStatus
from executor_adapter.store import (
    Host,
    JobFilter,
    JobRecord,
    JobStore,
    LeaseLostError,
    LogLine,
    Page,
    StoreUnavailableError,
    open_store,
)
from executor_adapter.store.host import close_host, new_host
from executor_adapter.store.sql import SqlStore, cleanup, leases
from executor_adapter.store.sql.engines import make_engine
from executor_adapter.store.sql.schema import hosts, jobs
from tests.contract.stores.databases import url_of
from tests.waiting import PATIENCE

LEASE = 60.0


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with url_of(request.param, tmp_path_factory.mktemp("store")) as url:
        yield url


has_leases = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
"""Selects the stores that other processes can open."""


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    """An empty store."""
    store = open_store(url)
    if isinstance(store, SqlStore):
        engine = make_engine(url)
        with engine.execution_options(writes=True).begin() as connection:
            connection.execute(delete(jobs))
            connection.execute(delete(hosts))
        engine.dispose()
    yield store
    store.close()


@pytest.fixture
def host(store: JobStore) -> Iterator[Host]:
    """A host of this process with a lease."""
    host = new_host()
    store.register(host, lease=LEASE)
    yield host
    store.leave(host.host_id)
    close_host(host)


def elsewhere(**fields: Any) -> Host:
    """Make a host of another machine; only its lease shows whether it is gone."""
    return Host(**{"host_id": uuid7(), "machine": "elsewhere", "pid": 1, "process_started": 1} | fields)


def make(host: Host | None, status: JobStatus = JobStatus.RUNNING, **fields: Any) -> JobRecord:
    defaults: dict[str, Any] = {
        "job_id": uuid7(),
        "function": "tests.contract.functions:add",
        "status": status,
        "created_at": time.time(),
        "completed_at": time.time() if status.is_terminal else None,
        "call": '{"function": "tests.contract.functions:add", "args": [1]}',
        "host": None if host is None else host.host_id,
    }
    return JobRecord(**defaults | fields)


def put(store: JobStore, host: Host, *records: JobRecord) -> None:
    assert store.write(host.host_id, records, lease=LEASE).taken == []


FULL = JobRecord(
    job_id="nightly ☾ 7",
    queue="collection",
    job_type="nightly",
    tool_name="radar",
    function="module:function",
    status=JobStatus.FAILED,
    attempt=2,
    crashes=1,
    created_at=1000.25,
    started_at=1001.5,
    completed_at=1003.75,
    retry_at=None,
    error_code="DATA_ERROR",
    error_message="Ünïcode: “broken” 'quotes' \\ % _",
    traceback="Traceback (most recent call last):\n  ...\nValueError: broken",
    records_processed=3_000_000_000,
    progress=Progress(1.5, 3, "half"),
    attempts=(
        Attempt(1, "process", 7, 0.5, 1.5, None, None, None, 9, "X", "killed", "node1"),
        Attempt(2, "process", 8, 0.5, 1.5, 0.25, 1 << 40, 0, None, None, None, None),
    ),
    metadata={"collection_type": "manual", "deep": [1, {"a": None}]},
    priority=-3,
    max_runtime=7.5,
    call='{"function": "module:function"}',
    pickled=b"\x00\xff",
    retry_of="nightly 6",
    quarantined=True,
)


def test_a_record_comes_back_as_it_was_written(store: JobStore, host: Host) -> None:
    """A record with every field set is read as it was written."""
    record = dataclasses.replace(FULL, host=host.host_id)
    put(store, host, record)
    assert store.get(record.job_id) == record
    assert [dataclasses.replace(listed, traceback=record.traceback) for listed in store.find().records] == [record]
    assert store.get("unknown") is None


def test_characters_that_databases_refuse_are_replaced_in_messages(store: JobStore, host: Host) -> None:
    """An error message may have any characters; those that a database refuses are replaced."""
    record = make(host, JobStatus.FAILED, error_message="a\0b \udcff")
    put(store, host, record)
    found = store.get(record.job_id)
    assert found is not None
    assert found.error_message in ("a\0b \udcff", "a�b ?")


def test_a_change_keeps_the_fields_that_never_change(store: JobStore, host: Host) -> None:
    """Writing a changed record keeps the job's call, pickle and function."""
    record = dataclasses.replace(FULL, host=host.host_id, status=JobStatus.RUNNING, completed_at=None)
    put(store, host, record)
    over = JobRecord(job_id=FULL.job_id, status=JobStatus.COMPLETED, attempt=3, completed_at=9.0, host=host.host_id)
    assert store.write(host.host_id, changed=[over], lease=LEASE).taken == []
    found = store.get(FULL.job_id)
    assert found is not None
    assert (found.status, found.attempt, found.completed_at) == (JobStatus.COMPLETED, 3, 9.0)
    assert (found.call, found.pickled, found.function) == (record.call, record.pickled, record.function)


def test_the_end_of_a_job_and_another_with_its_id_are_written_together(store: JobStore, host: Host) -> None:
    """Where a job takes the id of one that has just ended, its row is its own, however both come into one batch."""
    first = make(host)
    put(store, host, first)
    over = dataclasses.replace(first, status=JobStatus.CANCELLED, completed_at=9.0)
    second = dataclasses.replace(first, created_at=first.created_at + 1, priority=7)
    assert store.write(host.host_id, new=[second], changed=[over], lease=LEASE).taken == []
    assert store.get(first.job_id) == second


def test_writing_a_record_again_changes_nothing(store: JobStore, host: Host) -> None:
    """A host that does not know whether a write succeeded can repeat it."""
    record = make(host)
    left = dataclasses.replace(record, status=JobStatus.PENDING, host=None)
    put(store, host, record)
    put(store, host, record)
    for _ in range(2):
        assert store.write(host.host_id, changed=[left], lease=LEASE).taken == []
    assert store.find().total == 1


def test_of_jobs_with_one_id_in_a_batch_the_last_one_counts(store: JobStore, host: Host) -> None:
    """If a batch has several records of one id, the last one is stored."""
    first = make(host, JobStatus.FAILED, job_id="daily", created_at=1.0)
    second = make(host, JobStatus.RUNNING, job_id="daily", created_at=2.0)
    put(store, host, make(host), first, second, make(host))
    assert store.get("daily") == second
    over = [dataclasses.replace(second, status=status) for status in (JobStatus.RETRYING, JobStatus.COMPLETED)]
    assert store.write(host.host_id, changed=over, lease=LEASE).taken == []
    assert store.get("daily") == over[-1]


@pytest.mark.parametrize("made_at", [0.5, 2.0])
def test_an_id_can_be_used_again_once_its_job_is_finished(store: JobStore, host: Host, made_at: float) -> None:
    """A job replaces a finished one with its id, whichever was made first; late writes of that one are ignored."""
    other = elsewhere()
    store.register(other, lease=LEASE)
    put(store, host, make(host, JobStatus.FAILED, job_id="daily", created_at=1.0))
    put(store, other, make(other, JobStatus.RUNNING, job_id="daily", created_at=made_at))
    found = store.get("daily")
    assert found is not None
    assert (found.status, found.host) == (JobStatus.RUNNING, other.host_id)
    late = make(host, JobStatus.COMPLETED, job_id="daily", created_at=1.0)
    assert store.write(host.host_id, [late], lease=LEASE).taken == ["daily"]
    assert store.write(host.host_id, changed=[late], lease=LEASE).taken == ["daily"]
    assert store.get("daily") == found


@has_leases
def test_a_job_replaces_one_of_its_queue_whose_host_is_gone(store: JobStore, host: Host) -> None:
    """The id of a live job can be used again once its host is gone, in its queue, and for no other live job."""
    gone, alive = elsewhere(), elsewhere()
    for other in (gone, alive):
        store.register(other, lease=LEASE)
        put(store, other, make(other, job_id=f"of {other.host_id}", created_at=1.0))
    store.enqueue(make(None, JobStatus.PENDING, job_id="waiting", created_at=1.0))
    put(store, gone, make(gone, job_id="queued elsewhere", queue="collection", created_at=1.0))
    store.register(gone_since := elsewhere(), lease=LEASE)
    store.leave(gone.host_id)
    put(store, gone_since, make(gone_since, job_id="expired", created_at=1.0))
    assert store.write(gone_since.host_id, lease=-1).taken == []
    names = [f"of {gone.host_id}", "expired", f"of {alive.host_id}", "waiting", "queued elsewhere"]
    new = {name: make(host, job_id=name, created_at=2.0) for name in names}
    assert sorted(store.write(host.host_id, list(new.values()), lease=LEASE).taken) == sorted(names[2:])
    assert [store.get(name) == record for name, record in new.items()] == [True, True, False, False, False]


# --- finding ---


def ids(store: JobStore, wanted: JobFilter, **how: Any) -> list[str]:
    return [record.job_id for record in store.find(wanted, **how).records]


def test_filters_select_jobs_that_match_every_field(store: JobStore, host: Host) -> None:
    """A filter selects the jobs that match every field given, upper and lower case alike in `text`."""
    put(
        store,
        host,
        make(host, JobStatus.COMPLETED, job_id="a", created_at=1.0, completed_at=5.0, tool_name="radar"),
        make(host, JobStatus.FAILED, job_id="b", created_at=2.0, completed_at=6.0, tool_name="Sonar", job_type="deep"),
        make(host, JobStatus.RUNNING, job_id="c", created_at=3.0, queue="collection", error_message="50% of_it"),
        make(host, JobStatus.FAILED, job_id="d", created_at=4.0, completed_at=7.0, quarantined=True),
    )
    oldest_first = {"newest_first": False}
    for wanted, expected in {
        JobFilter(): "abcd",
        JobFilter(statuses=frozenset({JobStatus.FAILED})): "bd",
        JobFilter(statuses=frozenset()): "",
        JobFilter(statuses=frozenset({JobStatus.FAILED, JobStatus.RUNNING}), queue=""): "bd",
        JobFilter(queue="collection"): "c",
        JobFilter(job_type="deep", tool_name="Sonar"): "b",
        JobFilter(created_from=2.0, created_before=4.0): "bc",
        JobFilter(ended_from=6.0): "bd",
        JobFilter(ended_before=6.0): "a",
        JobFilter(quarantined=True): "d",
        JobFilter(quarantined=False): "abc",
        JobFilter(text="sonar"): "b",
        JobFilter(text="50% OF_"): "c",
        JobFilter(text="5_%"): "",
        JobFilter(text="functions:add"): "abcd",
    }.items():
        assert "".join(ids(store, wanted, **oldest_first)) == expected, wanted


def test_pages_have_a_part_of_the_list_and_its_total(store: JobStore, host: Host) -> None:
    """Each page has its part of the list and the total number of jobs."""
    put(store, host, *(make(host, job_id=f"{n}", created_at=float(n // 2)) for n in range(7)))
    assert ids(store, JobFilter()) == ["6", "5", "4", "3", "2", "1", "0"]
    assert ids(store, JobFilter(), offset=2, limit=3) == ["4", "3", "2"]
    assert ids(store, JobFilter(), offset=5, limit=3, newest_first=False) == ["5", "6"]
    assert ids(store, JobFilter(), limit=None) == ids(store, JobFilter())
    for offset, limit in ((0, 2), (4, 2), (6, 2), (0, 7), (0, None), (9, 2)):
        assert store.find(offset=offset, limit=limit).total == 7, (offset, limit)


def test_a_total_is_exact_or_says_that_there_are_more(store: JobStore, host: Host) -> None:
    """A store may stop counting at `counts_up_to`, and then says that the total is not exact."""
    put(store, host, *(make(host, job_id=f"{n}", created_at=float(n)) for n in range(9)))
    for most, offset, limit in ((9, 0, 2), (5, 0, 2), (5, 6, 2), (5, 20, 2)):
        store.counts_up_to = most
        page = store.find(offset=offset, limit=limit)
        seen = offset + len(page.records) if page.records else 0
        assert page.total == (9 if page.total_is_exact else max(most, seen)), (most, offset)
        assert page.total_is_exact or most < 9
    assert store.find(offset=8, limit=2) == Page(records=store.find(newest_first=False, limit=1).records, total=9)
    assert store.find(limit=None).total == 9


def test_a_page_of_several_statuses_is_in_order(store: JobStore, host: Host) -> None:
    """A page of jobs of several statuses is ordered by creation."""
    statuses = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.RUNNING, JobStatus.CANCELLED]
    put(store, host, *(make(host, statuses[n % 4], job_id=f"{n}", created_at=float(n)) for n in range(9)))
    wanted = JobFilter(statuses=frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}))
    assert ids(store, wanted) == ["8", "7", "5", "4", "3", "1", "0"]
    assert ids(store, wanted, offset=2, limit=3) == ["5", "4", "3"]
    assert ids(store, wanted, limit=3, newest_first=False) == ["0", "1", "3"]
    assert store.find(wanted, limit=3).total == 7


def test_counts_and_failure_rates(store: JobStore, host: Host) -> None:
    """Counts by status, the failure rate and the oldest waiting job are those of the matching jobs."""
    assert store.failure_rate() is None
    statuses = [*[JobStatus.COMPLETED] * 3, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PENDING]
    ended = [10.0, 20.0, 30.0, 30.0, 40.0, None]
    records = [make(host, status, completed_at=at) for status, at in zip(statuses, ended, strict=True)]
    put(store, host, *records)
    assert store.counts() == {
        JobStatus.PENDING: 1,
        JobStatus.RUNNING: 0,
        JobStatus.RETRYING: 0,
        JobStatus.COMPLETED: 3,
        JobStatus.FAILED: 1,
        JobStatus.CANCELLED: 1,
    }
    assert store.failure_rate() == 0.25
    assert store.failure_rate(JobFilter(ended_from=30.0)) == 0.5
    assert store.oldest_waiting() == records[-1].created_at
    assert store.oldest_waiting(JobFilter(queue="collection")) is None


def test_durations_are_those_of_finished_jobs(store: JobStore, host: Host) -> None:
    """Durations are those of finished jobs that started, ascending."""
    for took, at in ((1.0, 10.0), (5.0, 20.0), (3.0, 30.0)):
        put(store, host, make(host, JobStatus.COMPLETED, started_at=at - took, completed_at=at))
    put(store, host, make(host, JobStatus.CANCELLED), make(host, JobStatus.RUNNING, started_at=1.0))
    assert store.durations() == [1.0, 3.0, 5.0]
    assert store.durations(limit=2) == [3.0, 5.0]
    assert store.durations(JobFilter(ended_before=25.0)) == [1.0, 5.0]


# --- requests ---


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a cleanup delete a few jobs at a time; where a disk is slow it takes ever smaller steps, with pauses."""
    monkeypatch.setattr(cleanup, "FIRST_STEP_SIZE", 2)
    monkeypatch.setattr(cleanup, "MAX_STEP_SIZE", 8)


@pytest.mark.usefixtures("small_steps")
def test_cleanup_deletes_old_finished_jobs_alone(store: JobStore, host: Host) -> None:
    """Cleanup deletes old finished jobs and keeps new, live and quarantined ones and other queues."""
    hours_ago = time.time() - 2 * 3600
    old = {"created_at": 1.0, "completed_at": hours_ago}
    put(store, host, *(make(host, JobStatus.COMPLETED, **old) for _ in range(35)))
    kept = [
        make(host, JobStatus.COMPLETED),
        make(host, JobStatus.RUNNING, created_at=1.0),
        make(host, JobStatus.FAILED, quarantined=True, **old),
        make(host, JobStatus.FAILED, queue="collection", **old),
    ]
    put(store, host, *kept)
    assert store.cleanup(3) == 0
    assert store.cleanup(1, queue="") == 35
    assert {record.job_id for record in store.find().records} == {record.job_id for record in kept}
    assert store.cleanup(1) == 1


@pytest.mark.usefixtures("small_steps")
def test_cleanup_deletes_jobs_of_every_status_and_age(store: JobStore, host: Host) -> None:
    """Cleanup deletes jobs of every terminal status, also many that ended at the same time."""
    now = time.time()
    ends = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED]
    ages = [hour for hour in (9, 5, 5, 5, 2, 0) for _ in range(12)]
    records = [
        make(host, ends[n % 3], completed_at=now - age * 3600, quarantined=n % 3 == 1 and n % 2 == 1)
        for n, age in enumerate(ages)
    ]
    put(store, host, *records)
    kept = {r.job_id for r in records if r.quarantined or (r.completed_at or 0) > now - 3 * 3600}
    assert store.cleanup(3) == len(records) - len(kept)
    assert {record.job_id for record in store.find(limit=None).records} == kept


def test_a_quarantined_job_is_released_once(store: JobStore, host: Host) -> None:
    """`release` ends a job's quarantine, and is False for any other job."""
    record = make(host, JobStatus.FAILED, quarantined=True)
    put(store, host, record)
    assert store.release(record.job_id)
    assert not store.release(record.job_id)
    assert not store.release("unknown")


def test_cancel_requests_reach_the_host_of_a_job(store: JobStore, host: Host) -> None:
    """A cancel request reaches the job's host; a job without a host is cancelled at once."""
    mine, waiting, over = make(host), make(None, JobStatus.PENDING), make(host, JobStatus.COMPLETED)
    put(store, host, mine, over)
    store.enqueue(waiting)
    assert store.cancel_requests(host.host_id) == []
    assert [store.request_cancel(job_id) for job_id in (mine.job_id, waiting.job_id, over.job_id, "unknown")] == [
        True,
        True,
        False,
        False,
    ]
    assert store.cancel_requests(host.host_id) == [mine.job_id]
    cancelled = store.get(waiting.job_id)
    assert cancelled is not None
    assert cancelled.status is JobStatus.CANCELLED
    assert store.claim(host, queue="") == []


def test_a_cancel_request_is_for_the_job_that_had_the_id_then(store: JobStore, host: Host) -> None:
    """A request to cancel a job that has ended meanwhile does not cancel the next job with its id."""
    first = make(host, job_id="daily", created_at=1.0)
    put(store, host, first)
    assert store.request_cancel("daily")
    over = dataclasses.replace(first, status=JobStatus.COMPLETED, completed_at=2.0)
    assert store.write(host.host_id, changed=[over], lease=LEASE).taken == []
    put(store, host, make(host, job_id="daily", created_at=3.0))
    assert store.cancel_requests(host.host_id) == []


@has_leases
def test_a_job_that_was_to_be_cancelled_runs_on_no_other_host(store: JobStore, host: Host) -> None:
    """A cancel request that a job's host did not follow cancels the job, whether the host left it or died."""
    other = elsewhere()
    store.register(other, lease=LEASE)
    left, orphan = make(other), make(other)
    put(store, other, left, orphan)
    assert store.request_cancel(left.job_id)
    assert store.request_cancel(orphan.job_id)
    changed = dataclasses.replace(left, status=JobStatus.PENDING, host=None)
    assert store.write(other.host_id, changed=[changed], lease=LEASE).taken == []
    store.leave(other.host_id)
    assert store.claim(host, queue="") == []
    found = store.find().records
    assert [(each.status, each.error_code, each.duration) for each in found] == [
        (JobStatus.CANCELLED, "CANCELLED", None)
    ] * 2
    assert None not in [each.completed_at for each in found]


@has_leases
def test_lines_that_are_written_again_keep_no_others_out(store: JobStore) -> None:
    """Lines whose answer was lost are written again with those that came meanwhile, and each is there once."""
    written = [LogLine("lined", 1, seq, 0.0, 20, "user", f"line {seq}") for seq in range(1, 4)]
    store.write_lines(written[:2])
    store.write_lines(written)
    assert store.lines("lined") == written


@has_leases
def test_an_enqueued_job_is_claimed_by_the_next_host_of_its_queue(store: JobStore, host: Host) -> None:
    """An enqueued job is claimed once, by a host of its queue; its id cannot be enqueued again."""
    record = make(None, JobStatus.PENDING, queue="collection")
    store.enqueue(record)
    with pytest.raises(InvalidJobError, match="is taken: give the job another id"):
        store.enqueue(record)
    assert store.claim(host, queue="") == []
    assert store.claim(host, queue="collection") == [dataclasses.replace(record, host=host.host_id)]
    assert store.claim(host, queue="collection") == []


# --- leases ---


@has_leases
def test_jobs_of_a_host_with_a_lease_cannot_be_claimed(store: JobStore, host: Host) -> None:
    """Jobs cannot be claimed while their host has its lease, and can once it has left."""
    other = elsewhere()
    store.register(other, lease=LEASE)
    put(store, other, make(other))
    assert store.claim(host, queue="") == []
    store.leave(other.host_id)
    assert len(store.claim(host, queue="")) == 1


@has_leases
def test_a_host_with_an_expired_lease_loses_its_jobs_and_cannot_write(store: JobStore, host: Host) -> None:
    """After its lease has expired and its jobs were claimed, a host's writes and claims raise LeaseLostError."""
    other = elsewhere()
    store.register(other, lease=0.05)
    record = make(other)
    assert store.write(other.host_id, [record, make(other, JobStatus.COMPLETED)], lease=0.05).taken == []
    time.sleep(0.1)
    assert store.claim(host, queue="") == [dataclasses.replace(record, host=host.host_id)]
    done = dataclasses.replace(record, status=JobStatus.COMPLETED)
    with pytest.raises(LeaseLostError):
        store.write(other.host_id, changed=[done], lease=LEASE)
    with pytest.raises(LeaseLostError):
        store.write(other.host_id, [make(other)], lease=LEASE)
    with pytest.raises(LeaseLostError):
        store.claim(other, queue="")
    assert store.counts()[JobStatus.RUNNING] == 1


@has_leases
def test_a_write_renews_the_lease(store: JobStore, host: Host) -> None:
    """A write renews its host's lease."""
    other = elsewhere()
    store.register(other, lease=0.05)
    put(store, other, make(other))
    time.sleep(0.1)
    assert store.claim(host, queue="") == []


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_host_that_is_cut_off_within_a_claim_holds_no_other_one_up(store: JobStore, host: Host, url: str) -> None:
    """Leases are renewed while a claim is not committed that has ended those of gone hosts."""
    gone, other = elsewhere(), elsewhere()
    store.register(gone, lease=-1)
    store.register(other, lease=LEASE)
    engine = make_engine(url)
    with engine.begin() as connection:
        assert leases.claim(connection, host, "", 100) == []
        store.write(other.host_id, lease=LEASE)
    engine.dispose()
    assert {each.host_id for each in store.hosts()} == {host.host_id, other.host_id}


@has_leases
def test_a_claim_takes_at_most_its_limit(store: JobStore, host: Host) -> None:
    """A claim takes at most `limit` jobs."""
    for _ in range(5):
        store.enqueue(make(None, JobStatus.PENDING))
    assert [len(store.claim(host, queue="", limit=2)) for _ in range(4)] == [2, 2, 1, 0]


@has_leases
def test_a_claim_whose_answer_was_lost_can_be_made_again(
    store: JobStore, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs whose claim was committed although it failed are returned to their host when it asks, and to no other."""
    record = make(None, JobStatus.PENDING)
    store.enqueue(record)

    @contextlib.contextmanager
    def cut_off() -> Iterator[None]:
        yield
        raise StoreUnavailableError("the connection was closed after the commit")

    with monkeypatch.context() as patched:
        patched.setattr("executor_adapter.store.sql.store.translate_errors", cut_off)
        with pytest.raises(StoreUnavailableError):
            store.claim(host, queue="")
    other = elsewhere()
    store.register(other, lease=LEASE)
    assert store.claim(other, queue="", again=[record.job_id]) == []
    assert store.claim(host, queue="", again=[record.job_id]) == [dataclasses.replace(record, host=host.host_id)]
    assert store.claim(host, queue="") == []


@has_leases
def test_two_hosts_never_claim_the_same_job(store: JobStore) -> None:
    """Hosts that claim at the same time never get the same job."""
    for _ in range(200):
        store.enqueue(make(None, JobStatus.PENDING))
    hosts = [elsewhere() for _ in range(4)]
    claimed: dict[str, list[str]] = {host.host_id: [] for host in hosts}

    def claim_all(host: Host) -> None:
        store.register(host, lease=LEASE)
        while records := store.claim(host, queue="", limit=7):
            claimed[host.host_id] += [record.job_id for record in records]

    threads = [threading.Thread(target=claim_all, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    taken = [job_id for job_ids in claimed.values() for job_id in job_ids]
    assert len(taken) == len(set(taken)) == 200
