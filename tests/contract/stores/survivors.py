"""A program that is killed while something of it lives on: `python -m tests.contract.stores.survivors`, and what its
job does."""

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
from tests.contract.stores.crash_jobs import alone

_PR_SET_PDEATHSIG = 1


def work(ledger: str) -> None:
    """The first run goes on until it is killed; later ones end at once."""
    with alone(ledger, "job") as before:
        while not before:
            time.sleep(1)


def outlive_guardian(ledger: str) -> None:
    """Like `work`, in a worker that the kernel does not kill with its guardian, and that leaves a child behind."""
    if not runs_of(Path(ledger)):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
        fork_sleeper(ledger)
    work(ledger)


def fork_sleeper(ledger: str) -> None:
    """A process that has nothing to do with jobs, and lives on."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _close_connections()  # or the database would take a transaction for one that goes on
        time.sleep(600)
        os._exit(0)
    (Path(ledger) / f"sleeper{child}").touch()


def _close_connections() -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=fd)
            if sock.family == socket.AF_INET:
                sock.close()
            else:
                sock.detach()


def runs_of(ledger: Path) -> list[int]:
    """The processes in which the job ran."""
    file = ledger / "job"
    return [int(line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []


def sleepers_of(ledger: Path) -> list[int]:
    return [int(file.name.removeprefix("sleeper")) for file in ledger.glob("sleeper*")]


def start_host(url: str, ledger: Path, function: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", __name__, url, str(ledger), function])


def main(url: str, ledger: str, function: str) -> None:
    from tests.contract.stores import survivors

    with JobExecutor(2, store=url) as executor:
        executor.submit(Job(function=getattr(survivors, function), args=(ledger,), pool="process"))
        executor.flush()
        # Not while a worker is started: a child of that moment holds the pipe by which its start is told.
        while not runs_of(Path(ledger)):
            time.sleep(0.01)
        fork_sleeper(ledger)
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
