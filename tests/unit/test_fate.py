"""Tests of what becomes of a flow run whose process has died."""

from __future__ import annotations

from typing import Any

import pytest

from executor_adapter.prefect.crashes.fate import Death, Fate
from executor_adapter.prefect.crashes.records import FlowRunRecord


def flow_run(state: str, **fields: Any) -> FlowRunRecord:
    values = {
        "id": "1",
        "name": "nightly",
        "state_type": state,
        "state_name": state.capitalize(),
        "run_count": 1,
        "is_deployed": False,
        "is_suspended": False,
        "parent_task_run_id": None,
        "ended_at": None,
    }
    return FlowRunRecord(**(values | fields))


@pytest.mark.parametrize(
    ("run", "fate"),
    [
        *((flow_run(state), Fate.ENDED) for state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")),
        (flow_run("RUNNING"), Fate.CRASH),
        (flow_run("RUNNING", run_count=2), Fate.CRASH),  # It was retried in its process, which has died.
        (flow_run("RUNNING", is_deployed=True), Fate.CRASH),
        (flow_run("RUNNING", is_deployed=True, run_count=2), Fate.CONTINUES),
        (flow_run("CANCELLING"), Fate.CANCEL),
        (flow_run("PENDING"), Fate.CONTINUES),
        (flow_run("PAUSED"), Fate.CRASH),
        (flow_run("PAUSED", is_suspended=True), Fate.CONTINUES),
        (flow_run("SCHEDULED"), Fate.CONTINUES),
        (flow_run("SCHEDULED", state_name="AwaitingRetry"), Fate.CRASH),
        (flow_run("SCHEDULED", state_name="AwaitingRetry", is_deployed=True), Fate.CONTINUES),
    ],
)
def test_a_flow_run_ends_unless_another_process_continues_it(run: FlowRunRecord, fate: Fate) -> None:
    """A dead process's flow run ends, unless it has ended, is suspended, or a worker runs it again."""
    assert Death({run.id: 1}).fate_of(run) is fate


def test_a_flow_run_whose_process_a_runner_started_counts_as_deployed() -> None:
    """A runner may serve a flow run that names no deployment: its next run is another process's."""
    run = flow_run("RUNNING", run_count=2)
    assert Death({run.id: 1}, managed=run.id).fate_of(run) is Fate.CONTINUES
