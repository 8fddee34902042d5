"""The package with `prefect-client` alone, Prefect without a server: in an environment that is made for it."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.prefect.conftest import Api
from tests.servers import ROOT, new_user_env, new_venv
from tests.waiting import PATIENCE

pytestmark = pytest.mark.chaos  # It installs forty packages.

PROGRAM = """
import importlib.metadata

from prefect import flow
from prefect.runtime import flow_run

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import job_task, run_jobs


@job_task(pool="process", max_runtime=0.5, retry_attempts=0)
def hang():
    while True:
        pass


@job_task(pool="process")
def double(n):
    return 2 * n


@flow
def watched():
    print([future.result() for future in double.map([1, 2])])
    with JobExecutor() as executor:
        print([result.value for result in run_jobs([Job(function=abs, args=(-3,), pool="process")], executor=executor)])
    stuck = hang.submit()
    stuck.wait()
    print(stuck.state.name, flow_run.get_id())


if __name__ == "__main__":
    try:
        importlib.metadata.version("prefect")
    except importlib.metadata.PackageNotFoundError:
        print("no server")
    watched()
"""


def test_a_flow_runs_with_prefect_client_alone(api: Api, prefect_api: str, tmp_path: Path) -> None:
    """With prefect-client in place of prefect, job tasks and `run_jobs` work, and a server records them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [each for each in project["dependencies"] if not each.startswith("prefect>")]
    (prefect,) = set(project["dependencies"]) - set(needed)
    client = prefect.replace("prefect", "prefect-client", 1)
    python = new_venv(tmp_path / "venv", [client, *needed], ["--no-deps", ROOT])
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = new_user_env(tmp_path, PREFECT_API_URL=prefect_api)
    env.pop("PYTHONPATH", None)
    done = subprocess.run([python, program], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert lines == ["no server", "[2, 4]", "[3]"]
    name, _, flow_run_id = last.partition(" ")
    assert name == "TimedOut"
    wanted = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    states = sorted(run["state_name"] for run in api.post("/task_runs/filter", wanted))
    assert states == ["Completed", "Completed", "Completed", "TimedOut"]
