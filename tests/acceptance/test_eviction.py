"""A worker's pod is evicted: with SIGTERM and `reschedule`, as Kubernetes uses it, the flow run goes on elsewhere."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.acceptance.evicted import JOBS, QUICK, WORKERS
from tests.servers import ROOT, Server, prefect, running
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.chaos

END_SECONDS = 15.0
"""Seconds in which the evicted process is gone, beside other tests. Kubernetes waits for 30."""
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def starts(folder: Path, execution: int) -> dict[int, int]:
    """Return the process of each job that began in this execution, by the number of the job."""
    found = (path.name.split("-") for path in folder.glob(f"{execution}-*"))
    return {int(number): int(pid) for _, number, pid in found}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def task_runs(server: Server, flow_run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.call(
        "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    )
    return found


def evict(process: Popen[bytes]) -> float:
    """Send SIGTERM, as an eviction does, and return the seconds until the process has ended."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=PATIENCE)
    return time.monotonic() - began


@pytest.mark.parametrize("name", ["bulk", "tasks"])
def test_an_evicted_flow_run_goes_on_in_its_next_execution(name: str, server: Server, tmp_path: Path) -> None:
    """Its jobs end, their states reach the server, and the second execution of the flow run completes."""
    pool = f"evicted-{name}"
    server.run(*prefect("work-pool", "create", pool, "--type", "process"))
    entrypoint = f"tests/acceptance/evicted.py:{name}"
    server.run(*prefect("--no-prompt", "deploy", entrypoint, "--name", "evicted", "--pool", pool))
    deployment = server.call("GET", f"/deployments/name/{name}/evicted")
    created = server.call(
        "POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"folder": str(tmp_path)}}
    )
    flow_run_id = created["id"]
    env = server.env | {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    execute = prefect("flow-run", "execute", flow_run_id)

    with running(execute, env=env, cwd=ROOT, log=tmp_path / "first.log") as process:
        wait_for(lambda: len(starts(tmp_path, 1)) >= QUICK + WORKERS, what="the first jobs")
        seconds = evict(process)
    assert seconds < END_SECONDS, f"the evicted process took {seconds:.1f} s"
    wait_for(lambda: not any(map(is_alive, starts(tmp_path, 1).values())), what="the end of the jobs' processes")
    flow_run = server.call("GET", f"/flow_runs/{flow_run_id}")
    assert (flow_run["state_type"], flow_run["state"]["name"]) == ("SCHEDULED", "AwaitingRetry")
    wait_for(
        lambda: {run["state_type"] for run in task_runs(server, flow_run_id)} <= FINAL,
        what="the final states of the first execution",
    )
    assert any(run["state_type"] == "COMPLETED" for run in task_runs(server, flow_run_id))

    with running(execute, env=env, cwd=ROOT, log=tmp_path / "second.log") as process:
        assert process.wait(timeout=PATIENCE) == 0, (tmp_path / "second.log").read_text()
    assert server.call("GET", f"/flow_runs/{flow_run_id}")["state"]["name"] == "Completed"
    last = {run["dynamic_key"]: run["state_type"] for run in task_runs(server, flow_run_id)}
    assert list(last.values()).count("COMPLETED") >= JOBS
    assert starts(tmp_path, 2).keys() >= set(range(QUICK, JOBS))
