"""Tests process jobs on other systems, simulated by hiding Linux's features (`without_linux/sitecustomize.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WITHOUT_LINUX = Path(__file__).parent / "without_linux"

PROGRAM = """
import os, sys
from executor_adapter import Job, JobExecutor
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError, JobTimeoutError

assert not hasattr(os, "pidfd_open")
with JobExecutor(2) as executor:
    assert executor.config.executor.start_method == "spawn"
    assert executor.run(Job(function=hasattr, args=(os, "pidfd_open"), pool="process")) is False
    large = bytes(5 << 20)
    assert executor.run(Job(function=bytes, args=(large,), pool="process")) == large
    endless = Job(function="time:sleep", args=(3600,), pool="process", max_runtime=0.2, retry_attempts=0)
    try:
        executor.run(endless)
    except JobTimeoutError:
        print(endless.attempts[0].kill_seconds < 60)
of_linux = ("pools.process.launch_guardian", "worker.guardian", "worker.process_tree")
print(sorted(name for name in sys.modules if name.removeprefix("executor_adapter.").startswith(of_linux)))
for key, value in {"START_METHOD": "guardian", "CPU_AFFINITY": "[0]", "MAX_RSS_GROWTH": "1000000"}.items():
    os.environ["EXECUTOR_ADAPTER_EXECUTOR__" + key] = value
    try:
        load_config()
    except ConfigurationError as error:
        print(error)
    del os.environ["EXECUTOR_ADAPTER_EXECUTOR__" + key]
"""


def run_without_linux(*command: str, cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run Python with the features of Linux hidden from it and all its child processes."""
    environment = os.environ | {"PYTHONPATH": f"{WITHOUT_LINUX}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=cwd, timeout=seconds
    )


def test_jobs_run_in_spawned_workers_and_nothing_of_linux_is_loaded(tmp_path: Path) -> None:
    """Jobs run in spawned workers and end at their limits, and no module that needs Linux's features is loaded."""
    done = run_without_linux("-c", PROGRAM, cwd=tmp_path, seconds=200)
    assert done.stderr == ""
    killed, loaded, guardian, affinity, growth = done.stdout.splitlines()
    assert (killed, loaded) == ("True", "[]")
    assert guardian.startswith("environment: executor.start_method: 'guardian' is not allowed: must be 'spawn' here")
    assert "cpu_affinity" in affinity
    assert "max_rss_growth needs start_method 'guardian'" in growth


# The part of the contract that depends on the platform. Spawned workers on Linux are tested against all of it.
CHOSEN = "max_runtime or deadline or stall or soft_timeout or checkpoint or cancelled or shutdown or hooks or driver"


@pytest.mark.nightly
def test_the_contract_holds() -> None:
    """The contract of the process pool holds without Linux's features."""
    chosen = f"process and not spawn and ({CHOSEN})"
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "tests/contract/test_pools.py")
    done = run_without_linux(*command, cwd=ROOT, seconds=200)
    assert done.returncode == 0, done.stdout[-5000:]
    print(done.stdout)
