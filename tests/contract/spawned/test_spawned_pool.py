"""Tests how spawned workers start, die and close."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, JobSettings, Settings
from executor_adapter.exceptions import InvalidJobError, JobTimeoutError, WorkerCrashedError
from executor_adapter.job.pool_names import StartMethod
from executor_adapter.pools.base import Recall
from executor_adapter.pools.process.launch_spawn import MAX_CHECK_INTERVAL
from executor_adapter.pools.transport.envelope import Ending
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, alive, harness, open_descriptors
from tests.contract.spawned.functions import leave_child, take_descriptors
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

SPAWN = Settings(executor=ExecutorSettings(start_method="spawn"))


@pytest.fixture
def executor() -> Iterator[JobExecutor]:
    with JobExecutor(2, config=SPAWN) as made:
        yield made


# --- deaths ---


def test_sigkill_of_idle_workers_harms_no_job() -> None:
    """Killing idle workers harms no job."""
    with harness(2, start_method="spawn") as pool:
        pool.warm_up(2)
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        assert [pool.value(pool.submit(functions.add, n, 1)) for n in range(5)] == [1, 2, 3, 4, 5]


def test_sigkill_of_a_busy_worker_harms_its_job_alone(pool: Harness, tmp_path: Path) -> None:
    """A killed worker crashes its own job only, and the error has the signal."""
    killed, neighbour = pool.submit(functions.nap, 30, str(tmp_path / "pid")), pool.submit(functions.nap, 0.3)
    pool.until((tmp_path / "pid").exists)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    assert pool.ending(killed) is Ending.CRASHED
    assert (killed.exit_signal, pool.error(killed).exit_signal) == (signal.SIGKILL, signal.SIGKILL)
    assert pool.value(neighbour) == 0.3


def test_a_death_that_is_looked_for_before_its_socket_is_read_is_reported_once(pool: Harness, tmp_path: Path) -> None:
    """A busy worker whose exit is seen before the end of its socket crashes its job only, and the pool goes on."""
    killed = pool.submit(functions.nap, 30, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    pid = killed.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    pool.call_due(MAX_CHECK_INTERVAL)
    assert pool.ending(killed) is Ending.CRASHED
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_a_job_that_a_dead_worker_had_not_started_is_handed_back() -> None:
    """A job that was sent to a worker but had not started when the worker died is handed back."""
    with harness(1, start_method="spawn") as pool:
        pool.warm_up(2)
        for pid in pool.pids:
            os.kill(pid, signal.SIGSTOP)
        assignment = pool.submit(functions.add, 1, 1)
        pool.until_running(assignment)
        assert assignment.pid is not None
        others = set(pool.pids) - {assignment.pid}
        for pid in others:  # A dead one that the pool still takes for idle would get the job, and hand it back too.
            os.kill(pid, signal.SIGKILL)
        pool.until(lambda: others.isdisjoint(pool.pids))
        os.kill(assignment.pid, signal.SIGKILL)
        assert pool.value(assignment) == 2
        assert pool.hand_backs == [assignment]


def test_a_worker_whose_socket_a_forked_process_holds_is_seen_dead(pool: Harness, tmp_path: Path) -> None:
    """A worker's death is noticed though a process forked in C holds its socket open."""
    code = "import ctypes, os, time\nif ctypes.CDLL(None).fork() == 0:\n    time.sleep(20)\n    os._exit(0)\n"
    namespace: dict[str, Any] = {}
    assignment = pool.submit(exec, code + "time.sleep(0.2)\nos._exit(9)", namespace)
    assert pool.ending(assignment) is Ending.CRASHED
    assert assignment.exit_code == 9


@pytest.mark.parametrize("grace", [0.0, 0.2])
def test_processes_in_the_group_of_a_stopped_function_are_killed(pool: Harness, tmp_path: Path, grace: float) -> None:
    """Processes that a stopped function started in its process group are killed."""
    path = tmp_path / "pid"
    assignment = pool.submit(leave_child, str(path))
    pool.until(path.exists)
    pool.stop(assignment, grace=grace)
    assert not alive(int(path.read_text()))


def test_processes_in_the_group_of_a_crashed_function_are_killed(pool: Harness, tmp_path: Path) -> None:
    """Processes that a crashed function started in its process group are killed."""
    path = tmp_path / "pid"
    assignment = pool.submit(leave_child, str(path), functions.crash)
    assert pool.ending(assignment) is Ending.CRASHED
    assert not alive(int(path.read_text()))


HOST = """
import os, sys, time
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness
pool = Harness(2, start_method="spawn")
for _ in range(2):
    pool.submit(functions.nap, 60)
pool.until(lambda: len(pool.starts) == 2)
if sys.argv[1] == "which forked":
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
print(*pool.pids, flush=True)
pool.until(lambda: False)
"""


@pytest.mark.parametrize("host", ["alone", "which forked"])
def test_sigkill_of_the_host_ends_its_workers(host: str) -> None:
    """Workers end when the host is killed, even if a process it forked holds its pipes open."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore", "-c", HOST, host]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) >= 2
        process.kill()
        wait_for(lambda: not any(map(alive, pids)))


# --- workers stopped by a signal ---


SHORT_GRACE = Settings(executor=ExecutorSettings(start_method="spawn", kill_grace=0.1))


def test_a_job_whose_worker_is_stopped_ends_at_its_limit(tmp_path: Path) -> None:
    """A job that stops its own worker with SIGSTOP ends at max_runtime."""
    path = tmp_path / "pid"
    job = Job(function=functions.stop_self, args=(str(path),), pool="process", max_runtime=0.3, retry_attempts=0)
    with JobExecutor(1, config=SHORT_GRACE) as executor:
        with pytest.raises(JobTimeoutError):
            executor.submit(job).result(timeout=PATIENCE)
    assert not alive(int(path.read_text()))


def test_a_job_whose_worker_was_stopped_before_ends_at_its_limit() -> None:
    """A job sent to a worker that was stopped before never starts, and still ends at max_runtime."""
    with JobExecutor(1, config=SHORT_GRACE) as executor:
        executor.run(Job(function=functions.pid, pool="process"))
        pool: Any = supervisor_of(executor).pools.made["process"]
        wait_for(lambda: len(pool.workers.idle) == 2)  # A spare worker that gets ready later would take the job.
        os.kill(executor.run(Job(function=functions.pid, pool="process")), signal.SIGSTOP)
        job = Job(function=functions.pid, pool="process", max_runtime=0.3, retry_attempts=0)
        with pytest.raises(JobTimeoutError):
            executor.submit(job).result(timeout=PATIENCE)
        assert executor.run(Job(function=functions.add, args=(1, 1), pool="process")) == 2


# --- starting ---


def test_settings_reach_every_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Preload, initializer, nice and CPU affinity apply to each worker."""
    options: dict[str, Any] = {
        "preload": ("wave", "no_such_module"),
        "initializer": (functions.remember, ("kept",)),
        "nice": 3,
    }
    with harness(1, start_method="spawn", **options) as pool:
        seen = pool.value(pool.submit(functions.environment_of_worker))
        assert pool.value(pool.submit(functions.remembered)) == "kept"
        pool.until(lambda: pool.idle == 2)
    assert seen["nice"] == 3
    assert "wave" in seen["modules"]
    noted = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(noted) == 1
    assert noted[0].startswith("cannot preload no_such_module")


def test_workers_that_cannot_start_fail_their_jobs() -> None:
    """A job whose workers fail in their initializer crashes, and the error has the initializer's output."""
    with harness(1, start_method="spawn", initializer=(functions.fail_to_initialize, ())) as pool:
        assignment = pool.submit(functions.pid)
        error = pool.error(assignment)
        assert pool.ending(assignment) is Ending.CRASHED
        assert "set-up failed" in str(error)
        assert "the initializer's own" in error.output_tail


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_a_job_whose_workers_cannot_start_has_an_attempt_and_fails(start_method: StartMethod) -> None:
    """A job whose workers cannot start fails after its retries, each recorded as an attempt."""
    config = Settings(executor=ExecutorSettings(start_method=start_method))
    with JobExecutor(1, config=config, initializer=functions.fail_to_initialize) as executor:
        job = Job(function=functions.pid, pool="process", retry_attempts=1, retry_delay=0.01)
        with pytest.raises(WorkerCrashedError, match="set-up failed"):
            executor.submit(job).result(timeout=PATIENCE)
    assert [attempt.error_code for attempt in job.attempts] == ["WORKER_CRASHED", "WORKER_CRASHED"]


@pytest.mark.parametrize(("program", "text"), [("/bin/false", "exited with code 1 before"), ("/none", "No such file")])
def test_an_interpreter_that_cannot_run_fails_the_jobs(
    executor: JobExecutor, monkeypatch: pytest.MonkeyPatch, program: str, text: str
) -> None:
    """A `sys.executable` that is not an interpreter crashes the jobs with a clear error."""
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(WorkerCrashedError, match=text):
        executor.submit(Job(function=functions.pid, pool="process", retry_attempts=0)).result(timeout=PATIENCE)


def test_a_worker_is_replaced_after_its_number_of_jobs() -> None:
    """No worker runs more than max_jobs_per_worker jobs."""
    with harness(1, start_method="spawn", max_jobs_per_worker=3) as pool:
        pids = [pool.value(pool.submit(functions.pid)) for _ in range(8)]
    assert all(pids.count(pid) <= 3 for pid in pids)


def test_a_spare_worker_takes_over_after_a_kill() -> None:
    """After a kill the spare worker runs the next job."""
    with harness(1, start_method="spawn") as pool:
        pool.warm_up(2)
        before = set(pool.pids)
        running = pool.submit(functions.nap, 30)
        pool.until_running(running)
        pool.stop(running, grace=0)
        assert pool.value(pool.submit(functions.pid)) in before - {running.pid}


def test_workers_that_start_while_their_number_is_lowered_end() -> None:
    """A worker whose job is taken back while it starts, since `max_workers` was lowered, ends; the jobs run on."""
    with harness(4, start_method="spawn") as pool:
        jobs = [pool.submit(functions.add, 1, number) for number in range(4)]
        pool.turn(0)
        for pid in pool.pids:
            os.kill(pid, signal.SIGSTOP)
        waiting = pool.pool.unstarted()
        assert waiting == jobs
        pool.pool.resize(1)
        assert {pool.pool.recall(assignment) for assignment in waiting} == {Recall.TAKEN_BACK}
        pool.until(lambda: len(pool.pids) <= 2)
        for pid in pool.pids:
            os.kill(pid, signal.SIGCONT)
        pool.until_ended(*jobs)


def test_a_job_without_a_worker_is_stopped_or_recalled_at_once() -> None:
    """A job that waits for a worker can be stopped or recalled at once."""
    with harness(2, start_method="spawn") as pool:
        stopped, recalled = pool.submit(functions.pid), pool.submit(functions.pid)
        pool.pending.clear()
        pool.pool.start(stopped)
        pool.pool.start(recalled)
        pool.ask_to_stop(stopped, grace=5)
        assert pool.endings[stopped].ending is Ending.STOPPED
        assert pool.pool.recall(recalled) is Recall.TAKEN_BACK
        assert pool.pool.busy == 0
        assert pool.value(recalled) > 0


def test_the_peak_memory_of_an_attempt_is_not_the_program_s() -> None:
    """What the program held when it started the worker does not count."""
    held = bytearray(b"x") * (400 << 20)
    with harness(1, start_method="spawn") as pool:
        assignment = pool.submit(functions.nap, 0.01)
        pool.value(assignment)
    assert assignment.peak_rss is not None
    assert assignment.peak_rss < len(held)


@pytest.mark.parametrize("method", ["guardian", "spawn"])
def test_a_function_that_takes_all_descriptors_and_memory_completes(method: StartMethod) -> None:
    """Its peak memory cannot be looked up then, which is no fault of the job."""
    with harness(1, start_method=method) as pool:
        assert pool.value(pool.submit(take_descriptors, 64 << 20)) > 100


def test_the_program_is_not_imported_again(tmp_path: Path) -> None:
    """Spawned workers do not import the program, even if it runs jobs without a main guard."""
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses\n"
        "from executor_adapter import Job, JobExecutor\n"
        "print('imported')\n"
        "@dataclasses.dataclass\n"
        "class Row:\n    value: int\n"
        "def double(row): return Row(2 * row.value)\n"
        "with JobExecutor(2) as executor:\n"
        "    print(executor.run(Job(function=double, args=(Row(1),), pool='process')))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "EXECUTOR_ADAPTER_EXECUTOR__START_METHOD": "spawn"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=PATIENCE
    )
    assert (done.stdout, done.stderr) == ("imported\nRow(value=2)\n", "")


# --- closing ---


def test_closing_leaves_no_process_and_no_descriptor() -> None:
    """A closed pool leaves no process and no open file descriptor."""
    before = open_descriptors()
    with harness(2, start_method="spawn") as pool:
        assignments = [pool.submit(functions.nap, 0.01) for _ in range(4)]
        crashed = pool.submit(functions.crash)
        pool.until_ended(crashed, *assignments)
        pids = pool.pids
    assert not any(map(alive, pids))
    del assignments, crashed, pool
    assert open_descriptors() == before


def test_large_values_are_sent_both_ways_and_freed() -> None:
    """Large values arrive unchanged in both directions, and leave no descriptor open."""
    numpy = pytest.importorskip("numpy")
    with harness(1, start_method="spawn") as pool:
        pool.warm_up(2)
        before = open_descriptors()
        back = pool.value(pool.submit(functions.overwrite, numpy.zeros(1_000_000)))
        assert back.sum() == 1_000_000
        assert pool.value(pool.submit(functions.large_bytes, 3 << 20)) == bytes(3 << 20)
        del back
        pool.endings.clear()
        pool.starts.clear()
        assert open_descriptors() == before


def test_closing_while_workers_start() -> None:
    """A pool that is closed while its workers start leaves none."""
    pool = Harness(2, start_method="spawn")
    pool.submit(functions.pid)
    pool.turn(0)
    pool.close()
    assert pool.pids == []


# --- refused jobs ---


def test_a_memory_limit_is_refused_at_submit(executor: JobExecutor) -> None:
    """A job with a memory_limit is refused under spawn, and the message says what it needs."""
    with pytest.raises(InvalidJobError, match="start_method='guardian', which needs Linux"):
        executor.submit(Job(function=functions.pid, pool="process", memory_limit="1GiB"))


def test_a_memory_limit_of_the_settings_is_for_pools_that_can_hold_it() -> None:
    """A memory_limit of the settings is not applied to spawned workers; the other settings are."""
    config = SPAWN.model_copy(update={"job": JobSettings(memory_limit="1GiB", max_runtime=20)})
    with JobExecutor(1, config=config) as executor:
        job = Job(function=functions.add, args=(1, 1), pool="process")
        assert executor.run(job) == 2
    assert (job.memory_limit, job.max_runtime) == (None, 20)
