"""Serves every deployment of prefect.yaml from one process, without a work pool.

    python deployments/serve.py

Schedules, triggers, parameters, tags and limits come from that file, so both ways to deploy are the same. The names end
in `-served`: a deployment that `prefect deploy` made is another one, and stays as it is. The environment that the
job_variables set is that of the runs here too. While a work pool has active schedules of the same work, this process
refuses to start. Ctrl-C stops it and pauses its schedules.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect import Flow, serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.context import refresh_global_settings_context
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

ROOT = Path(__file__).resolve().parent.parent
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"


def served_name(name: str) -> str:
    """Return the name under which a deployment is served."""
    return f"{name}-served"


def read_deployments(file: Path) -> list[dict[str, Any]]:
    """Return the entries of the deployments in a prefect.yaml."""
    entries: list[dict[str, Any]] = yaml.safe_load(file.read_text())["deployments"]
    return entries


def to_schedule(entry: dict[str, Any]) -> Schedule:
    """Return the schedule of an entry: `cron`, `interval` (seconds) or `rrule`, and the other keys of Prefect."""
    times: dict[str, Callable[[Any], Any]] = {
        "interval": lambda seconds: datetime.timedelta(seconds=seconds),
        "anchor_date": datetime.datetime.fromisoformat,
    }
    return Schedule(**entry | {key: convert(entry[key]) for key, convert in times.items() if key in entry})


def to_trigger(entry: dict[str, Any], names: set[str]) -> DeploymentEventTrigger:
    """Return the trigger of an entry; where it names a deployment of `names`, the served one is meant."""
    related = [
        resource | {"prefect.resource.name": served_name(resource["prefect.resource.name"])}
        if resource["prefect.resource.role"] == "deployment" and resource["prefect.resource.name"] in names
        else resource
        for resource in entry.get("match_related", ())
    ]
    return DeploymentEventTrigger(**entry | {"name": served_name(entry["name"]), "match_related": related})


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """Import the flow of an entry point: `flows/collection.py:collection_flow` is in the module flows.collection."""
    file, name = entrypoint.split(":")
    flow = getattr(importlib.import_module(".".join(Path(file).with_suffix("").parts)), name)
    assert isinstance(flow, Flow)
    return flow


def to_deployment(entry: dict[str, Any], names: set[str]) -> RunnerDeployment:
    """Return the deployment of an entry, without its work pool: this process runs it."""
    limit = entry.get("concurrency_limit")
    deployment = load_flow(entry["entrypoint"]).to_deployment(
        name=served_name(entry["name"]),
        description=entry.get("description"),
        parameters=entry.get("parameters", {}),
        tags=entry.get("tags", []),
        schedules=[to_schedule(schedule) for schedule in entry.get("schedules", [])],
        triggers=[to_trigger(trigger, names) for trigger in entry.get("triggers", [])],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # Prefect returns a coroutine only inside an event loop.
    return deployment


def environment(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the variables that the job_variables of the entries set, for this process, whose children the runs are.

    Raises:
        SystemExit: a value is not text, or two entries set one variable differently, and no process can have both.
    """
    found: dict[str, str] = {}
    for entry in entries:
        for name, value in entry.get("work_pool", {}).get("job_variables", {}).get("env", {}).items():
            if not isinstance(value, str):
                raise SystemExit(f"{entry['name']}: job_variables.env.{name} is {value!r}: write it in quotes")
            if found.setdefault(name, value) != value:
                raise SystemExit(
                    f"{entry['name']}: job_variables.env.{name} is {value}, and {found[name]} in another deployment: "
                    "set one value, or let a work pool run them"
                )
    return found


def scheduled_in_work_pools(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the deployments of these entries that a work pool runs by an active schedule, each with its work pool."""
    found: dict[str, str] = {}
    with get_client(sync_client=True) as client:
        for entry in entries:
            name = f"{load_flow(entry['entrypoint']).name}/{entry['name']}"
            with contextlib.suppress(ObjectNotFound):
                known = client.read_deployment_by_name(name)
                if known.work_pool_name and not known.paused and any(each.active for each in known.schedules):
                    found[name] = known.work_pool_name
    return found


def main() -> None:
    """Serve all deployments until interrupted.

    Raises:
        SystemExit: workers run the same deployments, or the Prefect server does not answer; nothing was changed.
    """
    # Each run is a process that starts in the current directory and imports its flow from there.
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    entries = read_deployments(DEPLOYMENTS)
    try:
        found = scheduled_in_work_pools(entries)
    except httpx.TransportError as error:
        raise SystemExit(f"the Prefect server does not answer ({error}): start it, or set PREFECT_API_URL") from None
    if found:
        pools = ", ".join(sorted(set(found.values())))
        raise SystemExit(
            f"{', '.join(found)}: active schedules of the work pool {pools} would do the same work twice: start a "
            "worker for it, or pause these schedules (prefect deployment schedule pause), and serve again"
        )
    os.environ |= environment(entries)
    refresh_global_settings_context()  # A run gets the settings of this process, and a profile may have others.
    names = {entry["name"] for entry in entries}
    serve(*(to_deployment(entry, names) for entry in entries))


if __name__ == "__main__":
    main()
