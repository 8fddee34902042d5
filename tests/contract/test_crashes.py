"""Tests jobs that kill their workers: their retry budget, quarantine, memory limits, attempts that run alone."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy, RetryRule
from executor_adapter.exceptions import InvalidJobError, MemoryLimitError, WorkerCrashedError
from executor_adapter.worker.values import MIN_MEMORY_FILE_BYTES
from tests.contract import functions
from tests.contract.conftest import MakeExecutor
from tests.contract.process_pool.functions import large_bytes
from tests.contract.process_pool.harness import alive
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]


def run_program(program: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own that finds this package and the tests."""
    script = folder / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def kill_self_until(path: str, succeed_at: int) -> int:
    calls = functions.count_call(path)
    if calls < succeed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def hold_memory(size: int, seconds: float) -> int:
    held = bytearray(os.urandom(1)) * size
    time.sleep(seconds)
    return len(held)


def mark_and_sleep(path: str, seconds: float) -> None:
    """Append when it started and ended, as monotonic seconds."""
    started = time.monotonic()
    time.sleep(seconds)
    functions.append_line(path, f"{started} {time.monotonic()}")


def fail_once_then_mark(calls: str, path: str, seconds: float) -> None:
    if functions.count_call(calls) == 1:
        raise ConnectionError("once")
    mark_and_sleep(path, seconds)


def test_a_crash_is_retried_and_its_signal_is_recorded(executor: JobExecutor, tmp_path: Path) -> None:
    """A job whose worker was killed is retried, and its attempt records the signal."""
    job = Job(function=kill_self_until, args=(str(tmp_path / "calls"), 2), pool="process", retry_delay=0.01)
    assert executor.run(job) == 2
    assert (job.attempts[0].error_code, job.attempts[0].exit_signal) == ("WORKER_CRASHED", signal.SIGKILL)


def bytes_to_read(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_result_that_is_half_written_when_its_worker_dies_is_a_crash(executor: JobExecutor, tmp_path: Path) -> None:
    """A result of which the worker wrote only a part before it died counts as a crash, and is retried."""
    size, path = MIN_MEMORY_FILE_BYTES - 1024, tmp_path / "go"
    is_blocked, unblock = threading.Event(), threading.Event()

    def block() -> None:
        is_blocked.set()
        unblock.wait(PATIENCE)

    job = Job(function=large_bytes, args=(size, str(path)), pool="process", retry_delay=0.01)
    future = executor.submit(job)
    wait_for(future.running)
    supervisor_of(executor).call_soon(block)
    assert is_blocked.wait(PATIENCE)
    worker = job.live.assignment.worker
    path.touch()
    wait_for(lambda: bytes_to_read(worker.fd) > 1024)
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(worker.process.pid))
    assert bytes_to_read(worker.fd) < size, "the result is whole: this proves nothing"
    unblock.set()
    assert future.result(timeout=PATIENCE) == bytes(size)
    assert [attempt.error_code for attempt in job.attempts] == ["WORKER_CRASHED", None]


DIES_BY_SIGPIPE = """
import os, signal, sys, threading, time
from pathlib import Path
from executor_adapter import Job, JobExecutor
from tests.insides import supervisor_of

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
blocked, unblock = threading.Event(), threading.Event()

def block():
    blocked.set()
    unblock.wait(20)

def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

with JobExecutor(1) as executor:
    guardian = executor.run(Job(function=os.getppid, pool="process"))
    supervisor_of(executor).call_soon(block)
    blocked.wait()
    children = Path(f"/proc/{guardian}/task/{guardian}/children").read_text()  # one of them is a spare worker
    workers = [int(pid) for pid in children.split()]
    for pid in {"workers": workers, "guardian": [guardian]}[sys.argv[1]]:
        os.kill(pid, signal.SIGKILL)
    while any(map(is_alive, workers)):
        time.sleep(0.01)
    future = executor.submit(Job(function=os.getpid, pool="process", retry_delay=0))
    unblock.set()  # its next turn sends the job to the worker, before it can see that this has died
    print(future.result() not in workers)
"""


@pytest.mark.parametrize("dying", ["workers", "guardian"])
def test_a_death_does_not_end_a_program_in_which_sigpipe_does(dying: str, tmp_path: Path) -> None:
    """Sending to a worker or a guardian that has died harms no program, also with SIGPIPE at its default."""
    ended = run_program(DIES_BY_SIGPIPE, tmp_path, dying)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr


BLOCKED_SIGNALS = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
from executor_adapter import Job, JobExecutor
from executor_adapter.exceptions import SoftTimeoutError
from executor_adapter.config import Settings

def sleep_until_interrupted():
    try:
        time.sleep(30)
    except SoftTimeoutError:
        return "interrupted"

if __name__ == "__main__":
    with JobExecutor(2, config=Settings(executor={"start_method": sys.argv[1]})) as executor:
        executor.run(Job(function=int, pool="process"))
        soft = executor.submit(Job(function=sleep_until_interrupted, pool="process", soft_timeout=0.5, max_runtime=20))
        hard = executor.submit(Job(function=time.sleep, args=(30,), pool="process", max_runtime=1, retry_attempts=0))
        print(soft.result())
        print(type(hard.exception()).__name__, hard.job.attempts[0].kill_seconds < 2)
"""


@pytest.mark.parametrize("method", ["guardian", "spawn"])
def test_signals_that_the_program_blocks_are_not_blocked_in_its_workers(method: str, tmp_path: Path) -> None:
    """Limits end jobs at once also where the host blocks all signals: its workers do not inherit that."""
    ended = run_program(BLOCKED_SIGNALS, tmp_path, method)
    assert ended.stdout.splitlines() == ["interrupted", "JobTimeoutError True"], ended.stderr


def test_past_its_crash_budget_a_job_is_quarantined_until_released(executor: JobExecutor, tmp_path: Path) -> None:
    """A job that crashes more than crash_attempts times is quarantined, and refused until it is released."""
    policy = RetryPolicy(retry_attempts=9, crash_attempts=1, retry_delay=0.01)
    job = Job(function=kill_self_until, args=(str(tmp_path / "calls"), 99), pool="process", retry=policy)
    with pytest.raises(WorkerCrashedError):
        executor.run(job)
    assert len(job.attempts) == 2
    assert executor.quarantined() == [job]
    assert executor.stats().quarantined == (job.job_id,)

    again = Job(job_id=job.job_id, function=functions.add, args=(1,))
    with pytest.raises(InvalidJobError, match="quarantined after 2 crashes"):
        executor.submit(again)
    assert executor.release(job.job_id)
    assert not executor.release(job.job_id)
    assert executor.run(again) == 2


def test_a_job_past_its_memory_limit_is_retried_with_a_larger_one_where_a_rule_says_so(executor: JobExecutor) -> None:
    """A rule with memory_factor retries a job with a larger memory_limit."""
    rule = RetryRule(codes=("MEMORY_LIMIT",), memory_factor=8.0, retry_delay=0.01)
    job = Job(
        function=hold_memory, args=(120 << 20, 0.6), pool="process", memory_limit="80MiB",
        retry=RetryPolicy(rules=(rule,)),
    )  # fmt: skip
    assert executor.run(job) == 120 << 20
    assert [attempt.error_code for attempt in job.attempts] == ["MEMORY_LIMIT", None]


def test_a_job_past_its_memory_limit_fails_with_its_code_and_harms_no_other(executor: JobExecutor) -> None:
    """Without a rule a job past its memory_limit fails with MEMORY_LIMIT, and other jobs complete."""
    hungry = executor.submit(
        Job(function=hold_memory, args=(200 << 20, 30), pool="process", memory_limit="80MiB", retry_attempts=0)
    )
    assert executor.run(Job(function=functions.add, args=(1,), pool="process")) == 2
    with pytest.raises(MemoryLimitError):
        hungry.result(timeout=PATIENCE)


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_a_rule_can_have_the_next_attempt_run_alone(make_executor: MakeExecutor, tmp_path: Path, pool: str) -> None:
    """A rule with `alone` runs the next attempt while no other job runs."""
    executor = make_executor(3)
    path = str(tmp_path / "times")
    rule = RetryRule(codes=("NETWORK_ERROR",), retry_delay=0.05, alone=True)
    lonely = Job(
        function=fail_once_then_mark, args=(str(tmp_path / "calls"), path, 0.3), pool=pool,
        retry=RetryPolicy(rules=(rule,)), priority=1,
    )  # fmt: skip
    futures = [executor.submit(lonely)]
    futures += [executor.submit(Job(function=mark_and_sleep, args=(path, 0.15), pool=pool)) for _ in range(9)]
    for future in futures:
        future.result(timeout=PATIENCE)
    times = [tuple(map(float, line.split())) for line in Path(path).read_text().splitlines()]
    (alone,) = (span for span in times if span[1] - span[0] > 0.28)
    others = [span for span in times if span is not alone]
    assert all(end <= alone[0] or begin >= alone[1] for begin, end in others)
    wait_for(lambda: executor.stats().workers_busy == 0)
