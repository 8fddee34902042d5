"""Deaths of jobs, workers, guardians and hosts: one job is harmed, and nothing is left."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.exceptions import (
    JobSerializationError,
    WorkerCrashedError,
)
from executor_adapter.pools.base import Ending
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, alive, harness, marked, wait_for

# --- the matrix: whatever happens wherever, one job is harmed ---

ACTS = {
    "crash": functions.crash,
    "exit": functions.exit_at_once,
    "C exit": functions.exit_in_c,
    "error": functions.fail,
}
PLACES: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "unpickling of an argument": lambda act: (functions.accept, functions.GuiltyOnUnpickling(act)),
    "running": lambda act: (functions.run, act),
    "pickling of the result": lambda act: (functions.give_guilty_on_pickling, act),
    "unpickling of the result": lambda act: (functions.give_guilty_on_unpickling, act),
}


@pytest.mark.parametrize(("act", "place"), list(itertools.product(ACTS, PLACES)))
def test_only_the_guilty_job_fails(pool: Harness, act: str, place: str) -> None:
    neighbours = [pool.give(functions.add, number, 1, short=True) for number in range(10)]
    function, argument = PLACES[place](ACTS[act])
    guilty = pool.give(function, argument, short=True)
    neighbours += [pool.give(functions.add, number, 1, short=True) for number in range(10)]

    pool.until_ended(guilty, *neighbours)

    assert [pool.value(each) for each in neighbours] == [*range(1, 11), *range(1, 11)]
    if act != "error":
        assert pool.ending(guilty) is Ending.CRASHED
        assert isinstance(pool.error(guilty), WorkerCrashedError)
    elif place == "running":
        assert pool.ending(guilty) is Ending.RAISED
    else:
        assert pool.ending(guilty) is Ending.UNSENDABLE
        assert isinstance(pool.error(guilty), JobSerializationError)


def test_an_error_at_the_pickling_of_an_argument_is_told_at_submit(pool: Harness) -> None:
    with pytest.raises(JobSerializationError, match="LookupError: on purpose"):
        pool.give(functions.accept, functions.GuiltyOnPickling(functions.fail))


def test_a_crash_is_described(pool: Harness) -> None:
    assignment = pool.give(functions.write_and_crash)
    error = pool.error(assignment)
    assert (error.exit_signal, error.exit_code) == (signal.SIGSEGV, None)
    assert assignment.exit_signal == signal.SIGSEGV
    assert "SIGSEGV" in str(error)
    assert error.output_tail.startswith("last words\n")
    assert "Fatal Python error: Segmentation fault" in error.output_tail
    assert "in crash" in error.output_tail
    second = pool.give(functions.exit_at_once)
    assert (pool.error(second).exit_code, second.exit_code) == (3, 3)


def test_those_behind_a_crash_are_handed_back_without_an_attempt(tmp_path: Path) -> None:
    with harness(1) as pool:
        pool.warm_up(2)
        crashing = pool.give(functions.nap, 30, str(tmp_path / "pid"), short=True)
        behind = [pool.give(functions.add, number, 1, short=True) for number in range(5)]
        pool.until((tmp_path / "pid").exists)
        assert not pool.pending
        assert crashing.pid is not None
        os.kill(crashing.pid, signal.SIGKILL)
        assert pool.ending(crashing) is Ending.CRASHED
        pool.until_ended(*behind)
        assert set(pool.hand_backs) == set(behind)
        assert [pool.value(each) for each in behind] == [1, 2, 3, 4, 5]


# --- deaths from outside ---


def test_sigkill_of_an_idle_worker_harms_nobody(pool: Harness) -> None:
    pool.value(pool.give(functions.pid))
    for pid in pool.pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert [pool.value(pool.give(functions.add, n, 1)) for n in range(5)] == [1, 2, 3, 4, 5]
    assert not [each for each in pool.endings if pool.ending(each) is Ending.CRASHED]


def test_sigkill_in_the_middle_of_a_large_result(pool: Harness) -> None:
    """Killed at any moment of it: the job crashed or gave the whole value."""
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        assignment = pool.give(functions.large_bytes, 100 << 20)
        neighbour = pool.give(functions.add, 1, 1)
        pool.until_running(assignment)
        until = time.monotonic() + delay
        pool.until(lambda until=until: time.monotonic() >= until)  # type: ignore[misc]
        if assignment not in pool.endings and assignment.pid is not None:
            os.kill(assignment.pid, signal.SIGKILL)
        assert pool.ending(assignment) in (Ending.CRASHED, Ending.RETURNED)
        assert pool.value(neighbour) == 2
        if pool.ending(assignment) is Ending.RETURNED:
            assert len(pool.value(assignment)) == 100 << 20
        del pool.endings[assignment]


def test_sigkill_of_the_guardian_ends_what_runs_and_is_survived(pool: Harness, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    begun = pool.give(functions.leave_daemon, str(path))
    pool.until(path.exists)
    assert begun.pid is not None
    guardian = int(Path(f"/proc/{begun.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGKILL)

    assert pool.ending(begun) is Ending.CRASHED
    assert not alive(begun.pid)
    assert not alive(int(path.read_text()))
    assert pool.value(pool.give(functions.add, 1, 1)) == 2


def test_a_guardian_that_is_stopped_is_replaced(pool: Harness, tmp_path: Path) -> None:
    begun = pool.give(functions.nap, 30, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    assert begun.pid is not None
    guardian = int(Path(f"/proc/{begun.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGSTOP)
    os.kill(begun.pid, signal.SIGKILL)
    assert pool.ending(begun) is Ending.CRASHED
    assert pool.value(pool.give(functions.add, 1, 1)) == 2


def test_sigkill_of_the_host_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    path = tmp_path / "pid"
    script.write_text(
        "import sys\n"
        "from tests.contract.process_pool import functions\n"
        "from tests.contract.process_pool.harness import Harness\n"
        "pool = Harness(2)\n"
        "pool.give(functions.leave_daemon, sys.argv[1])\n"
        "pool.give(functions.hold_gil, 60)\n"
        "pool.until(lambda: False, seconds=60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PROCESS_POOL_TEST_HOST": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script), str(path)], env=environment) as host:
        wait_for(path.exists)
        wait_for(lambda: len(marked(f"PROCESS_POOL_TEST_HOST={tmp_path}")) >= 5)
        host.kill()
    wait_for(lambda: not marked(f"PROCESS_POOL_TEST_HOST={tmp_path}"), seconds=1.0)
    assert not alive(int(path.read_text()))


def test_workers_that_cannot_start_fail_their_jobs() -> None:
    with harness(1, initializer=(functions.fail_to_initialize, ())) as pool:
        assignment = pool.give(functions.pid)
        error = pool.error(assignment)
        assert pool.ending(assignment) is Ending.CRASHED
        assert "set-up failed" in str(error)
        assert "the initializer's own" in error.output_tail


def test_a_guardian_that_cannot_start_fails_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with harness(1) as pool:
        assignment = pool.give(functions.pid)
        assert "the guardian exited with code 1" in str(pool.error(assignment))
        assert pool.ending(assignment) is Ending.CRASHED


def test_closing_while_the_guardian_dies() -> None:
    pool = Harness(1)
    assignment = pool.give(functions.pid)
    pool.value(assignment)
    guardian = int(Path(f"/proc/{assignment.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGKILL)
    pool.close()
    assert pool.pool.pids == []
