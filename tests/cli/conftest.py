"""The command in this process, a store in a file, and jobs to fill it with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from executor_adapter.cli import main
from executor_adapter.job.results import Attempt, Progress
from executor_adapter.job.status import JobStatus
from executor_adapter.store import JobRecord, JobStore, open_store
from executor_adapter.store.host import new_host


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., CommandResult]

WORK = """
import os, sys, time
from executor_adapter import current_job
from executor_adapter.exceptions import DataCollectionException

def collect(tool, year=2013):
    print("collecting", tool)
    return {"records_collected": 3, "year": year}

def fail(code):
    raise DataCollectionException("no good", error_code=code)

def slow(seconds):
    for n in range(1, int(seconds * 20) + 1):
        current_job().progress(n, int(seconds * 20), f"page {n}")
        time.sleep(0.05)

def talk(pause=0.0):
    print("first", flush=True)
    current_job().logger.warning("second")
    time.sleep(pause + 0.1)
    print("third", file=sys.stderr, flush=True)

def crash():
    os._exit(7)

def eat():
    held = []
    while True:
        held.append(bytearray(16 << 20))
        time.sleep(0.005)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory with a user's module and a store in a file, without environment variables of ours."""
    for name in ("CONFIG", "STORE__URL"):
        monkeypatch.delenv(f"EXECUTOR_ADAPTER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "work_of_a_user.py").write_text(WORK)
    (tmp_path / "config.yaml").write_text("store:\n  url: sqlite:///jobs.db\n")
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> CommandResult:
        with pytest.raises(SystemExit) as ended:
            main(words)
        captured = capsys.readouterr()
        return CommandResult(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    opened = open_store(f"sqlite:///{home / 'jobs.db'}")
    yield opened
    opened.close()


def fill(store: JobStore, *records: JobRecord) -> None:
    """Write these records to the store, as jobs of a live host."""
    host = new_host()
    store.register(host, lease=600)
    store.write(host.host_id, [replace(record, host=host.host_id) for record in records], lease=600)


def record(job_id: str, status: JobStatus = JobStatus.COMPLETED, *, age: float = 60.0, **fields: Any) -> JobRecord:
    """Return the record of a job that was created `age` seconds ago, waited 1 s and took 10 s."""
    made = time.time() - age
    over = status.is_terminal
    attempt = Attempt(number=1, pool="process", pid=4711, queue_seconds=1.0, run_seconds=10.0, peak_rss=50 << 20)
    given: dict[str, Any] = {
        "function": "work_of_a_user:collect",
        "call": json.dumps({"function": "work_of_a_user:collect", "args": ["flights"], "retry_attempts": 1}),
        "created_at": made,
        "started_at": None if status is JobStatus.PENDING else made + 1.0,
        "completed_at": made + 11.0 if over else None,
        "attempt": 0 if status is JobStatus.PENDING else 1,
        "attempts": (attempt,) if over else (),
        "max_runtime": 3600.0,
    }
    return JobRecord(job_id=job_id, status=status, **given | fields)


def progress(done: float, total: float | None = None, message: str = "") -> Progress:
    return Progress(done, total, message)
