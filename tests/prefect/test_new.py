"""`executor-adapter new`: what it writes runs, is tested and is served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.prefect.conftest import Api
from tests.servers import running
from tests.waiting import PATIENCE, wait_for


def run(*words: str, cwd: Path, code: int = 0) -> str:
    """Run a program of this interpreter, and return what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "EXECUTOR_ADAPTER_CONFIG"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_files_of_a_first_flow_run(api: Api, tmp_path: Path) -> None:
    """The flow runs with jobs, its test passes, its deployment is served; a folder that exists is refused."""
    said = run("-m", "executor_adapter.cli", "new", "first/flow", cwd=tmp_path)
    assert "run it: cd first/flow && python flow.py" in said
    assert "with pytest, test it: cd first/flow && python -m pytest" in said
    folder = tmp_path / "first" / "flow"
    assert "6 words" in run("flow.py", cwd=folder)
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    refused = run("-m", "executor_adapter.cli", "new", "first/flow", cwd=tmp_path, code=2)
    assert "first/flow is there already: give a new folder" in refused

    def deployed() -> bool:
        found = api.post("/deployments/filter", {"deployments": {"name": {"any_": ["hourly"]}}})
        return [each["schedules"][0]["schedule"]["cron"] for each in found] == ["0 * * * *"]

    with running([sys.executable, "serve.py"], env=dict(os.environ), cwd=folder, log=tmp_path / "serve.log"):
        wait_for(deployed)
