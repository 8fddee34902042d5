"""Serves every deployment of prefect.yaml from one process, without a work pool.

    python deployments/serve.py

Schedules, parameters, tags and limits come from that file, so both ways to deploy are the same. Ctrl-C stops the
process and pauses the schedules.
"""

from __future__ import annotations

import datetime
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow, serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

ROOT = Path(__file__).resolve().parent.parent
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"


def read_deployments(file: Path) -> list[dict[str, Any]]:
    """Return the entries of the deployments in a prefect.yaml."""
    entries: list[dict[str, Any]] = yaml.safe_load(file.read_text())["deployments"]
    return entries


def to_schedule(entry: dict[str, Any]) -> Schedule:
    """Return the schedule of an entry: `cron`, `interval` (seconds) or `rrule`, and the other keys of Prefect."""
    interval = entry.get("interval")
    seconds = None if interval is None else datetime.timedelta(seconds=interval)
    return Schedule(**entry | {"interval": seconds})


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """Import the flow of an entry point: `flows/collection.py:collection_flow` is in the module flows.collection."""
    file, name = entrypoint.split(":")
    flow = getattr(importlib.import_module(".".join(Path(file).with_suffix("").parts)), name)
    assert isinstance(flow, Flow)
    return flow


def to_deployment(entry: dict[str, Any]) -> RunnerDeployment:
    """Return the deployment of an entry, without its work pool: this process runs it."""
    limit = entry.get("concurrency_limit")
    deployment = load_flow(entry["entrypoint"]).to_deployment(
        name=entry["name"],
        description=entry.get("description"),
        parameters=entry.get("parameters", {}),
        tags=entry.get("tags", []),
        schedules=[to_schedule(schedule) for schedule in entry.get("schedules", [])],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
        # By module, because the server keeps the old path of a deployment that `prefect deploy` created earlier.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # Prefect returns a coroutine only inside an event loop.
    return deployment


def main() -> None:
    """Serve all deployments until interrupted."""
    # Each run is a process that starts in the current directory and imports its flow from there.
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    serve(*(to_deployment(entry) for entry in read_deployments(DEPLOYMENTS)))


if __name__ == "__main__":
    main()
