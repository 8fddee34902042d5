"""Tests jobs that misbehave in every way at once while their processes are killed: nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from tests.benchmarks.apart import apart
from tests.contract.chaos import functions
from tests.contract.chaos.chaos_run import ChaosRun, seconds_until
from tests.contract.chaos.leftovers import ResourceSnapshot, left_since, lingering, marked_by
from tests.contract.chaos.soak import soak
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def seed() -> int:
    """The seed of the run. It is printed, and read from CHAOS_SEED to repeat a run."""
    drawn = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CHAOS_SEED={drawn}")
    return drawn


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which this process and all it starts make temporary files."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def before(scratch: Path) -> ResourceSnapshot:
    """The resources in use once every pool has run a job, so that what a pool makes only once is not counted."""
    with JobExecutor(2, config=Settings()) as executor:
        executor.run(Job(function=print, args=("the thread that writes the output of jobs stays",), pool="process"))
        executor.run(Job(function=functions.answer, args=(1,), pool="thread"))
        executor.run(Job(function=functions.compute_on_loop, args=(1,)))
    time.sleep(0.1)
    return ResourceSnapshot.now(scratch)


def run_and_check(chaos: ChaosRun, before: ResourceSnapshot, scratch: Path, *, seconds: float) -> None:
    """Run for at most `seconds`; check that all jobs end as they must, and that nothing is left."""
    took = chaos.run(seconds)
    faults = chaos.check()
    left = left_since(before, scratch, chaos.tokens, seconds=5.0)
    well_behaved = sum(kind.code is None for _, kind in chaos.jobs)
    attempts = sum(len(job.attempts) for job, _ in chaos.jobs)
    print(f"{len(chaos.jobs)} jobs ({well_behaved} well-behaved), {attempts} attempts, {took:.1f} s")
    print(f"killed {dict(chaos.kills)}")
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])
    assert not left
    assert took < seconds
    assert chaos.kills["worker"] > 10


def test_a_short_chaos_run_leaves_nothing(seed: int, before: ResourceSnapshot, scratch: Path, tmp_path: Path) -> None:
    """All jobs of a short chaos run end as they should, and nothing is left."""
    chaos = ChaosRun(seed=seed, lock_file=tmp_path / "lock_file", processes=500, others=50)
    run_and_check(chaos, before, scratch, seconds=200)


@pytest.mark.chaos
def test_a_long_chaos_run_leaves_nothing(seed: int, before: ResourceSnapshot, scratch: Path, tmp_path: Path) -> None:
    """All jobs of a long chaos run end as they should, and nothing is left."""
    chaos = ChaosRun(seed=seed, lock_file=tmp_path / "lock_file", processes=10_000, others=500)
    run_and_check(chaos, before, scratch, seconds=200)


SOAK_JOBS = int(os.environ.get("SOAK_JOBS", "20000"))
MAX_GROWTH = {"MiB": 8.0, "descriptors": 2.0, "threads": 2.0, "processes": 1.0}
"""How much the mean of the last half of the waves may exceed that of the first, without the first quarter of all."""


@pytest.mark.chaos
@pytest.mark.timeout(0)  # Each wave has its limit, and there may be hundreds.
def test_an_executor_holds_no_more_after_very_many_jobs(
    seed: int, before: ResourceSnapshot, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures, timeouts, crashes and cancels leave an executor's memory, threads, descriptors and processes flat.

    20,000 jobs by default. Before a release 300,000 are run by hand, which takes an hour or more:

        SOAK_JOBS=300000 make chaos ARGS="-k very_many_jobs"
    """
    # Else glibc raises it at some time, and keeps the memory of a wave's large results for those of the next.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(128 << 10))
    soaked = apart(soak, SOAK_JOBS, seed, tmp_path / "lock_file")
    print(f"{soaked.ends.total()} jobs, {soaked.attempts} attempts: {dict(soaked.ends)}, killed {dict(soaked.kills)}")
    assert not soaked.faults, f"{len(soaked.faults)} faults:\n" + "\n".join(soaked.faults[:20])
    assert {"EXECUTION_ERROR", "TIMEOUT_ERROR", "WORKER_CRASHED", "CANCELLED", "MEMORY_LIMIT"} <= set(soaked.ends)
    warm = soaked.held[len(soaked.held) // 4 :]
    early, late = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    growth = {name: mean(each[name] for each in late) - mean(each[name] for each in early) for name in MAX_GROWTH}
    print({name: round(more, 1) for name, more in growth.items()})
    assert {name: more for name, more in growth.items() if more > MAX_GROWTH[name]} == {}
    assert not left_since(before, scratch, (), seconds=5.0)


@pytest.mark.chaos
def test_a_chaos_run_in_which_guardians_die(seed: int, before: ResourceSnapshot, scratch: Path, tmp_path: Path) -> None:
    """When guardians are killed too, no job runs twice at once, and nothing of their workers is left."""
    chaos = ChaosRun(seed=seed, lock_file=tmp_path / "lock_file", processes=3_000, others=100, kill_guardian_every=1.0)
    run_and_check(chaos, before, scratch, seconds=200)
    assert chaos.kills["guardian"] >= 5


def kill_host_in_chaos_run(seed: int, tmp_path: Path, seconds: float) -> float:
    """Start a host and kill it after `seconds` of its run. Return the seconds until no process of it is left."""
    mark = f"CHAOS_HOST={tmp_path}"
    before = lingering()
    command = [sys.executable, "-m", "tests.contract.chaos.host", str(seed), str(tmp_path / "lock_file")]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "CHAOS_HOST": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as host:
        wait_for(lambda: len(marked_by([mark.encode()])) > 5)
        time.sleep(seconds)
        wait_for(lambda: len(marked_by([mark.encode()])) > 5)  # Its workers are killed all the time, and replaced.
        below = len(marked_by([mark.encode()])) - 1
        assert host.poll() is None, "the run was over: the end of the host proves nothing"
        host.kill()
    took = seconds_until(lambda: not marked_by([mark.encode()]) and lingering() <= before, seconds=PATIENCE)
    print(f"host killed with {below} processes below it: all ended after {took:.2f} s")
    return took


@pytest.mark.nightly
def test_nothing_outlives_a_host_that_is_killed_in_a_chaos_run(seed: int, tmp_path: Path) -> None:
    """All processes of a host that is killed in a chaos run end."""
    assert kill_host_in_chaos_run(seed, tmp_path, seconds=2.0) < PATIENCE


@pytest.mark.chaos
@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0, 6.0, 10.0])
def test_nothing_outlives_a_host_whenever_it_is_killed(seed: int, tmp_path: Path, seconds: float) -> None:
    """All processes of a host end within a second, at whatever time of a chaos run it is killed."""
    assert kill_host_in_chaos_run(seed, tmp_path, seconds) < 1.0


@pytest.mark.chaos
def test_a_chaos_run_of_a_host_that_is_paused(seed: int, tmp_path: Path) -> None:
    """A host that is paused again and again for 4 s keeps its guardian, and all jobs end as they should."""
    command = [sys.executable, "-m", "tests.contract.chaos.host", str(seed), str(tmp_path / "lock_file"), "3000"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    pauses = 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as host:
        wait_for((tmp_path / "lock_file").exists)
        while host.poll() is None and pauses < 8:
            time.sleep(1.5)
            host.send_signal(signal.SIGSTOP)
            time.sleep(4.0)
            host.send_signal(signal.SIGCONT)
            pauses += 1
        output, _ = host.communicate(timeout=PATIENCE)
    print(f"paused {pauses} times for 4 s")
    assert pauses >= 2, "the run was over: this proves nothing"
    assert host.returncode == 0, output
