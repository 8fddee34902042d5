"""Flows whose tasks and jobs run on other machines, with a real Prefect server."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, get_run_logger, task

from executor_adapter import Job
from executor_adapter.prefect import JobTaskRunner, run_jobs
from tests.contract.cluster.dask_cluster import dask_cluster
from tests.contract.cluster.sshd import ssh_server
from tests.prefect.conftest import Api, own_id
from tests.servers import new_user_env
from tests.waiting import PATIENCE, wait_for

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.chaos]


@pytest.fixture(params=["ssh", "dask"])
def far_pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name of a pool of other machines, and its cluster in the environment."""
    folder = tmp_path_factory.mktemp("cluster")
    if request.param == "ssh":
        with ssh_server(folder, ("node1",)) as server:
            monkeypatch.setenv("EXECUTOR_ADAPTER_CLUSTER__SSH", server.settings(slots=2))
            yield "ssh"
    else:
        with dask_cluster(folder, workers=1) as cluster:
            monkeypatch.setenv("EXECUTOR_ADAPTER_CLUSTER__DASK", cluster.settings())
            yield "dask"


@task
def say(word: str) -> str:
    """Log a word, and return it in capitals."""
    get_run_logger().info("the word is %s", word)
    return word.upper()


def test_a_flow_s_tasks_run_on_other_machines(far_pool: str, api: Api) -> None:
    """Tasks of a JobTaskRunner run there, what they log reaches the server, and run_jobs shows each job's node."""
    flow_run_ids: list[UUID] = []

    @flow(task_runner=JobTaskRunner(max_workers=2, pool=far_pool))  # type: ignore[arg-type]
    def far() -> tuple[list[str], list[int]]:
        flow_run_ids.append(own_id())
        words = [future.result() for future in say.map(["one", "two"])]
        jobs = [Job(function="operator:add", args=(n, 1), pool=far_pool) for n in range(3)]
        return words, [result.unwrap() for result in run_jobs(jobs)]

    assert far() == (["ONE", "TWO"], [1, 2, 3])
    runs = {run["name"]: run["id"] for run in api.task_runs(flow_run_ids[0])}
    said = [run_id for name, run_id in runs.items() if name.startswith("say")]
    wait_for(lambda: all(any("the word is" in line for line in api.messages(run_id)) for run_id in said))
    added = [run_id for name, run_id in runs.items() if name.startswith("add-")]
    messages = [state["message"] for run_id in added for state in api.states(run_id) if state["name"] == "Running"]
    assert len(messages) == 3
    assert all(message.startswith("on ") for message in messages), messages


FLOW = """
from prefect import flow, task
from executor_adapter.prefect import JobTaskRunner

@task
def double(number):
    return 2 * number

@flow(task_runner=JobTaskRunner(max_workers=2, pool="dask"))
def doubled():
    return [future.result() for future in double.map([1, 2, 3])]

if __name__ == "__main__":
    assert doubled() == [2, 4, 6]
"""


@pytest.mark.parametrize("cluster", ["local", "of another program"])
def test_a_flow_that_succeeds_ends_without_a_word_of_dask_s(cluster: str, prefect_api: str, tmp_path: Path) -> None:
    """At the end of a flow on Dask there is no error of Tornado's, and no warning of tasks that were cancelled."""
    with contextlib.ExitStack() as stack:
        env = new_user_env(tmp_path / "home", PREFECT_API_URL=prefect_api)
        if cluster != "local":
            env["EXECUTOR_ADAPTER_CLUSTER__DASK"] = stack.enter_context(dask_cluster(tmp_path, workers=1)).settings()
        done = subprocess.run([sys.executable, "-c", FLOW], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    ours = re.compile(r"WARNING \| executor_adapter |^WARNING the guardian ")  # A slow machine's.
    others = "\n".join(line for line in done.stderr.splitlines() if not ours.search(line))
    assert not re.search("Traceback|CancelledError|ERROR|WARNING", others), done.stderr
