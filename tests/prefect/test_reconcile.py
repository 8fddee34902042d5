"""Final states that the server lost are told again, and only those."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import TaskRun
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.states import Completed
from prefect.transactions import transaction

from executor_adapter.prefect import job_task, wait_until_recorded
from executor_adapter.prefect.events import FinalStates
from tests.prefect.conftest import Api

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


@contextlib.contextmanager
def events_lost() -> Iterator[None]:
    """Have every event of this process go nowhere, as those that a full server drops."""
    EventsWorker.set_client_override(NullEventsClient)
    try:
        yield
    finally:
        EventsWorker.set_client_override(None)


@job_task(retry_attempts=0)
def double(x: int) -> int:
    return 2 * x


@job_task(retry_attempts=0, persist_result=True)
def persisted(x: int) -> int:
    return 3 * x


@job_task(retry_attempts=1, retry_delay=0)
def fail() -> None:
    raise ConnectionError("down")


@task
def plain() -> int:
    return 1


def test_lost_states_are_told_again_with_all_that_the_first_event_said(api: Api) -> None:
    @flow
    def run() -> Any:
        with events_lost():
            futures = [double.submit(1), persisted.submit(2), fail.submit()]
            for future in futures:
                future.wait()
        assert not wait_until_recorded(timeout=1).complete
        report = wait_until_recorded()
        assert report.complete, str(report)
        return report, [future.task_run_id for future in futures]

    report, ids = run()
    assert (report.recorded, report.emitted_again, report.missing) == (3, 3, ())
    lost, kept, failed = (api.task_run(task_run_id) for task_run_id in ids)
    assert (lost["state_name"], kept["state_name"], failed["state_name"]) == ("Completed", "Completed", "Failed")
    assert failed["run_count"] == 2
    assert lost["flow_run_id"] == str(report.flow_run_id)
    assert lost["start_time"] <= lost["end_time"]
    assert lost["end_time"] <= api.states(ids[0])[-1]["timestamp"]
    assert api.states(ids[1])[-1]["data"]["storage_key"]
    assert failed["state"]["message"] == "NETWORK_ERROR: down"


def test_what_the_server_knows_is_not_told_again(api: Api) -> None:
    @flow
    def run() -> Any:
        future = double.submit(1)
        plain()
        future.result()
        return wait_until_recorded(), future.task_run_id

    report, task_run_id = run()
    assert (report.recorded, report.emitted_again, report.complete) == (1, 0, True)
    assert api.state_names(task_run_id) == ["Pending", "Running", "Completed"]
    assert len(api.task_runs(report.flow_run_id)) == 2
    assert "every task run" in str(report)


def test_it_gives_up_in_time_and_says_which(api: Api) -> None:
    @flow
    def run() -> Any:
        with events_lost():
            future = double.submit(1)
            future.wait()
            return wait_until_recorded(timeout=0.5), future.task_run_id

    report, task_run_id = run()
    assert (report.complete, report.recorded, report.missing) == (False, 0, (task_run_id,))
    assert str(task_run_id) in str(report)
    # From outside, and from a flow run that is not the one: it stays where it was.
    assert flow(lambda: wait_until_recorded(report.flow_run_id), name="other")().complete
    assert api.task_run(task_run_id)["flow_run_id"] == str(report.flow_run_id)


def test_a_task_run_that_was_rolled_back_is_recorded(api: Api) -> None:
    @flow
    def run() -> Any:
        states = []
        with contextlib.suppress(ConnectionError), transaction():
            states.append(double(1, return_state=True))
            fail()
        return wait_until_recorded(), states[0].state_details.task_run_id

    report, task_run_id = run()
    assert report.complete, str(report)
    assert api.state_names(task_run_id)[:3] == ["Pending", "Running", "Completed"]


def test_outside_a_flow_it_must_be_told_which(prefect_api: str) -> None:
    with pytest.raises(RuntimeError, match="give flow_run_id"):
        wait_until_recorded()
    assert wait_until_recorded(str(uuid4())).complete


def test_only_so_many_flow_runs_are_remembered() -> None:
    states = FinalStates(kept_flow_runs=2)
    flow_runs = [uuid4() for _ in range(3)]
    for flow_run_id in flow_runs:
        states.note(double, _task_run(flow_run_id), Completed(), persist_result=False)
    assert [len(states.of(flow_run_id)) for flow_run_id in flow_runs] == [0, 1, 1]
    (remembered,) = states.of(flow_runs[2])
    states.forget(flow_runs[2], {remembered})
    assert states.of(flow_runs[2]) == {}


def _task_run(flow_run_id: UUID) -> TaskRun:
    return TaskRun(task_key="double", dynamic_key="1", flow_run_id=flow_run_id)
