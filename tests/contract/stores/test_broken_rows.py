"""Rows that make no sense: each is set aside in words, and harms neither its program nor the jobs beside it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from executor_adapter import JobStatus
from executor_adapter.store import JobFilter, JobRecord, JobStore, SignedPickles
from executor_adapter.store.sql.engines import make_engine
from executor_adapter.store.sql.schema import jobs
from tests.contract.stores.conftest import MakeStored, on_both, record_in, wait_for_end
from tests.contract.stores.test_recovery import GIVE

Orphan = Callable[..., JobRecord]


class ExitsOnUnpickling:
    """Stands for a module of which the import exits."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(3)",)


KEY = "k" * 32
PICKLES = SignedPickles([KEY])
GONE = b"cno_such_module_anywhere\nfunction\n."

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "attempts": ({"attempts": "[[1, 2"}, "attempts is '[[1, 2'"),
    "attempts of another kind": ({"attempts": "[7]"}, "attempts is '[7]'"),
    "metadata": ({"metadata": "[]"}, "metadata is '[]'"),
    "progress": ({"progress": "{}}"}, "progress is '{}}'"),
    "call": ({"call": "{"}, "its call is no JSON object: '{'"),
    "call of another kind": ({"call": "[1]"}, "its call is no JSON object: '[1]'"),
    "unknown field": ({"call": GIVE[:-1] + ', "colour": "red"}'}, "colour"),
    "module that is gone": ({"pickled": PICKLES.sign(GONE)}, "No module named 'no_such_module_anywhere'"),
    "module that exits": ({"pickled": PICKLES.sign(pickle.dumps(ExitsOnUnpickling()))}, "SystemExit(3)"),
}


@pytest.fixture
def break_row(url: str) -> Callable[..., None]:
    """Writes columns of a job's row past the store."""

    def write(job_id: str, **columns: Any) -> None:
        engine = make_engine(url)
        with engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(columns))
        engine.dispose()

    return write


@on_both
def test_broken_rows_are_set_aside_and_the_others_run(
    make_stored: MakeStored, store: JobStore, orphan: Orphan, break_row: Callable[..., None], caplog: Any
) -> None:
    """A program starts on a store with broken rows, runs the other jobs, and ends the broken ones in words."""
    broken = {name: orphan(call=GIVE).job_id for name in BROKEN}
    for name, job_id in broken.items():
        break_row(job_id, **BROKEN[name][0])
    unknown = orphan(call=GIVE).job_id
    break_row(unknown, status="paused")
    sound = orphan(call=GIVE).job_id

    executor = make_stored(settings={"pickle_arguments": True, "pickle_key": KEY})
    assert [job.job_id for job in executor.recover()] == [sound]

    assert wait_for_end(store, sound).status is JobStatus.COMPLETED
    for name, job_id in broken.items():
        record = record_in(store, job_id)
        assert record.status is JobStatus.FAILED, name
        assert BROKEN[name][1] in str(record.error_message)
        assert BROKEN[name][1] in caplog.text
        assert record.to_job().status is JobStatus.FAILED
    assert "status is 'paused'" in str(record_in(store, unknown).unreadable)
    assert len(store.find(JobFilter()).records) == len(BROKEN) + 2
    counts = store.counts()
    assert (counts[JobStatus.FAILED], counts[JobStatus.COMPLETED]) == (len(BROKEN) + 1, 1)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_value_of_another_type_makes_a_row_unreadable(
    make_stored: MakeStored, store: JobStore, orphan: Orphan, break_row: Callable[..., None]
) -> None:
    """SQLite keeps whatever is written: a number that is a text or infinite is found, and the others run."""
    names = ("attempt", "crashes", "priority", "started_at", "retry_at", "max_runtime")
    broken = [orphan(call=GIVE).job_id for _ in names]
    for name, job_id in zip(names, broken, strict=True):
        break_row(job_id, **{name: float("inf")})
    sound = orphan(call=GIVE).job_id
    assert [job.job_id for job in make_stored().recover()] == [sound]
    assert [record_in(store, job_id).error_code for job_id in broken] == ["DATA_ERROR"] * len(names)
