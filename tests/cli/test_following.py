"""`jobs logs` and `jobs watch`: new lines and new states are printed as they come."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.cli import jobs, watch
from executor_adapter.config import Settings
from executor_adapter.store import JobFilter, JobStore, LogLine
from tests.cli.conftest import Command, fill, record
from tests.waiting import wait_for

# --- logs ---

QUIET = Settings.model_validate({"executor": {"output": "drop"}})
"""Settings of an executor beside the command, whose captured output is not to hold what a job prints."""


def test_a_job_s_log_is_printed(command: Command, home: Path) -> None:
    """`jobs logs` prints output as text and log records with their logger; --tail limits the lines."""
    assert command("run", "work_of_a_user:talk", "--pool", "process").code == 0
    (job,) = command("jobs", "list", "--json").json["jobs"]
    lines = command("jobs", "logs", job["job_id"]).out.splitlines()
    # Output and log records are sent over separate ways, so their order is that of arrival.
    assert {line[8:].strip() for line in lines} == {"first", "WARNING executor_adapter.job: second", "third"}
    assert command("jobs", "logs", job["job_id"], "-n", "1").out.splitlines() == lines[-1:]
    as_json = [json.loads(line) for line in command("jobs", "logs", job["job_id"], "--json").out.splitlines()]
    sources = {(line["source"], line["attempt"]) for line in as_json}
    assert sources == {("stdout", 1), ("executor_adapter.job", 1), ("stderr", 1)}


def test_a_log_is_followed_until_the_job_is_over(command: Command, home: Path) -> None:
    """`jobs logs --follow` prints new lines until the job ends."""
    with JobExecutor(1, config=QUIET, store=f"sqlite:///{home / 'jobs.db'}") as executor:
        job = Job(function="work_of_a_user:talk", kwargs={"pause": 1.5}, pool="process", job_id="talker")
        executor.submit(job)
        wait_for(lambda: command("jobs", "list", "--json").json["total"] == 1)
        out = command("jobs", "logs", "talker", "--follow").out
    assert len(out.splitlines()) == 3


def lines(*numbers: int) -> list[LogLine]:
    return [LogLine("talker", 1, n, float(n), 0, "stdout", f"line {n}") for n in numbers]


def test_a_log_that_is_followed_from_its_tail_loses_no_line(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --tail and --follow no line is lost, however many are written between two reads."""
    fill(store, record("talker", JobStatus.RUNNING))
    store.write_lines(lines(1, 2, 3))
    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=lambda _: store.write_lines(lines(4, 5, 6, 7))))
    followed = jobs.log_of(store, "talker", tail=2, follow=True)
    assert [line.seq for line in itertools.islice(followed, 6)] == [2, 3, 4, 5, 6, 7]


def test_more_lines_than_are_kept_may_be_asked_for(command: Command, store: JobStore) -> None:
    """A --tail larger than the number of kept lines prints all of them."""
    fill(store, record("talker"))
    store.write_lines(lines(1, 2))
    assert len(command("jobs", "logs", "talker", "-n", "9" * 20).out.splitlines()) == 2


# --- watch ---


class LateClock:
    """A clock that moves by a second at each call, longer than a frame may take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == 3:
            raise KeyboardInterrupt


def test_without_jobs_the_live_view_has_their_counts_alone(store: JobStore) -> None:
    """A store without jobs is shown as zeros, and not as a terminal that is too narrow for them."""
    screen = Console(file=io.StringIO(), width=80)
    with screen.capture() as shown:
        screen.print(watch.render(watch.read_frame(store, JobFilter(), 10), 80))
    assert [line for line in shown.get().splitlines() if line.strip()] == [
        "0 pending   0 running   0 retrying   0 completed   0 failed   0 cancelled"
    ]


def test_frames_that_are_late_do_not_end_the_watch(
    command: Command, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jobs watch` goes on after a slow store or a suspended program made frames late."""
    fill(store, record("moving-1", JobStatus.RUNNING))
    clock = LateClock()
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "console", lambda: Console(file=io.StringIO(), force_terminal=True))
    assert command("jobs", "watch", "--interval", "0.5").code == 0
    assert clock.slept == [0.0, 0.0, 0.0]


def test_an_interval_longer_than_the_system_can_sleep_is_refused(command: Command, store: JobStore) -> None:
    """An --interval longer than the system can sleep is refused."""
    fill(store, record("moving-1", JobStatus.RUNNING))
    result = command("jobs", "watch", "--json", "--interval", "1e300")
    assert (result.code, result.out) == (2, "")
