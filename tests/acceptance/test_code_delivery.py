"""The ways in which the code of the flows reaches a worker, as docs/how-to/deploy/git.md describes them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.examples.pages import DOCS, blocks_of
from tests.servers import ROOT, Server, prefect, running
from tests.waiting import wait_for

pytestmark = pytest.mark.chaos


def delivery(step: str) -> dict[str, Any]:
    """Return the block of the page whose `pull` has this step."""
    for block in blocks_of(DOCS / "how-to" / "deploy" / "git.md"):
        content = yaml.safe_load(block.text) if block.language == "yaml" else None
        if isinstance(content, dict) and step in str(content.get("pull")):
            return content
    raise AssertionError(f"no block with {step}")


def test_a_worker_clones_the_flows_by_git(server: Server, tmp_path: Path) -> None:
    """`prefect deploy --all` works in a fresh clone, and by the documented `pull` a worker runs from a clone too."""
    repository, clone = tmp_path / "repository", tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(repository)], check=True)
    subprocess.run(["git", "-C", str(repository), "branch", "--force", "main", "HEAD"], check=True)
    file = clone / "deployments" / "prefect.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | delivery("git_clone")))
    env = server.env | {"FLOWS_REPOSITORY": repository.as_uri()}
    server.run(*prefect("work-pool", "create", "local", "--type", "process", "--overwrite"))
    deploy = subprocess.run(
        prefect("--no-prompt", "deploy", "--all"), env=env, cwd=clone, capture_output=True, text=True
    )
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    flights = server.call("GET", "/deployments/name/collection/flights")
    assert "git_clone" in str(flights["pull_steps"])
    worker = prefect("worker", "start", "--pool", "local", "--type", "process")
    with running(worker, env=server.env, cwd=tmp_path, log=tmp_path / "worker.log"):
        run = server.call("POST", f"/deployments/{flights['id']}/create_flow_run", {})
        ends = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        path = f"/flow_runs/{run['id']}"
        wait_for(lambda: server.call("GET", path)["state_type"] in ends, what="the end of the run")
    assert server.call("GET", path)["state"]["name"] == "Completed"
