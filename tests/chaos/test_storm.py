"""A storm: honest jobs among jobs that kill their worker, hang, eat memory, and leave children behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, current_job
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.job import Transition

pytestmark = pytest.mark.chaos

JOBS = 2_000
MARK = f"storm-{os.getpid()}"
ONCE_MORE = RetryPolicy(retry_attempts=2, retry_delay=0.01)


def honest(number: int) -> int:
    return number * number


def kills_its_worker_at_first(number: int) -> int:
    if current_job().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def hangs(number: int) -> None:
    """... deaf to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def leaves_a_child(number: int, mark: str) -> None:
    """... in a session of its own, and hangs."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", mark], start_new_session=True)
    time.sleep(3600)


def eats_memory(number: int) -> None:
    eaten = []
    while True:
        eaten.append(bytearray(20_000_000))
        time.sleep(0.005)


def job(number: int) -> Job:
    """One in fifty jobs is of each bad kind."""
    match number % 50:
        case 0:
            return Job(function=kills_its_worker_at_first, args=(number,), pool="process", retry=ONCE_MORE)
        case 1:
            return Job(function=hangs, args=(number,), pool="process", max_runtime=0.2, retry_attempts=0)
        case 2:
            return Job(function=leaves_a_child, args=(number, MARK), pool="process", max_runtime=0.2, retry_attempts=0)
        case 3:
            return Job(function=eats_memory, args=(number,), pool="process", memory_limit="300MB", retry_attempts=0)
        case _:
            return Job(function=honest, args=(number,), pool="process", retry=ONCE_MORE)


EXPECTED = {
    kills_its_worker_at_first: (JobStatus.COMPLETED, None),
    honest: (JobStatus.COMPLETED, None),
    hangs: (JobStatus.FAILED, "TIMEOUT_ERROR"),
    leaves_a_child: (JobStatus.FAILED, "TIMEOUT_ERROR"),
    eats_memory: (JobStatus.FAILED, "MEMORY_LIMIT"),
}


def marked_processes() -> list[str]:
    """Command lines of the children that the jobs left."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
        except OSError:
            continue  # it ended meanwhile
        if MARK in line:
            found.append(line)
    return found


@pytest.mark.timeout(300)
def test_a_storm_ends_every_job_once_and_leaves_nothing() -> None:
    """Each job ends exactly once, as its own kind must; no process, file or file descriptor is left."""
    endings: Counter[str] = Counter()

    def observe(transition: Transition) -> None:
        if transition.status.is_terminal:
            endings[transition.job.job_id] += 1

    files_before = len(os.listdir("/proc/self/fd"))
    jobs = [job(number) for number in range(JOBS)]
    settings = Settings(executor=ExecutorSettings(kill_grace=0.1))
    with JobExecutor(8, config=settings, observers=(observe,)) as executor:
        futures = [executor.submit(each) for each in jobs]
        seen = any(marked_processes() for _ in iter(lambda: futures[-1].done(), True))

    assert {each.job_id: 1 for each in jobs} == endings
    wrong = [each for each in jobs if (each.status, each.error_code) != EXPECTED[each.function]]
    assert [(each.function.__name__, each.status, each.error_code, each.error_message) for each in wrong] == []
    assert all(
        future.result() == number * number for number, future in enumerate(futures) if number % 50 not in {1, 2, 3}
    )
    assert seen
    assert marked_processes() == []
    assert len(os.listdir("/proc/self/fd")) <= files_before
