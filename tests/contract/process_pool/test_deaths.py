"""Tests deaths of jobs, workers, guardians and hosts: one job is harmed, and no process is left."""

from __future__ import annotations

import contextlib
import itertools
import math
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
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.process import launch_guardian
from executor_adapter.pools.transport.envelope import Ending
from executor_adapter.worker.wire import lease_time
from tests.contract.functions import exit_at
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, alive, harness, marked
from tests.waiting import PATIENCE, wait_for

# --- each way to fail at each place ---

ACTS = {
    "crash": functions.crash,
    "exit": functions.exit_at_once,
    "C exit": functions.exit_in_c,
    "error": functions.fail,
}
PLACES: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "unpickling of an argument": lambda act: (functions.accept, functions.FailsOnUnpickling(act)),
    "running": lambda act: (functions.run, act),
    "pickling of the result": lambda act: (functions.return_fails_on_pickling, act),
    "unpickling of the result": lambda act: (functions.return_fails_on_unpickling, act),
}


@pytest.mark.parametrize(("act", "place"), list(itertools.product(ACTS, PLACES)))
def test_only_the_misbehaving_job_fails(pool: Harness, act: str, place: str) -> None:
    """Only the job whose value or function crashes, exits or raises fails, wherever it does so."""
    others = [pool.submit(functions.add, number, 1, short=True) for number in range(10)]
    function, argument = PLACES[place](ACTS[act])
    misbehaving = pool.submit(function, argument, short=True)
    others += [pool.submit(functions.add, number, 1, short=True) for number in range(10)]

    pool.until_ended(misbehaving, *others)

    assert [pool.value(each) for each in others] == [*range(1, 11), *range(1, 11)]
    if act != "error":
        assert pool.ending(misbehaving) is Ending.CRASHED
        assert isinstance(pool.error(misbehaving), WorkerCrashedError)
    elif place == "running":
        assert pool.ending(misbehaving) is Ending.RAISED
    else:
        assert pool.ending(misbehaving) is Ending.UNSENDABLE
        assert isinstance(pool.error(misbehaving), JobSerializationError)


def test_an_argument_that_fails_to_pickle_is_refused_at_submit(pool: Harness) -> None:
    """An argument whose pickling raises is refused when the job is submitted."""
    with pytest.raises(JobSerializationError, match="LookupError: on purpose"):
        pool.submit(functions.accept, functions.FailsOnPickling(functions.fail))


def test_a_crash_is_described(pool: Harness) -> None:
    """The error of a crashed job has the signal or exit code, and the end of the output with the stack."""
    assignment = pool.submit(functions.write_and_crash)
    error = pool.error(assignment)
    assert (error.exit_signal, error.exit_code) == (signal.SIGSEGV, None)
    assert assignment.exit_signal == signal.SIGSEGV
    assert "SIGSEGV" in str(error)
    assert error.output_tail.startswith("last words\n")
    assert "Fatal Python error: Segmentation fault" in error.output_tail
    assert "in crash" in error.output_tail
    second = pool.submit(functions.exit_at_once)
    assert (pool.error(second).exit_code, second.exit_code) == (3, 3)


def test_the_end_of_the_output_of_a_crashed_job_is_its_own(tmp_path: Path) -> None:
    """A log record of the job before, behind an event that nobody opens, is no part of a crashed job's output."""
    with harness(1) as pool:
        pool.warm_up(2)
        first = pool.submit(functions.send_and_log, str(tmp_path / "never"), "words of the first")
        second = pool.submit(exit_at, str(tmp_path / "crashes"))
        pool.until(lambda: pool.starts[second])
        assert [each["message"] for each in pool.messages_of(first, "log")] == ["words of the first"]
        (tmp_path / "crashes").touch()
        assert pool.error(second).output_tail == ""
        assert second.pid == first.pid


def test_jobs_queued_behind_a_crash_are_handed_back_without_an_attempt(tmp_path: Path) -> None:
    """Jobs queued behind one whose worker is killed are handed back, and complete in another worker."""
    with harness(1) as pool:
        pool.warm_up(2)
        crashing = pool.submit(functions.nap, 30, str(tmp_path / "pid"), short=True)
        behind = [pool.submit(functions.add, number, 1, short=True) for number in range(5)]
        pool.until((tmp_path / "pid").exists)
        assert not pool.pending
        assert crashing.pid is not None
        os.kill(crashing.pid, signal.SIGKILL)
        assert pool.ending(crashing) is Ending.CRASHED
        pool.until_ended(*behind)
        assert set(pool.hand_backs) == set(behind)
        assert [pool.value(each) for each in behind] == [1, 2, 3, 4, 5]


# --- deaths from outside ---


def test_sigkill_of_an_idle_worker_harms_no_job(pool: Harness) -> None:
    """Killing idle workers harms no job."""
    pool.value(pool.submit(functions.pid))
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert [pool.value(pool.submit(functions.add, n, 1)) for n in range(5)] == [1, 2, 3, 4, 5]
    assert not [each for each in pool.endings if pool.ending(each) is Ending.CRASHED]


class StartsAtOnce(Harness):
    """Gives what is handed back to the pool at once, as the supervisor does with the attempt of a driven job."""

    def handed_back(self, assignment: Assignment) -> None:
        super().handed_back(assignment)
        self.pending.remove(assignment)
        self.pool.start(assignment)


def test_an_attempt_that_goes_from_one_dead_worker_to_the_next_runs() -> None:
    """Where all workers die before any death is seen, an attempt that each hands to the next runs in a new one."""
    with contextlib.closing(StartsAtOnce(3)) as pool:
        for each in [pool.submit(functions.nap, 0.1) for _ in range(3)]:
            pool.value(each)
        pool.until(lambda: pool.idle == 4)
        workers, guardian = pool.pool.workers, pool.pool.workers.launcher.guardian.pid
        workers.idle.sort(key=lambda worker: -worker.number)  # The oldest is used first, and reported first.
        for worker in workers.idle:  # Only the guardian's reports tell of the deaths.
            pool.unwatch(worker.fd)
            worker.process.stop_watching()
        for pid in (guardian, *pool.pids):
            os.kill(pid, signal.SIGSTOP)
        assignment = pool.submit(functions.add, 1, 1)
        pool.turn(0.0)
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, pool.pids)))  # The guardian reaps its oldest child first.
        os.kill(guardian, signal.SIGCONT)
        assert pool.value(assignment) == 2
        assert len(pool.hand_backs) > 1


def test_sigkill_in_the_middle_of_a_large_result(pool: Harness) -> None:
    """A worker killed while it sends a large result crashes its job, or the whole value arrives."""
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        assignment = pool.submit(functions.large_bytes, 100 << 20)
        neighbour = pool.submit(functions.add, 1, 1)
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


def test_sigkill_of_the_guardian_ends_running_jobs_and_is_survived(pool: Harness, tmp_path: Path) -> None:
    """When the guardian is killed, running jobs crash, nothing they started is left, and the next job runs."""
    path = tmp_path / "pid"
    running = pool.submit(functions.leave_daemon, str(path))
    pool.until(path.exists)
    assert running.pid is not None
    guardian = int(Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGKILL)

    assert pool.ending(running) is Ending.CRASHED
    assert not alive(running.pid)
    assert not alive(int(path.read_text()))
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_a_guardian_that_is_stopped_is_replaced(pool: Harness, tmp_path: Path) -> None:
    """A guardian stopped by a signal is replaced when it does not report a worker's death."""
    running = pool.submit(functions.nap, 30, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    assert running.pid is not None
    guardian = int(Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGSTOP)
    os.kill(running.pid, signal.SIGKILL)
    assert pool.ending(running) is Ending.CRASHED
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_a_guardian_that_is_stopped_leaves_nothing(
    pool: Harness, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stopped guardian leaves neither what a living worker started nor what a dead one left."""
    paths = [tmp_path / "of the dead", tmp_path / "of the living"]
    dying, living = (pool.submit(functions.leave_program, str(path)) for path in paths)
    pool.until(lambda: all(path.exists() for path in paths))
    assert dying.pid is not None
    guardian = int(Path(f"/proc/{dying.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGSTOP)
    os.kill(dying.pid, signal.SIGKILL)

    assert [pool.ending(each) for each in (dying, living)] == [Ending.CRASHED] * 2

    cause = "was killed by this program because it did not report on a worker for 7 s"
    assert cause in caplog.text
    assert [cause in str(pool.error(each)) for each in (dying, living)] == [True, True]
    wait_for(lambda: not [path for path in paths if alive(int(path.read_text()))])


FORGETS_ONE = """
from executor_adapter.worker import guardian
send, forgotten = guardian.Guardian._send, []

def forget_one(self, kind, number=0, *rest, **others):
    if kind == guardian.EXITED and number in (forgotten or [number]):
        forgotten.append(number)
    else:
        send(self, kind, number, *rest, **others)

guardian.Guardian._send = forget_one
"""


def test_a_guardian_that_forgets_one_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guardian that does not report a death is replaced in time, whatever it reports of other workers."""
    (tmp_path / "forgets_one.py").write_text(FORGETS_ONE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(launch_guardian, "_REPLY_TIMEOUT", 2.0)
    with harness(2, preload=("forgets_one",)) as pool:
        forgotten = pool.submit(functions.exit_at_once)
        pool.until_running(forgotten)
        worker, ends = forgotten.worker, time.monotonic() + PATIENCE
        pool.until(lambda: worker.retired)
        while forgotten not in pool.endings:
            assert time.monotonic() < ends
            pool.error(pool.submit(functions.exit_at_once))
        assert "did not report on a worker for 2 s" in str(pool.error(forgotten))


MAY_NOT_KILL = """
import ctypes
libc = ctypes.CDLL(None)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, data) == 0
data[0] &= ~(1 << 5)  # CAP_KILL, effective
assert libc.capset(header, data) == 0
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_another_users_process_harms_its_own_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of another user, as one started by sudo, neither ends the guardian nor is waited for."""
    (tmp_path / "may_not_kill.py").write_text(MAY_NOT_KILL)
    monkeypatch.syspath_prepend(tmp_path)
    with harness(2, preload=("may_not_kill",)) as pool:
        guardian = pool.value(pool.submit(os.getppid))
        leaving = pool.submit(functions.leave_another_users, str(tmp_path / "pid"))
        assert pool.error(leaving).exit_signal == signal.SIGSEGV
        assert pool.value(pool.submit(os.getppid)) == guardian
    left = int((tmp_path / "pid").read_text())
    assert alive(left), "the guardian could kill it: this proves nothing"
    os.kill(left, signal.SIGKILL)


def test_a_stop_after_the_death_does_not_save_a_guardian_that_is_stopped(pool: Harness, tmp_path: Path) -> None:
    """A job stopped after its worker's death ends once the stopped guardian has been replaced."""
    running = pool.submit(functions.nap, 30, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    worker = running.worker
    assert worker is not None
    os.kill(worker.process.guardian.pid, signal.SIGSTOP)
    os.kill(worker.process.pid, signal.SIGKILL)
    pool.until(lambda: worker.retired)
    pool.turn()  # the end of its socket may have been handled before its death
    pool.stop(running, grace=0.01)
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_a_fork_that_is_reported_late_does_not_cost_the_guardian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that closes its socket before its fork is reported does not make the pool kill the guardian."""
    late, receive = [True], launch_guardian.GuardianClient.receive
    monkeypatch.setattr(launch_guardian.GuardianClient, "receive", lambda self: None if late else receive(self))
    with harness(2) as pool:
        silent = pool.submit(functions.fall_silent, str(tmp_path / "pid"))
        pool.turn()
        (worker,) = (each for each in pool.pool.workers.members.values() if silent in each.queue)
        pool.until(lambda: not worker.listening)
        assert not worker.process.is_forked
        late.clear()
        pool.until(lambda: worker.process.is_forked)

        monkeypatch.setattr(pool, "now", lambda: time.monotonic() + 3.0)
        pool.turn()

        assert pool.value(pool.submit(os.getppid)) == worker.process.guardian.pid


def test_a_guardian_forks_no_worker_once_the_lease_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that a host asked for before it was stopped runs nothing once the lease is over, until it is renewed."""
    imported, ran = tmp_path / "imported", tmp_path / "ran"
    source = f"import pathlib, time\ntime.sleep(0.5)\npathlib.Path({str(imported)!r}).touch()\n"
    (tmp_path / "imports_slowly.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with harness(1, preload=("imports_slowly",)) as pool:
        pool.pool.set_lease(lease_time() + 0.1)
        assignment = pool.submit(functions.nap, 0.0, str(ran))
        pool.turn(0.0)
        wait_for(imported.exists)  # Without a turn of the host, as if a signal had stopped it.
        time.sleep(0.5)
        assert not ran.exists()
        pool.pool.set_lease(math.inf)
        assert pool.value(assignment) == 0.0
        assert ran.exists()


def test_sigkill_of_the_host_leaves_nothing(tmp_path: Path) -> None:
    """When the host is killed, its workers and everything they started end within a second."""
    script = tmp_path / "host.py"
    path = tmp_path / "pid"
    script.write_text(
        "import sys\n"
        "from tests.contract.process_pool import functions\n"
        "from tests.contract.process_pool.harness import Harness\n"
        "pool = Harness(2)\n"
        "pool.submit(functions.leave_daemon, sys.argv[1])\n"
        "pool.submit(functions.hold_gil, 60)\n"
        "pool.until(lambda: False)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PROCESS_POOL_TEST_HOST": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script), str(path)], env=environment) as host:
        wait_for(path.exists)
        wait_for(lambda: len(marked(f"PROCESS_POOL_TEST_HOST={tmp_path}")) >= 5)
        host.kill()
    wait_for(lambda: not marked(f"PROCESS_POOL_TEST_HOST={tmp_path}"))
    assert not alive(int(path.read_text()))


HOST = """
import os
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness
pool = Harness(2)
pool.warm_up(2)
guardian = pool.value(pool.submit(os.getppid))
running = [pool.submit(functions.hold_gil, 60) for _ in range(2)]
pool.until(lambda: all(pool.starts[each] for each in running))
print(guardian, *pool.pids, flush=True)
pool.until(lambda: False)
"""


def test_sigkill_of_host_and_guardian_together_ends_the_workers() -> None:
    """When host and guardian are killed together, the kernel kills the workers, even if they hold the GIL."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, "-c", HOST], env=environment, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        guardian, *workers = map(int, host.stdout.readline().split())
        assert len(workers) >= 2
        host.send_signal(signal.SIGSTOP)  # else it might handle the guardian's death before its own
        os.kill(guardian, signal.SIGKILL)
        host.kill()
    wait_for(lambda: not any(map(alive, (guardian, *workers))))


def test_workers_that_cannot_start_fail_their_jobs() -> None:
    """A job whose workers fail in their initializer crashes, and the error has the initializer's output."""
    with harness(1, initializer=(functions.fail_to_initialize, ())) as pool:
        assignment = pool.submit(functions.pid)
        error = pool.error(assignment)
        assert pool.ending(assignment) is Ending.CRASHED
        assert "set-up failed" in str(error)
        assert "the initializer's own" in error.output_tail


def test_a_guardian_that_cannot_start_fails_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guardian whose interpreter exits at once crashes the job, and the error has its exit code."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with harness(1) as pool:
        assignment = pool.submit(functions.pid)
        assert "ended with code 1 before it was ready" in str(pool.error(assignment))
        assert pool.ending(assignment) is Ending.CRASHED


def test_closing_while_the_guardian_dies() -> None:
    """A pool whose guardian was killed closes and leaves no worker."""
    pool = Harness(1)
    assignment = pool.submit(functions.pid)
    pool.value(assignment)
    guardian = int(Path(f"/proc/{assignment.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGKILL)
    pool.close()
    assert pool.pids == []
