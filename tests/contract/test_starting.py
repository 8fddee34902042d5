"""Tests workers that cannot be started: their set-up hangs, or the system refuses processes, threads or descriptors."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.job.pool_names import StartMethod
from executor_adapter.worker import wire
from tests.contract.conftest import MakeExecutor
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import harness
from tests.contract.process_pool.test_descriptors import no_descriptor_left
from tests.contract.test_crashes import run_program
from tests.waiting import PATIENCE, wait_for

HANGS_ONCE = """
import pathlib, time
try:
    pathlib.Path({path!r}).touch(exist_ok=False)
except FileExistsError:
    pass
else:
    time.sleep(60)
"""


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_a_job_whose_initializer_hangs_fails_in_words(
    start_method: StartMethod, caplog: pytest.LogCaptureFixture
) -> None:
    """An initializer that hangs is warned of, and its job fails at start_timeout with a code that says so."""
    with harness(1, start_method=start_method, initializer=(time.sleep, (60,)), start_timeout=1.5) as pool:
        error = pool.error(pool.submit(functions.pid))
    assert isinstance(error, WorkerUnavailableError)
    assert "the initializer" in str(error)
    assert "was not ready within start_timeout=1.5 s" in str(error)
    assert "is not ready after 0.75 s; jobs wait for it: they fail after start_timeout=1.5 s" in caplog.text


def test_a_preload_that_hangs_is_given_up_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preload that hangs fails the job's attempt, which counts as no crash, and the retry imports it again."""
    (tmp_path / "hangs_once.py").write_text(HANGS_ONCE.format(path=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(tmp_path)
    config = Settings(executor=ExecutorSettings(start_timeout=2.0, preload=("hangs_once",)))
    with JobExecutor(1, config=config) as executor:
        job = Job(function=functions.add, args=(1, 1), pool="process", retry_delay=0.01, retry_attempts=20)
        assert executor.run(job) == 2
    *failed, last = (attempt.error_code for attempt in job.attempts)  # A slow machine takes some more.
    assert (set(failed), last) == ({"WORKER_UNAVAILABLE"}, None)
    assert "imports preload=" in str(job.attempts[0].error_message)
    assert job.state.crashes == 0


# --- refused by the system ---

FEW_THREADS = """
import resource, threading, time
from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings

STACK = 256 << 20

def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def work(number):
    time.sleep(0.01)
    return number, threading.get_ident()

with JobExecutor(60, config=Settings()) as executor:
    executor.run(Job(function=work, args=(0,), pool="thread"))
    threading.stack_size(STACK)
    resource.setrlimit(resource.RLIMIT_AS, (used() + 5 * STACK, -1))
    futures = [executor.submit(Job(function=work, args=(n,), pool="thread", retry_attempts=0)) for n in range(60)]
    results = [future.result() for future in futures]
    assert [number for number, _ in results] == list(range(60))
    print(len({thread for _, thread in results}), "threads")
"""


def test_jobs_wait_for_the_threads_that_the_system_grants(tmp_path: Path) -> None:
    """Where the system grants a few threads only, all jobs run in those."""
    ended = run_program(FEW_THREADS, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert 1 <= int(ended.stdout.split()[0]) <= 6
    assert "the system refuses another worker" in ended.stderr


async def pause() -> str:
    await asyncio.sleep(0)
    return "ran"


@pytest.mark.parametrize(("pool", "function"), [("coroutine", pause), ("process", os.getpid)])
def test_jobs_without_any_worker_wait_and_then_fail_in_words(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch, pool: str, function: object
) -> None:
    """Without a descriptor for any worker, a job waits, and then fails with a code and message that say so."""
    make_executor(1).run(Job(function=function, pool=pool))  # This imports the pool.
    executor = make_executor(2)
    executor.run(Job(function=time.sleep, args=(0,), pool="thread"))
    with no_descriptor_left():
        waiting = executor.submit(Job(function=function, pool=pool, retry_attempts=0))
        time.sleep(0.3)
        assert not waiting.done()
    assert waiting.result(timeout=PATIENCE)
    executor.shutdown()

    monkeypatch.setattr(wire, "REFUSED_TIMEOUT", 0.3)
    executor = make_executor(2)
    executor.run(Job(function=time.sleep, args=(0,), pool="thread"))
    with no_descriptor_left():
        failing = executor.submit(Job(function=function, pool=pool, retry_attempts=0))
        error = failing.exception(timeout=PATIENCE)
        cancelled = executor.submit(Job(function=function, pool=pool))
        wait_for(lambda: cancelled.job.live.assignment is not None)
        cancelled.cancel()
        cancelled.exception(timeout=PATIENCE)
    assert isinstance(error, WorkerUnavailableError)
    assert (failing.job.error_code, failing.job.state.crashes) == ("WORKER_UNAVAILABLE", 0)
    assert "Too many open files: raise the limit (ulimit" in str(error)
    assert cancelled.job.error_code == "CANCELLED"
    assert executor.run(Job(function=function, pool=pool))
    assert executor.stats().workers_busy == 0


FEW_FORKS = """
import errno, os
from executor_adapter.worker import wire

wire.REFUSED_TIMEOUT = 0.3
fork, forked = os.fork, []

def refuse():
    if len(forked) == int(os.environ["MOST_FORKS"]):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    pid = fork()
    forked.append(pid)
    return pid

os.fork = refuse
"""


def test_jobs_wait_for_the_processes_that_the_system_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system grants two processes only, all jobs run in those."""
    (tmp_path / "few_forks.py").write_text(FEW_FORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MOST_FORKS", "2")
    with harness(6, preload=("few_forks",)) as pool:
        submitted = [pool.submit(functions.nap_and_return_pid, 0.02) for _ in range(30)]
        assert len({pool.value(each) for each in submitted}) == 2


def test_a_worker_that_was_never_forked_has_no_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system grants no process, the attempt fails in words, without an exit code or signal."""
    (tmp_path / "few_forks.py").write_text(FEW_FORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MOST_FORKS", "0")
    with harness(1, preload=("few_forks",)) as pool:
        attempt = pool.submit(os.getpid)
        error = pool.error(attempt)
    assert isinstance(error, WorkerUnavailableError)
    assert (error.exit_code, attempt.exit_code, attempt.exit_signal) == (None, None, None)


def test_a_worker_that_cannot_be_made_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error is, the attempt is refused, and the next one finds the slot free."""
    with harness(1) as pool:
        monkeypatch.setattr(pool.pool.workers, "take", Mock(side_effect=TypeError("sys.executable is None")))
        assignment = pool.submit(os.getpid)
        with pytest.raises(TypeError, match="is None"):
            pool.turn()
        assert pool.pool.busy == 0
        monkeypatch.undo()
        pool.pool.start(assignment)
        assert pool.value(assignment)
