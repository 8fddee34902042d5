"""A signal that ends a program ends its jobs, whatever the main thread waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from executor_adapter import Job, JobExecutor
from executor_adapter.executor.of_process import ending_handlers

folder, doing = Path(sys.argv[1]), sys.argv[2]

def slow(number):
    Path(folder, f"pid-{number}-{os.getpid()}").touch()
    time.sleep(3600)

def quit(*_):
    raise SystemExit(3)

def report(jobs):
    Path(folder, "states").write_text(" ".join(job.status for job in jobs))

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, quit)
    if doing != "deciding for itself":
        ending_handlers.append(lambda number, handler: handler is quit)
    executor = JobExecutor(max_workers=2)
    jobs = [Job(function=slow, args=(number,), pool="process", retry_attempts=3) for number in range(4)]
    try:
        if doing == "waiting for threads":
            # As a task runner does: leaving the block waits for what runs, also when an exception leaves it.
            with ThreadPoolExecutor(4) as threads:
                for job in jobs:
                    threads.submit(executor.run, job)
                time.sleep(3600)
        elif doing == "waiting in the block":
            with executor:
                for future in [executor.submit(job) for job in jobs]:
                    future.result()
        else:
            for job in jobs:
                executor.submit(job)
            time.sleep(3600)
    finally:
        if doing == "deciding for itself":
            time.sleep(1)
            report(jobs)
            executor.shutdown(timeout=0)
        else:
            executor.shutdown()
            report(jobs)
"""


@pytest.mark.parametrize(
    ("number", "doing"),
    [
        (signal.SIGTERM, "waiting for threads"),
        (signal.SIGINT, "waiting in the block"),
        (signal.SIGTERM, "sleeping"),
        pytest.param(signal.SIGINT, "waiting for threads", marks=pytest.mark.chaos),
        pytest.param(signal.SIGTERM, "waiting in the block", marks=pytest.mark.chaos),
        pytest.param(signal.SIGINT, "sleeping", marks=pytest.mark.chaos),
    ],
)
def test_all_jobs_end_within_seconds_and_none_begins(tmp_path: Path, number: signal.Signals, doing: str) -> None:
    """A signal that ends the program ends all jobs within seconds, and no job starts after it."""
    states, pids = _send_signal(tmp_path, number, doing)
    assert states == ["cancelled"] * 4
    assert len(pids) == 2, "a job began after the signal"


def test_a_program_with_its_own_handler_keeps_its_jobs_until_it_decides(tmp_path: Path) -> None:
    """With a signal handler of its own, a program's jobs run until it shuts the executor down."""
    states, _ = _send_signal(tmp_path, signal.SIGTERM, "deciding for itself")
    assert states == ["running", "running", "pending", "pending"]


def _send_signal(folder: Path, number: signal.Signals, doing: str) -> tuple[list[str], list[int]]:
    """Send a program the signal once two jobs run; return the final states, and the pids of jobs that began."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), doing],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        # A background job of a shell, as these tests may be, ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(_pids(folder)) == 2)
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    pids = _pids(folder)
    wait_for(lambda: not any(_is_alive(pid) for pid in pids))
    return (folder / "states").read_text().split(), pids


def _pids(folder: Path) -> list[int]:
    return [int(path.name.rpartition("-")[2]) for path in folder.glob("pid-*")]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
