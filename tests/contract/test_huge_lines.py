"""A line of a gigabyte costs its job's own process that memory, not the host, and breaks no log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT
from tests.waiting import PATIENCE

LOUD = """
import logging
import sys
from executor_adapter import current_job

def log(size):
    logging.getLogger("mine").info("x" * size)
    logging.getLogger("mine").info("after it")

def log_extra(size):
    logging.getLogger("mine").info("short", extra={"field": "x" * size})
    logging.getLogger("mine").info("after it")

def log_error(size):
    try:
        raise LookupError("x" * size)
    except LookupError:
        logging.getLogger("mine").exception("it failed")
    logging.getLogger("mine").info("after it")

def say_progress(size):
    current_job().progress(1, 2, "x" * size)
    logging.getLogger("mine").info("after it")

def write(size):
    sys.stdout.write("x" * size)
    print()
    logging.getLogger("mine").info("after it")
"""
HOST = """
import json, logging, sys
from pathlib import Path
import loud
from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.store import open_store

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # KiB, of this program alone

logging.getLogger().setLevel(logging.INFO)
size, url, *ways = int(sys.argv[1]), *sys.argv[2:]
store = open_store(url)
grown, jobs = {}, {}
with JobExecutor(1, store=store, config=Settings(executor={"memory": None})) as executor:
    executor.run(Job(function=abs, args=(1,), pool="process"))
    before = peak()
    for way in ways:
        jobs[way] = Job(function=getattr(loud, way), args=(size,), pool="process", retry_attempts=0)
        executor.run(jobs[way])
        grown[way] = peak() - before
found = {}
for way, job in jobs.items():
    lines = open_store(url).lines(job.job_id)
    found[way] = {
        "grown_mib": grown[way] / 1024,
        "lines": len(lines),
        "longest": max(len(line.text) for line in lines),
        "last": lines[-1].text,
        "message": len(job.progress.message) if job.progress else 0,
    }
print(json.dumps(found), file=sys.stderr)
"""
WAYS = ("log", "log_extra", "log_error", "say_progress", "write")
MAX_GROWN_MIB = 40.0
"""What a host may need for such lines: some pieces of 16 KiB, which it then writes to the store."""


def run(size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Run a job that writes a line of `size` characters in each way; return what their host measured, by the way."""
    script = folder / "host.py"
    script.write_text(HOST)
    (folder / "loud.py").write_text(LOUD)
    command = [sys.executable, str(script), str(size), f"sqlite:///{folder / 'jobs.db'}", *WAYS]
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    done = subprocess.run(command, cwd=ROOT, **streams, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(64 << 20, id="64MiB"),
        pytest.param(1 << 30, id="1GiB", marks=pytest.mark.chaos),
    ],
)
def test_a_huge_line_is_cut_where_it_is_written(size: int, tmp_path: Path) -> None:
    """The host grows by far less than the line, the log says what was left out, and goes on after it."""
    for way, found in run(size, tmp_path).items():
        print(way, found)
        assert found["grown_mib"] < MAX_GROWN_MIB
        assert found["longest"] <= 17_000
        assert found["message"] < 66_000
        assert "after it" in found["last"] or "left out" in found["last"]
