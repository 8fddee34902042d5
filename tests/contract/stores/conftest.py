from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import select

from executor_adapter import JobExecutor
from executor_adapter.config import Settings, StoreSettings
from executor_adapter.job.ids import uuid7
from executor_adapter.job.status import JobStatus
from executor_adapter.store import Host, JobRecord, JobStore, open_store
from executor_adapter.store.host import this_machine
from executor_adapter.store.sql.engines import make_engine
from executor_adapter.store.sql.schema import hosts
from tests.contract.stores.databases import url_of
from tests.waiting import wait_for

on_both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
"""Marks a test that runs by day on PostgreSQL too: what its statements do there, such as their locks, decides it."""


class MakeStored(Protocol):
    """Makes an executor on the store under test."""

    def __call__(self, max_workers: int = 2, **options: Any) -> JobExecutor: ...


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.nightly)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store that outlives the program.

    An executor is the same on both. What a store does on PostgreSQL, `test_stores.py` proves by day, and
    `test_crash_rounds.py` with hosts that are killed.
    """
    with url_of(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    """The store as another process sees it."""
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def make_stored(url: str) -> Iterator[MakeStored]:
    """Makes executors on the store; `settings` are keys of the section `store`."""
    made: list[JobExecutor] = []

    def make(max_workers: int = 2, *, settings: dict[str, Any] | None = None, **options: Any) -> JobExecutor:
        config = Settings(store=StoreSettings(**settings or {}))
        executor = JobExecutor(max_workers, config=config, **{"store": url} | options)
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.shutdown(timeout=0)


@pytest.fixture
def orphan(store: JobStore) -> Callable[..., JobRecord]:
    """Writes a job whose host is gone, with these fields."""

    def write_orphan(**fields: Any) -> JobRecord:
        host = Host(host_id=uuid7(), machine="elsewhere", pid=1, process_started=1)
        defaults = {"job_id": uuid7(), "status": JobStatus.RUNNING, "attempt": 1, "created_at": time.time()}
        record = JobRecord(**defaults | {"host": host.host_id} | fields)
        store.register(host, lease=60)
        assert store.write(host.host_id, [record], lease=60).taken == []
        store.leave(host.host_id)
        return record

    return write_orphan


def record_in(store: JobStore, job_id: str) -> JobRecord:
    """Return the job's record, which must exist."""
    record = store.get(job_id)
    assert record is not None
    return record


def wait_for_end(store: JobStore, job_id: str) -> JobRecord:
    """Wait until the job is recorded as finished; return its record."""
    wait_for(lambda: (record := store.get(job_id)) is not None and record.status.is_terminal)
    return record_in(store, job_id)


def leases_here(url: str) -> dict[str, float]:
    """Return the ids of this machine's hosts in the database, each with the time at which its lease expires."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            here = select(hosts.c.host_id, hosts.c.expires_at).where(hosts.c.machine == this_machine())
            return {row.host_id: row.expires_at for row in connection.execute(here)}
    finally:
        engine.dispose()


def let_leases_expire(url: str) -> None:
    """Write into the database that the lease of each host has expired a second ago."""
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(hosts.update().values(expires_at=time.time() - 1))
    engine.dispose()
