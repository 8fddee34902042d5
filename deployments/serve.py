"""The laptop path: every deployment of prefect.yaml served from one process, without a work pool.

    python deployments/serve.py

Schedules, parameters, tags and limits are read from that file, so the two ways to deploy never differ. Ctrl-C ends it
and pauses the schedules.
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
    """The deployments that a prefect.yaml describes, as it describes them."""
    described: list[dict[str, Any]] = yaml.safe_load(file.read_text())["deployments"]
    return described


def to_schedule(described: dict[str, Any]) -> Schedule:
    """A schedule from its entry: `cron`, `interval` (seconds) or `rrule`, and Prefect's further keys."""
    interval = described.get("interval")
    seconds = None if interval is None else datetime.timedelta(seconds=interval)
    return Schedule(**described | {"interval": seconds})


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """The flow that `flows/collection.py:collection_flow` means, from the module flows.collection."""
    file, name = entrypoint.split(":")
    flow = getattr(importlib.import_module(".".join(Path(file).with_suffix("").parts)), name)
    assert isinstance(flow, Flow)
    return flow


def to_deployment(described: dict[str, Any]) -> RunnerDeployment:
    """The deployment of one entry, without its work pool: the process that serves it runs it."""
    limit = described.get("concurrency_limit")
    deployment = load_flow(described["entrypoint"]).to_deployment(
        name=described["name"],
        description=described.get("description"),
        parameters=described.get("parameters", {}),
        tags=described.get("tags", []),
        schedules=[to_schedule(schedule) for schedule in described.get("schedules", [])],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
        # By module: a file's path is not taken over by the server where `prefect deploy` made the deployment before.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # to_deployment is a coroutine only where an event loop runs
    return deployment


def main() -> None:
    # Each run is a process that starts in this one's directory and imports its flow from there.
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    serve(*(to_deployment(described) for described in read_deployments(DEPLOYMENTS)))


if __name__ == "__main__":
    main()
