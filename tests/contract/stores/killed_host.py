"""A program that is killed while processes of it live on: `python -m tests.contract.stores.killed_host`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from executor_adapter import Job, JobExecutor
from tests.contract.stores.crash_jobs import exclusive_run

_PR_SET_PDEATHSIG = 1


def work(run_log: str) -> None:
    """Run until the process is killed in the first run; return at once in later ones."""
    with exclusive_run(run_log, "job") as before:
        while not before:
            time.sleep(1)


def outlive_guardian(run_log: str) -> None:
    """Do the same in a worker that the kernel does not kill with its guardian, and that leaves a child behind."""
    if not runs_of(Path(run_log)):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
        fork_sleeper(run_log)
    work(run_log)


def fork_sleeper(run_log: str) -> None:
    """Fork a process that has nothing to do with jobs, and that lives on."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _close_connections()  # otherwise the database would not notice that the host is gone
        time.sleep(600)
        os._exit(0)
    (Path(run_log) / f"sleeper{child}").touch()


def _close_connections() -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=fd)
            if sock.family == socket.AF_INET:
                sock.close()
            else:
                sock.detach()


def runs_of(run_log: Path) -> list[int]:
    """Return the ids of the processes in which the job ran."""
    file = run_log / "job"
    return [int(line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []


def sleepers_of(run_log: Path) -> list[int]:
    """Return the ids of the processes that were forked to live on."""
    return [int(file.name.removeprefix("sleeper")) for file in run_log.glob("sleeper*")]


def start_host(url: str, run_log: Path, function: str) -> subprocess.Popen[bytes]:
    """Start this program with a job of this function."""
    return subprocess.Popen([sys.executable, "-m", __name__, url, str(run_log), function])


def main(url: str, run_log: str, function: str) -> None:
    """Run one job, and wait to be killed."""
    from tests.contract.stores import killed_host

    with JobExecutor(2, store=url) as executor:
        executor.submit(Job(function=getattr(killed_host, function), args=(run_log,), pool="process"))
        executor.flush()
        # Not while a worker starts: a child forked then would hold the pipe that reports its start.
        while not runs_of(Path(run_log)):
            time.sleep(0.01)
        fork_sleeper(run_log)
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
