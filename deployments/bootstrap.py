"""Sets up what the deployments need on the Prefect server: work pool, queues, limits, block and automations.

    python deployments/bootstrap.py

It can be run again at any time, and then changes nothing. `executor-adapter prefect bootstrap` does the same, and has
more options.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from executor_adapter.config import load_config
from executor_adapter.prefect import bootstrap, read_plan

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Apply deployments/bootstrap.yaml and print what was done.

    Raises:
        SystemExit: the Prefect server does not answer.
    """
    plan = read_plan(ROOT / "deployments" / "bootstrap.yaml")
    try:
        changes = bootstrap(plan, settings=load_config(ROOT / "config.yaml"))
    except httpx.TransportError as error:
        raise SystemExit(f"the Prefect server does not answer ({error}): start it, or set PREFECT_API_URL") from None
    for change in changes:
        print(f"{change.kind} {change.name}: {change.outcome}", f"({change.detail})" if change.detail else "")


if __name__ == "__main__":
    main()
