"""run_jobs with `group`: many jobs are one task run, failures have their own, and every job is counted once."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.runtime import flow_run, task_run

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.prefect import PrefectMirror, run_jobs
from executor_adapter.prefect.mirror.outbox import OutboxFile
from tests.prefect.conftest import Api
from tests.prefect.fake_cloud import at_cloud
from tests.prefect.fake_server import FakeServer
from tests.prefect.test_run_jobs import ONCE, fail, run_in_flow

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


def counted(run: dict[str, Any]) -> Counter[str]:
    """Return what the message of a group's task run counts."""
    pairs = re.findall(r"(\d+) (completed|failed|cancelled|jobs)", run["state"]["message"])
    return Counter({what: int(count) for count, what in pairs})


def jobs_with_failures(count: int) -> Iterator[Job]:
    """Yield jobs of which each tenth is retried once, each 25th fails, and one is refused."""
    for number in range(count):
        failures = 2 if number % 25 == 24 else int(number % 10 == 9)
        argument = object if number == 7 else failures
        function = fail if number != 7 else "nowhere:at_all"
        yield Job(function=function, args=(argument,), job_id=f"job-{number}", retry=ONCE, pool="thread")


def test_a_group_is_one_task_run_and_failures_have_their_own(api: Api) -> None:
    """Results are as without groups; the messages of the groups' task runs count each job once."""
    mirror = PrefectMirror(history="full")
    flow_run_id, results = run_in_flow(lambda: jobs_with_failures(250), group=100, mirror=mirror)
    assert [result.job_id for result in results] == [f"job-{number}" for number in range(250)]
    failed = {result.job_id for result in results if result.status is JobStatus.FAILED}
    assert failed == {"job-7", *(f"job-{number}" for number in range(24, 250, 25))}

    runs = api.task_runs(flow_run_id)
    groups = sorted((run for run in runs if "-group-" in run["name"]), key=lambda run: run["name"])
    own = {run["dynamic_key"]: run for run in runs if "-group-" not in run["name"]}
    assert [run["name"] for run in groups] == ["fail-group-1", "fail-group-2", "fail-group-3"]
    assert [run["state_name"] for run in groups] == ["Completed"] * 3
    assert [counted(run)["jobs"] for run in groups] == [100, 100, 50]
    assert sum(map(counted, groups), Counter()) == {"completed": 239, "failed": 11, "jobs": 250}
    assert api.state_names(groups[0]["id"]) == ["Pending", "Running", "Completed"]

    assert own.keys() == failed
    assert {run["state_name"] for run in own.values()} == {"Failed"}
    assert api.state_names(own["job-24"]["id"]) == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]
    assert mirror.close().complete


def test_a_function_in_a_group_sees_the_group_s_task_run(api: Api) -> None:
    """`prefect.runtime` shows the group's task run."""
    jobs = [Job(function=lambda: str(task_run.id), pool="thread") for _ in range(3)]
    flow_run_id, results = run_in_flow(jobs, group=2)
    groups = sorted(api.task_runs(flow_run_id), key=lambda run: run["name"])
    ids = [run["id"] for run in groups]
    assert [result.value for result in results] == [ids[0], ids[0], ids[1]]


def test_cancelled_jobs_are_counted(api: Api) -> None:
    """An exception that ends the run cancels the group: its message counts the jobs that were cancelled."""
    seen: list[UUID] = []

    def jobs() -> Iterator[Job]:
        yield Job(function=dict, pool="thread", job_id="first")
        while not seen:
            time.sleep(0.01)
        for _ in range(5):
            yield Job(function=asyncio.sleep, args=(60,))
        raise KeyError("the source is broken")

    @flow
    def run() -> None:
        with JobExecutor(4) as executor:
            executor.add_observer(lambda t: seen.append(t.job) if t.status is JobStatus.COMPLETED else None)
            ids.append(UUID(str(flow_run.id)))
            run_jobs(jobs(), executor=executor, group=100)

    ids: list[UUID] = []
    with pytest.raises(KeyError):
        run()
    (group,) = api.task_runs(ids[0])
    assert group["state_name"] == "Cancelled"
    assert counted(group) == {"completed": 1, "cancelled": 5, "jobs": 6}


def test_a_group_that_the_server_does_not_get_is_kept(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group whose end the server cannot get is kept like that of a job, and sent by the next mirror."""
    outbox = tmp_path / "outbox.db"
    ids: list[UUID] = []

    @flow
    def run() -> None:
        ids.append(UUID(str(flow_run.id)))
        with at_cloud(FakeServer()) as cloud:
            cloud.events.is_unreachable = True
            mirror = PrefectMirror(outbox=OutboxFile("server", outbox), stall_timeout=0.5)
            run_jobs([Job(function=dict, pool="thread") for _ in range(5)], mirror=mirror, group=5)
            (kept,) = mirror.close(0.0).kept
            assert kept.startswith("group 1 of ")

    run()
    with PrefectMirror(outbox=OutboxFile("server", outbox)) as later:
        later.drain()
    (group,) = api.task_runs(ids[0])
    assert counted(group) == {"completed": 5, "jobs": 5}


@pytest.mark.parametrize("group", [0, -1, 1.5])
def test_a_group_without_jobs_is_refused(group: Any, executor: JobExecutor) -> None:
    """A `group` below 1 is refused in words before any job starts."""
    with pytest.raises(ValueError, match="group"):
        run_in_flow([Job(function=dict, pool="thread")], group=group)


def test_jobs_with_one_dedupe_key_are_counted_each(api: Api) -> None:
    """A job whose live twin runs instead is counted as its twin ends."""
    jobs = [Job(function=time.sleep, args=(0.2,), pool="thread", dedupe_key="one") for _ in range(3)]
    flow_run_id, results = run_in_flow(jobs, group=10)
    assert [result.status for result in results] == [JobStatus.COMPLETED] * 3
    (group,) = api.task_runs(flow_run_id)
    assert counted(group) == {"completed": 3, "jobs": 3}
