"""Deploys all of prefect.yaml to its work pools, and keeps paused what people have paused.

    python deployments/deploy.py [--dry-run]

`prefect deploy` makes each schedule of the file active, also one that somebody has paused. This says first what it
changes, and leaves a schedule paused that is paused on the server. A schedule of the file that the server does not have
becomes active, as does one whose times have changed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deployments" / "prefect.yaml"
sys.path.insert(0, str(ROOT))  # The flows are modules of the clone.

from deployments.serve import load_flow, to_schedule  # noqa: E402


def known_deployment(client: SyncPrefectClient, entry: dict[str, Any]) -> DeploymentResponse | None:
    """Return the deployment of an entry as the server has it; None where it is new."""
    try:
        return client.read_deployment_by_name(f"{load_flow(entry['entrypoint']).name}/{entry['name']}")
    except ObjectNotFound:
        return None


def times_of(schedule: Any) -> tuple[str, Any]:
    """Return when a schedule is due, of the file or of the server: `("cron", "0 2 * * *")`."""
    times = ((name, getattr(schedule, name, None)) for name in ("cron", "interval", "rrule"))
    return next((name, value) for name, value in times if value is not None)


def keep_pauses(entry: dict[str, Any], known: DeploymentResponse | None) -> Iterator[str]:
    """Set the schedules of an entry to what they are on the server, and yield in words what deploying it changes."""
    if known is None:
        yield "is new"
    active = {} if known is None else {times_of(each.schedule): each.active for each in known.schedules}
    for schedule in entry.get("schedules", ()):
        times = times_of(to_schedule(schedule))
        shown = ", ".join(f"{name} {value}" for name, value in schedule.items())
        if times in active:
            schedule["active"] = active.pop(times)
            if not schedule["active"]:
                yield f"stays paused: {shown}"
        elif known is not None:
            yield f"gets a new schedule, which is active: {shown}"
    yield from (f"loses a schedule: {name} {value}" for name, value in active)


def main() -> None:
    """Say what changes, and deploy.

    Raises:
        SystemExit: the Prefect server does not answer, or has refused a deployment.
    """
    parser = argparse.ArgumentParser(description="Deploy all of prefect.yaml, and keep paused what is paused.")
    parser.add_argument("--dry-run", action="store_true", help="only say what changes")
    is_dry_run = parser.parse_args().dry_run
    plan = yaml.safe_load(FILE.read_text())
    try:
        with get_client(sync_client=True) as client:
            for entry in plan["deployments"]:
                for change in keep_pauses(entry, known_deployment(client, entry)):
                    print(f"{entry['name']} {change}", flush=True)
    except httpx.TransportError as error:
        raise SystemExit(f"the Prefect server does not answer ({error}): start it, or set PREFECT_API_URL") from None
    if is_dry_run:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(plan))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
