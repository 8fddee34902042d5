"""Tests programs that are paused for seconds: nobody is taken for dead who answered, or could not answer either."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.pools.process import launch_guardian
from executor_adapter.pools.process.launch_guardian import GuardianClient, GuardianLauncher
from executor_adapter.pools.process.pool import ProcessPool
from tests.contract.conftest import MakeExecutor
from tests.contract.process_pool.functions import nap
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

ONCE = RetryPolicy(retry_attempts=0, crash_attempts=0)


def guardian_of(executor: JobExecutor) -> GuardianClient:
    pool = supervisor_of(executor).pools.made["process"]
    assert isinstance(pool, ProcessPool)
    assert isinstance(pool.workers.launcher, GuardianLauncher)
    assert pool.workers.launcher.guardian is not None
    return pool.workers.launcher.guardian


def pause_supervisor(executor: JobExecutor, pause: Callable[[], None]) -> None:
    """Hold up the supervisor's thread, as a function does that keeps the GIL, and wait until it goes on."""
    over = threading.Event()

    def hold_up() -> None:
        pause()
        over.set()

    supervisor_of(executor).call_soon(hold_up)
    assert over.wait(PATIENCE)


@pytest.mark.parametrize("is_guardian_paused_too", [False, True])
def test_a_paused_program_does_not_kill_its_guardian(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_guardian_paused_too: bool
) -> None:
    """A program that is paused for longer than its guardian may take to answer keeps the guardian and all jobs."""
    executor = make_executor(2)
    neighbour = executor.submit(Job(function=nap, args=(60, str(tmp_path / "neighbour")), pool="process"))
    victim = executor.submit(Job(function=nap, args=(60, str(tmp_path / "victim")), pool="process", retry=ONCE))
    wait_for(lambda: (tmp_path / "neighbour").exists() and (tmp_path / "victim").exists())
    guardian = guardian_of(executor)
    dying = victim.job.live.assignment.worker
    wait_for(lambda: dying.process.pid)  # The guardian says it, which must not be stopped before.
    os.kill(guardian.pid, signal.SIGSTOP)
    with monkeypatch.context() as quick:
        quick.setattr(launch_guardian, "_REPLY_TIMEOUT", 0.4)
        os.kill(dying.process.pid, signal.SIGKILL)
        wait_for(lambda: dying.retired)  # The host waits for the guardian's report from now on.

    def pause() -> None:
        if not is_guardian_paused_too:
            os.kill(guardian.pid, signal.SIGCONT)
        time.sleep(0.6)
        os.kill(guardian.pid, signal.SIGCONT)

    pause_supervisor(executor, pause)

    error = victim.exception(timeout=PATIENCE)
    assert "was killed by SIGKILL" in str(error)
    assert guardian_of(executor) is guardian
    assert (neighbour.running(), len(neighbour.job.attempts)) == (True, 0)


def test_a_result_that_arrived_during_a_pause_is_in_time(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """A job that ended within its limit while the program was paused keeps its worker, and needs no second attempt."""
    executor = make_executor(1)
    job = Job(function=nap, args=(0.1, str(tmp_path / "started")), pool="process", max_runtime=0.5)
    future = executor.submit(job)
    wait_for((tmp_path / "started").exists)
    pause_supervisor(executor, lambda: time.sleep(0.7))
    future.result(timeout=PATIENCE)
    assert len(job.attempts) == 1
    assert executor.run(Job(function=os.getpid, pool="process")) == int((tmp_path / "started").read_text())


def test_the_victims_of_a_guardian_are_told_of_it(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """A job that ends with its guardian is NODE_LOST, no crash; the error names the guardian, and not memory."""
    executor = make_executor(1)
    future = executor.submit(Job(function=nap, args=(60, str(tmp_path / "started")), pool="process", retry=ONCE))
    wait_for((tmp_path / "started").exists)
    guardian = guardian_of(executor)
    os.kill(guardian.pid, signal.SIGKILL)
    error = future.exception(timeout=PATIENCE)
    assert f"the guardian (process {guardian.pid}) ended with code -9" in str(error)
    assert "memory" not in str(error)
    assert (future.job.error_code, future.job.state.crashes) == ("NODE_LOST", 0)
