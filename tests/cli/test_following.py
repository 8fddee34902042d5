"""`jobs logs` and `jobs watch`: what a job wrote, and its states as they come."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from executor_adapter.cli import watch
from executor_adapter.store import JobFilter, JobStore
from tests.cli.conftest import Command

# --- logs ---


def test_a_job_s_log_is_printed(command: Command, home: Path) -> None:
    """`jobs logs` prints output as text and log records with their logger."""
    assert command("run", "work_of_a_user:talk", "--pool", "process").code == 0
    (job,) = command("jobs", "list", "--json").json["jobs"]
    lines = command("jobs", "logs", job["job_id"]).out.splitlines()
    # Output and log records are sent over separate ways, so their order is that of arrival.
    assert {line[8:].strip() for line in lines} == {"first", "WARNING executor_adapter.job: second", "third"}
    as_json = [json.loads(line) for line in command("jobs", "logs", job["job_id"], "--json").out.splitlines()]
    sources = {(line["source"], line["attempt"]) for line in as_json}
    assert sources == {("stdout", 1), ("executor_adapter.job", 1), ("stderr", 1)}


# --- watch ---


def test_without_jobs_the_live_view_has_their_counts_alone(store: JobStore) -> None:
    """A store without jobs is shown as zeros, and not as a terminal that is too narrow for them."""
    screen = Console(file=io.StringIO(), width=80)
    with screen.capture() as shown:
        screen.print(watch.render(watch.read_frame(store, JobFilter(), 10), 80))
    assert [line for line in shown.get().splitlines() if line.strip()] == [
        "0 pending   0 running   0 retrying   0 completed   0 failed   0 cancelled"
    ]
