"""Final states that the server has lost are sent again, and only those."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow
from prefect.transactions import transaction
from pytest_mock import MockerFixture

from executor_adapter.prefect import job_task
from executor_adapter.prefect.mirror import runs, sender
from executor_adapter.prefect.mirror.server import ServerApi
from tests.prefect.conftest import Api, own_id
from tests.waiting import wait_for

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


def test_lost_states_are_sent_again_with_all_fields_of_the_first_event(api: Api, mocker: MockerFixture) -> None:
    """Lost states are sent again before the flow ends, with all fields of their first event."""

    @flow
    def run() -> Any:
        with events_lost(mocker, finals=3):
            futures = [double.submit(1), persisted.submit(2), fail.submit()]
            for future in futures:
                future.wait()
        return own_id(), [future.task_run_id for future in futures]

    flow_run_id, ids = run()
    lost, kept, failed = (api.task_run(task_run_id) for task_run_id in ids)
    assert (lost["state_name"], kept["state_name"], failed["state_name"]) == ("Completed", "Completed", "Failed")
    assert failed["run_count"] == 2
    assert lost["flow_run_id"] == str(flow_run_id)
    assert lost["start_time"] <= lost["end_time"]
    assert lost["end_time"] <= api.states(ids[0])[-1]["timestamp"]
    assert api.states(ids[1])[-1]["data"]["storage_key"]
    assert failed["state"]["message"] == "NETWORK_ERROR: ConnectionError: down"


def test_recorded_states_are_not_sent_again(api: Api, mocker: MockerFixture) -> None:
    """Recorded states are not sent again."""
    send = mocker.spy(ServerApi, "send")

    @flow
    def run() -> Any:
        future = double.submit(1)
        future.result()
        return future.task_run_id

    task_run_id = run()
    assert api.state_names(task_run_id) == ["Pending", "Running", "Completed"]
    assert len(FINAL.findall(b"".join(body for call in send.call_args_list for body in call.args[1]))) == 1


def test_what_is_not_recorded_at_the_end_of_a_flow_is_sent_by_the_next(api: Api, mocker: MockerFixture) -> None:
    """A flow whose states the server does not record ends in time, and the next flow with a job task sends them."""
    mocker.patch.object(runs, "FLOW_END_STALL_TIMEOUT", 0.5)

    @flow
    def run() -> Any:
        future = double.submit(1)
        future.wait()
        return own_id(), future.task_run_id

    with events_lost(mocker, finals=1):
        flow_run_id, task_run_id = run()
    assert api.task_run(task_run_id)["state_name"] is None
    flow(lambda: double.submit(2).result(), name="other")()
    found = api.task_run(task_run_id)
    assert (found["flow_run_id"], found["state_name"]) == (str(flow_run_id), "Completed")


def test_a_task_run_that_was_rolled_back_is_recorded(api: Api) -> None:
    """The Completed state of a rolled-back task run counts as final, although a newer one follows."""

    @flow
    def run() -> Any:
        states = []
        with contextlib.suppress(ConnectionError), transaction():
            states.append(double(1, return_state=True))
            fail()
        return states[0].state_details.task_run_id

    assert api.state_names(run())[:3] == ["Pending", "Running", "Completed"]
