"""Tests how a program exits that left an executor open, or has work that cannot be ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

EXIT_TIMEOUT = 60
"""Seconds for a program to exit; what it must not wait for takes ten times as long."""

STUCK_IN_C = """
import logging, os, threading
from executor_adapter import Job, JobExecutor
logging.basicConfig(format="%(levelname)s %(message)s")

def read_what_never_comes(fd):
    os.read(fd, 1)  # in C, where no exception reaches it

reader, writer = os.pipe()
executor = JobExecutor(2)
future = executor.submit(Job(function=read_what_never_comes, args=(reader,), max_runtime=0.3, retry_attempts=0))
print(type(future.exception()).__name__, future.job.status, future.job.error_code)
print(executor.stats().abandoned_threads, executor.run(Job(function=len, args=("abc",))))
print([thread.is_alive() for thread in threading.enumerate() if thread.name == "executor-worker"].count(True))
"""

LEFT_OPEN = """
import sys, time
from executor_adapter import Job, JobExecutor

def report(transition):
    if transition.status.is_terminal:
        print(transition.job.job_id, transition.status, flush=True)

executor = JobExecutor(1, observers=[report])
for number in range(3):
    executor.submit(Job(job_id=str(number), function=time.sleep, args=(0.1,), pool=sys.argv[1]))
print("the program is over", flush=True)
"""

LARGE_AT_THE_END = """
import atexit, os
from contextlib import suppress

def look():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # That of the listing itself.
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    print(sorted(future.result() for future in futures), sum("eventfd" in link for link in links))

atexit.register(look)  # The last.
from executor_adapter import Job, JobExecutor

executor = JobExecutor(1)
futures = [
    executor.submit(Job(function=len, args=(bytes(9_000_000 + number),), pool="process", fresh_worker=True))
    for number in range(4)
]
futures[0].result()
"""

SHUT_DOWN_WHEN_DONE = """
import time
from executor_adapter import Job, JobExecutor

executor = JobExecutor(1)
executor.run(Job(function=time.sleep, args=(0,)))
executor.shutdown(wait=False, timeout=600)
"""

SHUT_DOWN_WHILE_RUNNING = """
import time
from executor_adapter import Job, JobExecutor

def report(transition):
    if transition.status.is_terminal:
        print(transition.job.job_id, transition.status, flush=True)

executor = JobExecutor(1, observers=[report])
for number in range(2):
    executor.submit(Job(job_id=str(number), function=time.sleep, args=(600,), pool="process", max_runtime=None))
executor.shutdown(wait=False, timeout=0.5)
"""

HOOKS_AFTER_THE_END = """
import asyncio, threading
from executor_adapter import Job, JobExecutor

class Hooked(JobExecutor):
    async def pre_execution_hook(self, job):
        while threading.main_thread().is_alive():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        print(await asyncio.to_thread(str.upper, "in a thread"), flush=True)

def report(transition):
    print(transition.job.job_id, transition.status, transition.error, flush=True)

Hooked(1, observers=[report]).submit(Job(job_id="1", function=len, args=("abc",)))
"""

CLOSE_CALLBACK = """
import threading, time
from executor_adapter import Job, JobExecutor

def report():
    started.set()
    time.sleep(0.5)
    print("all is reported", flush=True)

started = threading.Event()
executor = JobExecutor(1)
executor.add_close_callback(report)  # as a mirror does, which sends its last events
executor.run(Job(function=time.sleep, args=(0,)))
executor.shutdown(wait=False)
started.wait()
print("the program is over", flush=True)
"""

DONE_CALLBACKS = """
import sys, time
from executor_adapter import Job, JobExecutor

def call(future):
    time.sleep(0.3)
    print("called for", future.job.job_id, flush=True)

executor = JobExecutor(2)
for number in range(2):
    executor.submit(Job(job_id=str(number), function=time.sleep, args=(0.2,))).add_done_callback(call)
if sys.argv[1] == "shut down":
    executor.shutdown(wait=False)
elif sys.argv[1] == "over":
    while executor.jobs():
        time.sleep(0.01)
    executor.shutdown(wait=False)
print("the program is over", flush=True)
"""

HANGING_CALLBACK = """
import threading, time
from executor_adapter import Job, JobExecutor
from executor_adapter.supervision import thread

thread.MAX_CALLBACK_SECONDS = 0.5
executor = JobExecutor(1)
executor.submit(Job(function=time.sleep, args=(0.2,))).add_done_callback(lambda _: threading.Event().wait())
"""


def run(program: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    script = folder / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *args]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=EXIT_TIMEOUT)


def test_a_thread_stuck_in_c_is_logged_and_holds_up_nothing(tmp_path: Path) -> None:
    """The job of a thread stuck in C ends on time, the thread is counted and logged, and the interpreter exits."""
    ended = run(STUCK_IN_C, tmp_path)
    assert ended.stdout.splitlines() == ["JobTimeoutError failed TIMEOUT_ERROR", "1 3", "2"]
    assert "a thread cannot be stopped and is abandoned; it is stuck here" in ended.stderr
    assert "in read_what_never_comes" in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_an_executor_left_open_finishes_its_jobs(tmp_path: Path, pool: str) -> None:
    """A program that leaves its executor open exits when all jobs are done."""
    ended = run(LEFT_OPEN, tmp_path, pool)
    assert ended.stdout.splitlines() == ["the program is over", "0 completed", "1 completed", "2 completed"]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_shutdown_without_wait_does_not_delay_the_exit_when_all_jobs_are_done(tmp_path: Path) -> None:
    """After `shutdown(wait=False)` with a long timeout a program exits at once if all jobs are done."""
    ended = run(SHUT_DOWN_WHEN_DONE, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_shutdown_without_wait_ends_the_jobs_at_its_timeout(tmp_path: Path) -> None:
    """After `shutdown(wait=False, timeout=...)` the jobs are cancelled at the timeout, and the program exits."""
    ended = run(SHUT_DOWN_WHILE_RUNNING, tmp_path)
    assert sorted(ended.stdout.splitlines()) == ["0 cancelled", "1 cancelled"]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_interpreter_waits_for_the_close_callbacks_of_an_executor(tmp_path: Path) -> None:
    """The interpreter waits for what runs when an executor closes, as a mirror's last events."""
    ended = run(CLOSE_CALLBACK, tmp_path)
    assert ended.stdout.splitlines() == ["the program is over", "all is reported"]
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("state", ["left open", "shut down", "over"])
def test_callbacks_are_called_to_the_last(tmp_path: Path, state: str) -> None:
    """All done-callbacks are called before the program exits, whether the executor was shut down or not."""
    ended = run(DONE_CALLBACKS, tmp_path, state)
    lines = ended.stdout.splitlines()
    assert sorted(lines) == ["called for 0", "called for 1", "the program is over"]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_callback_that_hangs_is_logged_and_not_waited_for_beyond_its_limit(tmp_path: Path) -> None:
    """A done-callback that hangs is logged, and the program exits after its limit."""
    ended = run(HANGING_CALLBACK, tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == "a callback of a future takes longer than 0.5 s: not waiting for it\n"


def test_a_hook_has_threads_while_the_interpreter_exits(tmp_path: Path) -> None:
    """A hook of a job that runs after the program's end may use `asyncio.to_thread`; then the program exits."""
    ended = run(HOOKS_AFTER_THE_END, tmp_path)
    assert ended.stdout.splitlines() == ["1 pending None", "1 running None", "IN A THREAD", "1 completed None"]


def test_what_waits_at_the_end_keeps_its_descriptors_until_it_is_sent(tmp_path: Path) -> None:
    """Large arguments still reach their workers, and the worker's ends of what is forked then are closed."""
    ended = run(LARGE_AT_THE_END, tmp_path)
    assert ended.stdout == "[9000000, 9000001, 9000002, 9000003] 0\n", ended.stderr
