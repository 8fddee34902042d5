"""Each automation of the bootstrap fires on a real server when it should, and not otherwise."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.config import Settings
from executor_adapter.monitoring import Alert, HealthMonitor, health
from executor_adapter.prefect import BootstrapPlan, emit_alert, job_events, run_jobs
from executor_adapter.prefect.mirror.runs import flush_events
from executor_adapter.prefect.setup.automations import automations
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

HEARTBEAT_SECONDS = 4
PENDING_SECONDS = 10
POOL = "scheduled-again"

OTHER = "of-another-team"

Created = dict[str, UUID]


@pytest.fixture(scope="module")
def prefect_api(server_of_file: str) -> str:
    """The automations fire at jobs and flow runs of others too."""
    return server_of_file


def create(plan: BootstrapPlan) -> Created:
    """Create the automations of a plan, and return their ids by the end of their names."""
    with get_client(sync_client=True) as client:
        return {each.name.partition(": ")[2]: client.create_automation(each) for each in automations(plan)}


@pytest.fixture(scope="module")
def created(prefect_api: str) -> Created:
    """The automations of the pool on the server."""
    quick = {"heartbeat_seconds": HEARTBEAT_SECONDS, "pending_seconds": PENDING_SECONDS}  # Too short to be allowed.
    return create(BootstrapPlan(work_pool=POOL, crashes_rescheduled=2).model_copy(update=quick))


@pytest.fixture(scope="module")
def of_others(prefect_api: str) -> Created:
    """The automations of another team's pool on the server."""
    return create(BootstrapPlan(work_pool=OTHER, crashes_rescheduled=2))


def fired(api: Api, automation: UUID) -> list[str]:
    """Return the ids of the resources for which the automation has fired."""
    wanted = {
        "event": {"name": ["prefect.automation.triggered"]},
        "resource": {"id": [f"prefect.automation.{automation}"]},
    }
    events = api.post("/events/filter", {"filter": wanted, "limit": 50})["events"]
    return [event["payload"]["triggering_labels"]["prefect.resource.id"] for event in events]


def hang() -> None:
    time.sleep(60)


def fail() -> None:
    raise LookupError("no such row")


def crash() -> None:
    os._exit(3)


def new_flow_run(api: Api, state: dict[str, Any], **fields: str) -> str:
    flow_id = api.post("/flows/", {"name": "watched"})["id"]
    return str(api.post("/flow_runs/", {"flow_id": flow_id, "state": state} | fields)["id"])


def new_deployment(api: Api, pool: str) -> str:
    """Return the id of a deployment of a work pool, which is created with it."""
    if not api.post("/work_pools/filter", {"work_pools": {"name": {"any_": [pool]}}}):
        api.post("/work_pools/", {"name": pool, "type": "process"})
    flow_id = api.post("/flows/", {"name": f"flow of {pool}"})["id"]
    body = {"flow_id": flow_id, "name": "test", "entrypoint": "flow.py:flow", "work_pool_name": pool}
    return str(api.post("/deployments/", body)["id"])


def create_run(api: Api, deployment: str) -> str:
    return str(api.post(f"/deployments/{deployment}/create_flow_run", {})["id"])


def run_in_pool(api: Api, function: Callable[[], None]) -> str:
    """Run a function in a flow run of the pool, as its worker does, and return the id of the run."""
    run = create_run(api, new_deployment(api, POOL))
    set_state(api, run, "PENDING")
    run_flow(flow(function), flow_run=FlowRun.model_validate(api.get(f"/flow_runs/{run}")))
    return run


def set_state(api: Api, flow_run_id: str, state_type: str, name: str | None = None) -> None:
    state = {"type": state_type} | ({} if name is None else {"name": name})
    api.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": True})


def test_failing_jobs_fire(api: Api, created: Created, of_others: Created) -> None:
    """A job past its limit, a quarantined one and a high failure rate fire; other jobs do not.

    The automations of another pool do not fire.
    """
    names = {name: f"{name}-{uuid4().hex[:8]}" for name in ("hangs", "fails", "crashes", "dies", "fine")}
    policies = {name: RetryPolicy(retry_attempts=0, crash_attempts=0 if name == "crashes" else 2) for name in names}
    limits = dict.fromkeys(names, 60.0) | {"hangs": 0.5}
    functions = {"hangs": hang, "fails": fail, "crashes": crash, "dies": crash, "fine": int}

    def watched() -> None:
        with JobExecutor(2, config=Settings()) as executor, job_events(executor=executor):
            jobs = [
                Job(
                    function=function,
                    job_id=names[name],
                    pool="process",
                    max_runtime=limits[name],
                    retry=policies[name],
                )
                for name, function in functions.items()
            ]
            run_jobs(jobs, executor=executor)
            (alert,) = HealthMonitor(executor, on_alert=[emit_alert]).check()
            assert alert.value == 0.8

    flow_run_id = run_in_pool(api, watched)
    flush_events(10)
    wait_for(lambda: fired(api, created["quarantined job"]) == [f"executor-adapter.job.{names['crashes']}"])
    wait_for(lambda: fired(api, created["job past its limit"]) == [f"executor-adapter.job.{names['hangs']}"])
    wait_for(lambda: len(fired(api, created["high failure rate"])) == 1)
    assert flow_run_id not in str(fired(api, created["crashed flow run"]))
    assert [fired(api, of_others[name]) for name in of_others] == [[] for _ in of_others]


def test_a_job_near_its_limit_fires_before_it_ends(api: Api, created: Created, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running job that has used most of its max_runtime or deadline fires, and one that has used little does not."""
    monkeypatch.setattr(health, "LOOK_INTERVAL", 0.02)
    names = {name: f"{name}-{uuid4().hex[:8]}" for name in ("runtime", "deadline", "fine")}
    limits: dict[str, dict[str, Any]] = {"runtime": {"max_runtime": 1.0}, "deadline": {"deadline": 1.0}, "fine": {}}
    alerts: list[Alert] = []
    go_on = threading.Event()

    def on_alert(alert: Alert) -> None:
        emit_alert(alert)
        alerts.append(alert)
        if len(alerts) == 2:
            go_on.set()

    def watched() -> None:
        with JobExecutor(3, config=Settings()) as executor, HealthMonitor(executor, on_alert=[on_alert]):
            jobs = {name: Job(function=go_on.wait, job_id=names[name], pool="thread", **limits[name]) for name in names}
            for future in [executor.submit(job) for job in jobs.values()]:
                assert future.result(timeout=PATIENCE) is True, "it has not ended at its limit"

    run_in_pool(api, watched)
    flush_events(10)
    near = {f"executor-adapter.job.{names[name]}" for name in ("runtime", "deadline")}
    wait_for(lambda: near <= set(fired(api, created["job near its limit"])))
    assert f"executor-adapter.job.{names['fine']}" not in fired(api, created["job near its limit"])


def test_a_crashed_and_a_failed_flow_run_fire(api: Api, created: Created, of_others: Created) -> None:
    """Each of the two fires for flow runs of its own pool alone, a time-out among the failed; none for other ends."""
    ends = {"completed": None, "cancelled": None, "crashed": None, "failed": None, "timed out": "TimedOut"}
    deployments = {"mine": new_deployment(api, POOL), "of others": new_deployment(api, OTHER), "by hand": None}
    found: dict[str, str] = {}
    for whose, deployment in deployments.items():
        for end, name in ends.items():
            run = create_run(api, deployment) if deployment else new_flow_run(api, {"type": "SCHEDULED"})
            found[f"prefect.flow-run.{run}"] = f"{whose} {end}"
            set_state(api, run, "PENDING")
            set_state(api, run, "RUNNING")
            set_state(api, run, "FAILED" if name else end.upper(), name)

    def fired_for(automation: UUID) -> set[str]:
        return {found[each] for each in fired(api, automation) if each in found}

    crashed = {whose: f"{whose} crashed" for whose in deployments}
    failed = {whose: {f"{whose} failed", f"{whose} timed out"} for whose in deployments}
    for automations_of, whose in ((created, "mine"), (of_others, "of others")):
        wait_for(lambda: fired_for(automations_of["crashed flow run"]) == {crashed[whose]})  # noqa: B023
        wait_for(lambda: fired_for(automations_of["failed flow run"]) == failed[whose])  # noqa: B023
    assert fired_for(created["crashed flow run"]) == {crashed["mine"]}
    assert fired_for(created["failed flow run"]) == failed["mine"]


def test_a_crashed_flow_run_is_scheduled_again_but_not_for_ever(api: Api, created: Created) -> None:
    """A run of the work pool that crashed is scheduled again as often as planned; one of another pool is not."""
    pool = f"pool-{uuid4().hex[:8]}"
    watching, other = create(BootstrapPlan(work_pool=pool)), create_run(api, new_deployment(api, pool))
    run = create_run(api, new_deployment(api, POOL))
    for start in (1, 2, 3):
        set_state(api, run, "RUNNING")
        assert api.get(f"/flow_runs/{run}")["run_count"] == start
        set_state(api, run, "CRASHED")
        if start < 3:
            wait_for(lambda: api.get(f"/flow_runs/{run}")["state_name"] == "AwaitingRetry")
    set_state(api, other, "RUNNING")
    set_state(api, other, "CRASHED")
    wait_for(lambda: f"prefect.flow-run.{other}" in fired(api, watching["crashed flow run"]))
    both = [f"prefect.flow-run.{each}" for each in (run, other)]
    assert [each for each in fired(api, created["restart a crashed run"]) if each in both] == [both[0]] * 2
    assert [api.get(f"/flow_runs/{each}")["state_name"] for each in (run, other)] == ["Crashed", "Crashed"]


def test_a_flow_run_that_crashes_before_it_starts_is_scheduled_again_twice(api: Api, created: Created) -> None:
    """A run that its worker cannot start is scheduled again after the first two crashes; one that fails is not."""
    deployment = new_deployment(api, POOL)
    run, failed = create_run(api, deployment), create_run(api, deployment)
    set_state(api, failed, "PENDING")
    set_state(api, failed, "FAILED")
    for crash in (1, 2, 3):
        set_state(api, run, "PENDING")
        set_state(api, run, "CRASHED")
        if crash < 3:
            wait_for(lambda: api.get(f"/flow_runs/{run}")["state_name"] == "AwaitingRetry")
    # The automation on all crashes comes after the one that was not to fire.
    wait_for(lambda: fired(api, created["crashed flow run"]).count(f"prefect.flow-run.{run}") == 3)
    assert [api.get(f"/flow_runs/{each}")["state_name"] for each in (run, failed)] == ["Crashed", "Failed"]


@pytest.mark.chaos
def test_a_flow_run_that_never_starts_is_scheduled_again(api: Api, created: Created) -> None:
    """A run that a worker took and did not start is scheduled again; one that runs, or is of another pool, is not."""
    deployment = new_deployment(api, POOL)
    stuck, starts = create_run(api, deployment), create_run(api, deployment)
    other = create_run(api, new_deployment(api, f"pool-{uuid4().hex[:8]}"))
    for run in (stuck, starts, other):
        set_state(api, run, "PENDING")
    set_state(api, starts, "RUNNING")
    wait_for(lambda: api.get(f"/flow_runs/{stuck}")["state_name"] == "AwaitingRetry")
    time.sleep(2 * PENDING_SECONDS)  # The others would fire a moment later at the most.
    assert fired(api, created["restart a stuck run"]) == [f"prefect.flow-run.{stuck}"]
    assert [api.get(f"/flow_runs/{each}")["state_name"] for each in (starts, other)] == ["Running", "Pending"]


@pytest.mark.chaos
def test_a_missed_schedule_fires(api: Api, created: Created) -> None:
    """A flow run that nobody has started in time fires; one that is not due yet does not."""
    new_deployment(api, POOL)  # With the pool.
    runs = {}
    for name, hours in (("late", -1), ("later", 1)):
        due = datetime.now(UTC) + timedelta(hours=hours)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        runs[name] = new_flow_run(api, state, work_pool_name=POOL)
    wait_for(lambda: f"prefect.flow-run.{runs['late']}" in fired(api, created["missed schedule"]))
    assert f"prefect.flow-run.{runs['later']}" not in fired(api, created["missed schedule"])


@pytest.mark.chaos
def test_a_flow_run_without_heartbeat_fires_and_becomes_crashed(api: Api, created: Created) -> None:
    """One of the pool whose heartbeats stop fires; one that ends, waits, still sends them or is of others does not."""
    EventsWorker.drain_all(timeout=10)  # One that a flow run of the pool has started relates all events to that.
    new_deployment(api, POOL)  # With the pool.
    running = {"type": "RUNNING"}
    runs = {name: new_flow_run(api, running, work_pool_name=POOL) for name in ("lost", "ended", "waits", "alive")}
    runs["of others"] = new_flow_run(api, running)

    def beat(*names: str) -> None:
        for name in names:
            pool = "another pool" if name == "of others" else POOL
            related = {
                "prefect.resource.id": f"prefect.work-pool.{pool}",
                "prefect.resource.role": "work-pool",
                "prefect.resource.name": pool,
            }
            resource = {"prefect.resource.id": f"prefect.flow-run.{runs[name]}"}
            emit_event("prefect.flow-run.heartbeat", resource, related=[related])
        flush_events(10)

    stop = threading.Event()

    def keep_beating() -> None:
        while not stop.wait(HEARTBEAT_SECONDS / 2):
            beat("alive")

    beat(*runs)
    set_state(api, runs["ended"], "COMPLETED")
    set_state(api, runs["waits"], "PAUSED")
    beating = threading.Thread(target=keep_beating)
    beating.start()
    try:
        lost = f"prefect.flow-run.{runs['lost']}"
        wait_for(lambda: lost in fired(api, created["flow run without heartbeat"]))
        time.sleep(2 * HEARTBEAT_SECONDS)  # The others would fire a moment later at the most.
    finally:
        stop.set()
        beating.join()
    mine = {f"prefect.flow-run.{run}": name for name, run in runs.items()}
    assert {mine[each] for each in fired(api, created["flow run without heartbeat"]) if each in mine} == {"lost"}
    wait_for(lambda: api.get(f"/flow_runs/{runs['lost']}")["state_type"] == "CRASHED")
