"""Final states that the server has lost are sent again, and only those."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.transactions import transaction
from pytest_mock import MockerFixture

from executor_adapter.prefect import job_task, wait_until_recorded
from executor_adapter.prefect.mirror import sender
from executor_adapter.prefect.mirror.server import ServerApi
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


FINAL = re.compile(rb'"event":"prefect.task-run.(?:Completed|Failed)"')


@contextlib.contextmanager
def events_lost(mocker: MockerFixture, finals: int) -> Iterator[None]:
    """Drop every event silently, as a server with a full queue does, until so many final states were sent."""
    mocker.patch.object(sender, "RECORDING_STALL_TIMEOUT", 1.0)
    send = mocker.patch.object(ServerApi, "send")
    try:

        def sent() -> bytes:
            return b"".join(body for call in send.call_args_list for body in call.args[0])

        yield
        wait_for(lambda: len(FINAL.findall(sent())) >= finals)
    finally:
        mocker.stopall()


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


def test_lost_states_are_sent_again_with_all_fields_of_the_first_event(api: Api, mocker: MockerFixture) -> None:
    """Lost states are sent again with all fields of their first event, and the report counts them."""

    @flow
    def run() -> Any:
        with events_lost(mocker, finals=3):
            futures = [double.submit(1), persisted.submit(2), fail.submit()]
            for future in futures:
                future.wait()
            assert not wait_until_recorded(timeout=0.5).complete
        report = wait_until_recorded()
        assert report.complete, str(report)
        return report, [future.task_run_id for future in futures]

    report, ids = run()
    assert (report.recorded, report.resent, report.missing) == (3, 3, ())
    lost, kept, failed = (api.task_run(task_run_id) for task_run_id in ids)
    assert (lost["state_name"], kept["state_name"], failed["state_name"]) == ("Completed", "Completed", "Failed")
    assert failed["run_count"] == 2
    assert lost["flow_run_id"] == str(report.flow_run_id)
    assert lost["start_time"] <= lost["end_time"]
    assert lost["end_time"] <= api.states(ids[0])[-1]["timestamp"]
    assert api.states(ids[1])[-1]["data"]["storage_key"]
    assert failed["state"]["message"] == "NETWORK_ERROR: ConnectionError: down"


def test_recorded_states_are_not_sent_again(api: Api) -> None:
    """Recorded states are not sent again; the report counts the job task and waits for the plain task."""

    @flow
    def run() -> Any:
        future = double.submit(1)
        plain()
        future.result()
        return wait_until_recorded(), future.task_run_id

    report, task_run_id = run()
    assert (report.recorded, report.resent, report.complete) == (1, 0, True)
    assert api.state_names(task_run_id) == ["Pending", "Running", "Completed"]
    assert len(api.task_runs(report.flow_run_id)) == 2
    assert "every task run" in str(report)


def test_task_runs_that_have_not_ended_are_waited_for(api: Api) -> None:
    """A task run that has not ended is reported when the time is over; one that never starts is not waited for."""
    is_over = threading.Event()

    @task
    def lasts() -> None:
        is_over.wait(PATIENCE)

    @flow
    def run() -> Any:
        plain.submit(wait_for=[fail.submit()]).wait()
        future = lasts.submit()
        wait_for(lambda: api.task_run(future.task_run_id)["state_name"] == "Running")
        early = wait_until_recorded(timeout=0)
        is_over.set()
        return early, wait_until_recorded(), future.task_run_id

    early, late, task_run_id = run()
    assert (early.complete, early.unfinished) == (False, (task_run_id,))
    assert str(task_run_id) in str(early)
    assert late.complete, str(late)


def test_the_wait_ends_in_time_and_reports_the_missing_task_runs(api: Api, mocker: MockerFixture) -> None:
    """The wait ends in time and reports the missing task runs, whose states another flow sends."""

    @flow
    def run() -> Any:
        future = double.submit(1)
        future.wait()
        return wait_until_recorded(timeout=0.5), future.task_run_id

    with events_lost(mocker, finals=1):
        report, task_run_id = run()
    assert (report.complete, report.recorded, report.missing) == (False, 0, (task_run_id,))
    assert str(task_run_id) in str(report)
    # The state was left in the outbox; the next flow with a job task sends it.
    flow(lambda: double.submit(2).result(), name="other")()
    found = api.task_run(task_run_id)
    assert (found["flow_run_id"], found["state_name"]) == (str(report.flow_run_id), "Completed")


def test_a_task_run_that_was_rolled_back_is_recorded(api: Api) -> None:
    """The Completed state of a rolled-back task run counts as final, although a newer one follows."""

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


def test_outside_a_flow_the_flow_run_must_be_given(prefect_api: str) -> None:
    """Outside a flow, the message names the missing argument."""
    with pytest.raises(RuntimeError, match="give flow_run_id"):
        wait_until_recorded()
    assert wait_until_recorded(str(uuid4())).complete
