"""`stats`: counts, rates and durations of a store's jobs."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import typer

from executor_adapter.cli.jobs import QueueOption, ToolOption, TypeOption
from executor_adapter.cli.output import STYLES, JsonOption, print_json, print_pairs, seconds, share
from executor_adapter.cli.stores import ConfigOption, StoreOption, duration_seconds, opened
from executor_adapter.job import JobStatus
from executor_adapter.store import JobFilter, JobStore
from executor_adapter.supervision.outcome import mean, percentile
from executor_adapter.terminal import SafeText


def stats(
    window: Annotated[str, typer.Option("--window", "-w", help="How far failure rate and durations look back.")] = "1h",
    job_type: TypeOption = None,
    tool: ToolOption = None,
    queue: QueueOption = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show counts, rates, durations, and how long jobs wait."""
    wanted = JobFilter(job_type=job_type, tool_name=tool, queue=queue)
    with opened(store, config_file) as opened_store:
        found = gather(opened_store, wanted, duration_seconds(window))
    if as_json:
        print_json(found)
    else:
        _print(found, window)


def gather(store: JobStore, wanted: JobFilter, window: float) -> dict[str, Any]:
    """Return figures of the matching jobs.

    `failure_rate` and `job_seconds_...` cover jobs that ended in the last `window` seconds, all others cover every job
    in the store.
    """
    now = time.time()
    recent = dataclasses.replace(wanted, ended_from=now - window)
    counts, durations = store.counts(wanted), store.durations(recent)
    since, ended = store.oldest_waiting(wanted), counts[JobStatus.COMPLETED] + counts[JobStatus.FAILED]
    return {
        "jobs": {str(status): count for status, count in counts.items()},
        "success_rate": counts[JobStatus.COMPLETED] / ended if ended else None,
        "window": window,
        "failure_rate": store.failure_rate(recent),
        "job_seconds_mean": mean(durations),
        "job_seconds_p50": percentile(durations, 0.5),
        "job_seconds_p95": percentile(durations, 0.95),
        "queue_depth": counts[JobStatus.PENDING],
        "oldest_waiting_seconds": None if since is None else max(0.0, now - since),
        "quarantined": store.find(dataclasses.replace(wanted, quarantined=True), limit=1).total,
    }


def _print(found: dict[str, Any], window: str) -> None:
    pairs: dict[str, Any] = {
        status: SafeText(f"{count:,}", style=STYLES[JobStatus(status)] if count else "dim")
        for status, count in found["jobs"].items()
    }
    pairs |= {
        "quarantined": found["quarantined"],
        "success rate": share(found["success_rate"]) or "-",
        f"failure rate, {window}": share(found["failure_rate"]) or "-",
        f"took, {window}": _times(found),
        "waiting for": seconds(found["oldest_waiting_seconds"]) or "-",
    }
    print_pairs(pairs)


def _times(found: dict[str, Any]) -> str:
    if found["job_seconds_mean"] is None:
        return "-"
    figures = {"mean": "job_seconds_mean", "median": "job_seconds_p50", "95 %": "job_seconds_p95"}
    return ", ".join(f"{name} {seconds(found[key])}" for name, key in figures.items())
