"""A flow whose tasks become job tasks has the states, the results and the output that it had before."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task

from executor_adapter import JobExecutor
from executor_adapter.prefect import job_task
from tests.prefect.conftest import Api
from tests.servers import ROOT, new_user_env
from tests.waiting import PATIENCE, wait_for

PROGRAM = Path(__file__).with_name("stock_flow.py")
POOLS = ["thread", "process"]
TASK_RUNS = 19  # Twelve tasks, some of them more than once, and the subflow.
ENDED = {"Completed", "Failed", "Cached", "TimedOut", "Crashed"}

Shown = tuple[list[str], Counter[str], Counter[str]]
"""What a flow shows: its lines on stdout in their order, those of its log, and its task runs with their states."""


@pytest.fixture(scope="module", params=POOLS)
def both(
    request: pytest.FixtureRequest, prefect_api: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shown, Shown]:
    """What the flow shows with plain tasks, and with job tasks in a pool; the two run side by side."""
    running = [start_flow(kind, tmp_path_factory.mktemp(kind), prefect_api) for kind in ("task", request.param)]
    of_tasks, of_job_tasks = (end_flow(process, Api(prefect_api)) for process in running)
    return of_tasks, of_job_tasks


def start_flow(kind: str, home: Path, url: str) -> subprocess.Popen[str]:
    env = new_user_env(home, PREFECT_API_URL=url, PREFECT_LOCAL_STORAGE_PATH=str(home), PYTHONPATH=str(ROOT))
    command = [sys.executable, str(PROGRAM), kind, str(home)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, cwd=home, text=True, **pipes)


def end_flow(process: subprocess.Popen[str], api: Api) -> Shown:
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stdout + stderr
    *lines, flow_run_id = stdout.splitlines()
    flow_runs = [flow_run_id, *(run["id"] for run in children_of(api, flow_run_id))]

    def task_runs() -> list[dict[str, object]]:
        found: list[dict[str, object]] = api.post("/task_runs/filter", {"flow_runs": {"id": {"any_": flow_runs}}})
        return found

    wait_for(lambda: {run["state_name"] for run in task_runs()} <= ENDED, what="task runs that have ended")
    states = Counter(
        f"{without_suffix(str(run['name']))} {run['tags']} {run['run_count']}: {api.state_names(str(run['id']))}"
        for run in task_runs()
    )
    return lines, Counter(log_lines(stderr)), states


def children_of(api: Api, flow_run_id: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = api.post(
        "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
    )
    return found


def without_suffix(text: str) -> str:
    """Return the text without what Prefect adds at random: names and ids of flow runs, and the ends of task runs'."""
    text = re.sub(r"\b([a-z_]+|within a subflow)-[0-9a-f]{3}\b", r"\1", text)
    return re.sub(r"(Flow run|flow run) '[a-z-]+'|http://\S+", "Flow run", text)


def log_lines(stderr: str) -> list[str]:
    """Return the lines without their times, and tracebacks without their frames, which name each program's own files.

    How an attempt failed is in other words, since what follows is decided by other rules.
    """
    lines = [re.sub(r"^\d\d:\d\d:\d\d\.\d+ ", "", line) for line in stderr.splitlines()]
    failed = r".*(Task run '.*') - (?:Task run failed with exception|Attempt failed|Job failed): (\w+\(.*?\)).*"
    lines = [re.sub(failed, r"\1 failed: \2", line) for line in lines]
    shown = [line for line in lines if not line.startswith((" ", "Traceback"))]
    # A slow machine may be told that the worker processes are still being prepared.
    return [without_suffix(line) for line in shown if "is not ready after" not in line]


AT_ONCE = 40


@pytest.mark.parametrize("is_async", [False, True], ids=["functions", "coroutines"])
@pytest.mark.parametrize(
    "kind", [pytest.param(task, id="task", marks=pytest.mark.nightly), pytest.param(job_task, id="job_task")]
)
def test_as_many_run_at_once_as_of_tasks(prefect_api: str, kind: Callable[..., Any], is_async: bool) -> None:
    """Each of forty functions, and of forty coroutines, begins before any of them ends."""
    begun: list[int] = []
    until = time.monotonic() + PATIENCE

    def is_last(number: int) -> bool:
        assert time.monotonic() < until, f"{len(begun)} run at once"
        begun.extend({number}.difference(begun))
        return len(begun) == AT_ONCE

    def meet(number: int) -> None:
        while not is_last(number):
            time.sleep(0.01)

    async def meet_async(number: int) -> None:
        while not is_last(number):
            await asyncio.sleep(0.01)

    @flow
    def run() -> None:
        kind(meet_async if is_async else meet).map(range(AT_ONCE)).result()

    with JobExecutor():
        run()
    assert len(begun) == AT_ONCE


@pytest.mark.nightly
def test_job_tasks_have_the_states_of_tasks(both: tuple[Shown, Shown]) -> None:
    """Retries, caching, mapping, subflows, hooks, results, tags, coroutines and data frames end as they did before."""
    (*_, of_tasks), (*_, of_job_tasks) = both
    assert of_job_tasks == of_tasks
    assert of_tasks.total() == TASK_RUNS


@pytest.mark.nightly
def test_job_tasks_show_on_the_terminal_what_tasks_show(both: tuple[Shown, Shown]) -> None:
    """What the flow and its tasks print and log is on the same stream, the lines of stdout in the same order."""
    (printed, logged, _), (printed_by_jobs, logged_by_jobs, _) = both
    assert printed_by_jobs == printed
    assert logged_by_jobs == logged
