"""Storms: jobs that misbehave in every way at once, and strangers that kill what runs them; and no trace after it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from tests.contract.chaos import functions
from tests.contract.chaos.storm import Storm, quickest_of
from tests.contract.chaos.traces import Traces, left_since, lingering, marked_by


@pytest.fixture
def seed() -> int:
    """Printed, and taken from CHAOS_SEED to repeat a storm."""
    drawn = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CHAOS_SEED={drawn}")
    return drawn


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process and all it starts would leave temporary files."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def before(scratch: Path) -> Traces:
    """What there is once every pool has been used, so that what they make once for all is not counted."""
    with JobExecutor(2, config=Settings()) as executor:
        executor.run(Job(function=functions.answer, args=(1,), pool="process"))
        executor.run(Job(function=functions.answer, args=(1,), pool="thread"))
        executor.run(Job(function=functions.compute_on_loop, args=(1,)))
    time.sleep(0.1)
    return Traces.now(scratch)


def weather(storm: Storm, before: Traces, scratch: Path, *, seconds: float) -> None:
    """Let it rage for at most `seconds`; then all jobs are over as they deserve, and nothing is left."""
    took = storm.rage(seconds)
    faults = storm.check()
    left = left_since(before, scratch, storm.tokens, seconds=5.0)
    honest = sum(kind.code is None for _, kind in storm.jobs)
    attempts = sum(len(job.attempts) for job, _ in storm.jobs)
    print(f"{len(storm.jobs)} jobs ({honest} honest), {attempts} attempts, {took:.1f} s, killed {dict(storm.kills)}")
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])
    assert not left
    assert took < seconds
    assert storm.kills["worker"] > 0.5 * (took - 3.0) / storm.kill_every


def test_a_short_storm_leaves_no_trace(seed: int, before: Traces, scratch: Path, tmp_path: Path) -> None:
    """All jobs of a short storm end as they should, and nothing is left."""
    storm = Storm(seed=seed, ledger=tmp_path / "ledger", processes=500, others=50)
    weather(storm, before, scratch, seconds=60)


@pytest.mark.chaos
def test_a_long_storm_leaves_no_trace(seed: int, before: Traces, scratch: Path, tmp_path: Path) -> None:
    """All jobs of a long storm end as they should, and nothing is left."""
    storm = Storm(seed=seed, ledger=tmp_path / "ledger", processes=10_000, others=500)
    weather(storm, before, scratch, seconds=120)


@pytest.mark.chaos
def test_a_storm_in_which_guardians_die(seed: int, before: Traces, scratch: Path, tmp_path: Path) -> None:
    """When guardians are killed too, no job runs twice at once, and nothing of their workers is left."""
    storm = Storm(seed=seed, ledger=tmp_path / "ledger", processes=3_000, others=100, kill_guardian_every=1.0)
    weather(storm, before, scratch, seconds=120)
    assert storm.kills["guardian"] >= 5


def kill_host_in_storm(seed: int, tmp_path: Path, seconds: float) -> float:
    """Start a host, kill it after `seconds` of its storm; the seconds until nothing of it is alive."""
    mark = f"CHAOS_HOST={tmp_path}"
    before = lingering()
    command = [sys.executable, "-m", "tests.contract.chaos.host", str(seed), str(tmp_path / "ledger")]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "CHAOS_HOST": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as host:
        assert quickest_of(lambda: len(marked_by([mark.encode()])) > 5, seconds=20) < 20
        time.sleep(seconds)
        assert host.poll() is None
        below = len(marked_by([mark.encode()])) - 1
        host.kill()
    assert below >= 5, "there was no storm any more: its end proves nothing"
    took = quickest_of(lambda: not marked_by([mark.encode()]) and lingering() <= before, seconds=10)
    print(f"host killed with {below} processes below it: all gone after {took:.2f} s")
    return took


def test_nothing_outlives_a_host_that_is_killed_in_a_storm(seed: int, tmp_path: Path) -> None:
    """All processes of a host that is killed in a storm end within a second."""
    assert kill_host_in_storm(seed, tmp_path, seconds=2.0) < 1.0


@pytest.mark.chaos
@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0, 6.0, 10.0])
def test_nothing_outlives_a_host_whenever_it_is_killed(seed: int, tmp_path: Path, seconds: float) -> None:
    """All processes of a host end within a second, at whatever time of a storm it is killed."""
    assert kill_host_in_storm(seed, tmp_path, seconds) < 1.0
