"""Contract: Prefect's own calls work in the function of every job, whatever runs it, and the server shows their effect.

The functions that make the calls are in `prefect_calls`. A case is one job: a seam by which a flow runs it, a pool, and
a sync or an async function.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from prefect import flow, task
from prefect.blocks.system import Secret

from executor_adapter import Job, JobExecutor, JobResult
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.prefect import JobTaskRunner, arun_jobs, job_options, job_task, run_jobs
from tests.prefect.conftest import own_id
from tests.prefect.prefect_calls import FUNCTIONS
from tests.servers import api_client
from tests.waiting import wait_for

DEPLOYMENT = "called/everything"
EVERY_POOL = ("sync_thread", "sync_process", "async_thread", "async_coroutine", "async_process")
PAUSING = {"called_sync_process", "called_async_process", "bulk_sync_process"}
"""Cases that pause their flow run, each until it is resumed."""


Cases = Mapping[str, Sequence[str]]
"""For each seam, the functions and pools to try, as `kind_pool`."""


@pytest.fixture(scope="module")
def server(prefect_api: str) -> Iterator[httpx.Client]:
    """The server, with what the calls need there: a deployment, a saved secret and a concurrency limit."""
    with api_client(prefect_api) as client:

        def create(path: str, **body: Any) -> Any:
            return client.post(path, json=body).raise_for_status().json()

        called = create("/flows/", name="called")
        create("/deployments/", name="everything", flow_id=called["id"], enforce_parameter_schema=False)
        if client.get("/v2/concurrency_limits/everything").status_code == HTTPStatus.NOT_FOUND:
            create("/v2/concurrency_limits/", name="everything", limit=100, active=True)
        Secret(value="shared").save("everything", overwrite=True)
        yield client


class Results:
    """What the functions of one flow run returned, by case, and the flow run's id."""

    def __init__(self) -> None:
        self.returned: dict[str, dict[str, Any]] = {}
        self.flow_run_id = ""

    def add(self, case: str, returned: dict[str, Any]) -> None:
        self.returned[case] = returned

    def add_jobs(self, jobs: Mapping[str, Job], run: Callable[[Iterable[Job]], list[JobResult]]) -> None:
        for case, result in zip(jobs, run(jobs.values()), strict=True):
            assert result.error is None, (case, result.error)
            self.add(case, result.value)


@contextmanager
def resuming(server: httpx.Client) -> Iterator[None]:
    """Resume whatever flow run is paused, until the block ends."""
    done = threading.Event()

    def resume() -> None:
        while not done.wait(0.1):
            body = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}, "name": {"any_": ["Paused"]}}}}
            for paused in server.post("/flow_runs/filter", json=body).raise_for_status().json():
                server.post(f"/flow_runs/{paused['id']}/resume", json={})

    thread = threading.Thread(target=resume)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def check(server: httpx.Client, results: Results) -> None:
    """Check for each case that the calls returned what they should, and left what they should on the server."""
    names = {server.get(f"/flow_runs/{results.flow_run_id}").raise_for_status().json()["name"]}
    for case, returned in results.returned.items():
        key = case.replace("_", "-")
        expected = {"variable": "1", "secret": "shared", "input": case, "suspended": "Cannot suspend task runs."}
        assert returned | expected == returned, case
        assert {returned["name"], returned["client"]} == names, case
        for variable in (case, f"{case}_triggered"):
            server.get(f"/variables/name/{variable}").raise_for_status()
        server.get(f"/block_types/slug/secret/block_documents/name/{key}").raise_for_status()
        called = server.get(f"/flow_runs/{returned['flow run']}").raise_for_status().json()
        assert called["name"] == case
        parent = server.get(f"/task_runs/{called['parent_task_run_id']}").raise_for_status().json()
        assert parent["flow_run_id"] == results.flow_run_id
        assert parent["task_inputs"]["__parents__"] == [{"input_type": "task_run", "id": returned["task run"]}]
    _check_artifacts(server, results)
    _check_inputs(server, results)
    wait_for(lambda: _emitted(server, results) == {case: case for case in results.returned})


def _check_artifacts(server: httpx.Client, results: Results) -> None:
    of_flow_run = {"artifacts": {"flow_run_id": {"any_": [results.flow_run_id]}}, "limit": 200}
    found = server.post("/artifacts/filter", json=of_flow_run).raise_for_status().json()
    for case, returned in results.returned.items():
        key = case.replace("_", "-")
        own = {artifact["key"] for artifact in found if artifact["task_run_id"] == returned["task run"]}
        assert own == {key, f"{key}-table", f"{key}-link"}, case


def _check_inputs(server: httpx.Client, results: Results) -> None:
    body = {"prefix": "", "limit": 200}
    found = server.post(f"/flow_runs/{results.flow_run_id}/input/filter", json=body).raise_for_status().json()
    senders = {given["sender"] for given in found}
    assert senders == {f"prefect.flow-run.{results.flow_run_id}"}


def _emitted(server: httpx.Client, results: Results) -> dict[str, str]:
    names = [f"test.{case}" for case in results.returned]
    body = {"filter": {"event": {"name": names}}, "limit": 50}
    cases = {returned["task run"]: case for case, returned in results.returned.items()}
    emitted = {}
    for event in server.post("/events/filter", json=body).raise_for_status().json()["events"]:
        for related in event["related"]:
            task_run_id = related["prefect.resource.id"].removeprefix("prefect.task-run.")
            if task_run_id in cases:
                emitted[cases[task_run_id]] = event["event"].removeprefix("test.")
    return emitted


def call(cases: Cases, seam: str) -> dict[str, Any]:
    """Return job tasks of the cases of `seam`, by case."""
    made = {}
    for case in cases.get(seam, ()):
        kind, pool = case.split("_")
        made[f"{seam}_{case}"] = job_task(FUNCTIONS[kind], pool=pool, retry_attempts=0)
    return made


def jobs_of(cases: Cases, seam: str) -> dict[str, Job]:
    """Return jobs of the cases of `seam`, by case."""
    return {
        f"{seam}_{case}": Job(
            function=FUNCTIONS[case.split("_")[0]],
            args=(f"{seam}_{case}", DEPLOYMENT, f"{seam}_{case}" in PAUSING),
            pool=case.split("_")[1],
            retry_attempts=0,
        )
        for case in cases.get(seam, ())
    }


def run_in_a_flow(cases: Cases) -> Results:
    """Run the cases in a flow with Prefect's own task runner: job tasks called and submitted, and jobs of run_jobs."""
    results = Results()

    @flow
    def run() -> None:
        results.flow_run_id = str(own_id())
        futures = {
            case: made.submit(case, DEPLOYMENT, case in PAUSING) for case, made in call(cases, "submitted").items()
        }
        for case, made in call(cases, "called").items():
            called = made(case, DEPLOYMENT, case in PAUSING)
            results.add(case, asyncio.run(called) if made.isasync else called)
        results.add_jobs(jobs_of(cases, "bulk"), run_jobs)
        for case, future in futures.items():
            results.add(case, future.result())

    run()
    return results


def run_under_a_job_task_runner(cases: Cases) -> Results:
    """Run the cases in a flow under JobTaskRunner: plain tasks."""
    results = Results()

    @flow(task_runner=JobTaskRunner(max_workers=2))
    def run() -> None:
        results.flow_run_id = str(own_id())
        futures = {}
        for case in cases.get("plain", ()):
            kind, pool = case.split("_")
            made = job_options(pool=pool)(task(FUNCTIONS[kind]))
            futures[f"plain_{case}"] = made.submit(f"plain_{case}", DEPLOYMENT, False)
        for case, future in futures.items():
            results.add(case, future.result())

    run()
    return results


def run_in_an_async_flow(cases: Cases) -> Results:
    """Run the cases in an async flow whose worker processes are spawned: job tasks called, and jobs of arun_jobs."""
    results = Results()

    @flow
    async def run() -> None:
        results.flow_run_id = str(own_id())
        for case, made in call(cases, "awaited").items():
            called = made(case, DEPLOYMENT, False)
            results.add(case, await called if made.isasync else called)
        made_jobs = jobs_of(cases, "spawned")
        returned = await arun_jobs(made_jobs.values())
        results.add_jobs(made_jobs, lambda _: returned)

    with JobExecutor(2, config=Settings(executor=ExecutorSettings(start_method="spawn"))):
        asyncio.run(run())
    return results


def test_calls_work_in_job_tasks_and_run_jobs(server: httpx.Client, executor: JobExecutor) -> None:
    """In a flow, in job tasks and in jobs of run_jobs, every call leaves its effect on the server."""
    cases = {
        "called": ["async_process"],
        "submitted": ["sync_process"],
        "bulk": ["sync_thread", "async_coroutine"],
    }
    with resuming(server):
        check(server, run_in_a_flow(cases))


@pytest.mark.chaos
@pytest.mark.parametrize("run", [run_in_a_flow, run_under_a_job_task_runner, run_in_an_async_flow])
def test_calls_work_in_every_case(server: httpx.Client, executor: JobExecutor, run: Callable[[Cases], Results]) -> None:
    """Every seam, pool and kind of function leaves the effects of every call on the server."""
    seams = ("called", "submitted", "bulk", "plain", "awaited", "spawned")
    with resuming(server):
        check(server, run(dict.fromkeys(seams, EVERY_POOL)))
