"""A flow run that is deleted while its jobs run: what the server cannot record is not sent, and harms nobody."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.exceptions import ObjectNotFound

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import MirrorReport, PrefectMirror
from tests.prefect.conftest import Api, own_id
from tests.servers import api_client
from tests.waiting import PATIENCE, wait_for


@task
def plain() -> None: ...


@flow
def plain_flow() -> UUID:
    for future in [plain.submit() for _ in range(10)]:
        future.wait()
    return own_id()


def test_a_deleted_flow_run_harms_no_other(api: Api, prefect_api: str, caplog: pytest.LogCaptureFixture) -> None:
    """While jobs of a deleted flow run end, the states of others are recorded, of plain tasks too; it is said once."""
    ids, reports = dict[str, UUID](), dict[str, MirrorReport]()
    is_deleted, over = threading.Event(), threading.Event()

    @flow
    def run(name: str) -> None:
        with PrefectMirror(stall_timeout=30.0) as mirror, JobExecutor(2, observers=[mirror]) as executor:
            first = executor.submit(Job(function=is_deleted.wait, pool="thread"))
            ids[name] = own_id()
            first.result()
            while not over.wait(0.2):
                executor.submit(Job(function=dict, pool="thread")).result()
        reports[name] = mirror.report()

    with ThreadPoolExecutor(2) as threads:
        runs = {name: threads.submit(copy_context().run, run, name) for name in ("deleted", "other")}
        try:
            wait_for(lambda: all(name in ids and _names(api, ids[name]) == ["Running"] for name in runs))
            with api_client(prefect_api) as client:
                deleted = client.delete(f"/flow_runs/{ids['deleted']}")
            assert deleted.status_code in (204, 404)  # 404: a busy server had deleted it before it answered 503.
            is_deleted.set()
            wait_for(lambda: "Completed" in _names(api, ids["other"]))
            plain_id = plain_flow()
            wait_for(lambda: _names(api, plain_id) == ["Completed"] * 10)
        finally:
            is_deleted.set()
            over.set()
        runs["other"].result(PATIENCE)
        with contextlib.suppress(ObjectNotFound):  # Prefect cannot set its final state.
            runs["deleted"].result(PATIENCE)
    assert (reports["other"].complete, set(_names(api, ids["other"]))) == (True, {"Completed"})
    set_aside = reports["deleted"]
    assert (set_aside.recorded, set_aside.kept, len(set_aside.missing)) == (0, (), set_aside.jobs)
    ours = [record for record in caplog.records if record.name == "executor_adapter.prefect"]
    (said,) = [record for record in ours if str(ids["deleted"]) in record.getMessage()]
    assert "was deleted" in said.getMessage()


def _names(api: Api, flow_run_id: UUID) -> list[Any]:
    return [run["state_name"] for run in api.task_runs(flow_run_id)]
