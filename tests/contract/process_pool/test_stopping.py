"""Tests how running jobs are ended: stop, recall, soft timeouts, memory limits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from executor_adapter.exceptions import (
    MemoryLimitError,
    SoftTimeoutError,
)
from executor_adapter.job.pool_names import StartMethod
from executor_adapter.pools.base import Recall
from executor_adapter.pools.transport.envelope import Ending
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, alive, harness, text_of
from tests.waiting import wait_for

# --- stopping ---


def test_a_call_that_holds_the_gil_is_stopped_at_once(pool: Harness, tmp_path: Path) -> None:
    """A function that holds the GIL is killed long before it lets go."""
    assignment = pool.submit(functions.hold_gil, 3600, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    pool.stop(assignment, grace=0)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_function_is_asked_to_end_and_cleans_up(pool: Harness, tmp_path: Path) -> None:
    """A stopped function gets SystemExit, so that its `finally` block runs within the grace period."""
    path = tmp_path / "note"
    assignment = pool.submit(functions.clean_up_at_end, str(path))
    pool.until(lambda: text_of(path) == "started")
    pool.stop(assignment, grace=3600)
    assert path.read_text() == "cleaned"


def test_a_function_that_checks_cancelled_ends_by_itself(pool: Harness, tmp_path: Path) -> None:
    """A stopped function that checks `current_job().cancelled` returns by itself."""
    path = tmp_path / "note"
    assignment = pool.submit(functions.check_cancelled, str(path))
    pool.until(lambda: text_of(path) == "started")
    pool.stop(assignment, grace=3600)
    assert path.read_text() == "saw it"


def test_functions_that_ignore_sigterm_are_killed_side_by_side(tmp_path: Path) -> None:
    """Several functions that ignore SIGTERM are killed after one grace period, not one after another."""
    with harness(3) as pool:
        paths = [tmp_path / str(number) for number in range(3)]
        assignments = [pool.submit(functions.ignore_sigterm, str(path), 3600) for path in paths]
        pool.until(lambda: all(text_of(path) for path in paths))
        for assignment in assignments:
            pool.ask_to_stop(assignment, grace=2.0)
        pool.until_ended(*assignments)
    ends = [assignment.ended_at for assignment in assignments]
    assert max(ends) - min(ends) < 2.0
    assert not any(alive(int(path.read_text())) for path in paths)


def test_the_shorter_grace_counts(pool: Harness, tmp_path: Path) -> None:
    """A second stop with a shorter grace period ends the job earlier."""
    path = tmp_path / "pid"
    assignment = pool.submit(functions.ignore_sigterm, str(path), 3600)
    pool.until(lambda: text_of(path))
    pool.ask_to_stop(assignment, grace=3600)
    pool.stop(assignment, grace=0.05)


def test_a_stopped_worker_is_killed(pool: Harness, tmp_path: Path) -> None:
    """A worker that was stopped by SIGSTOP is killed after the grace period."""
    path = tmp_path / "pid"
    assignment = pool.submit(functions.stop_self, str(path))
    pool.until(lambda: text_of(path))
    pool.stop(assignment, grace=0.05)
    assert not alive(int(path.read_text()))


@pytest.mark.parametrize("grace", [0.0, 3600.0])
def test_a_descendant_in_a_session_of_its_own_is_killed_too(pool: Harness, tmp_path: Path, grace: float) -> None:
    """Stopping a job also kills a daemon that it forked into a session of its own."""
    path = tmp_path / "pid"
    assignment = pool.submit(functions.leave_daemon, str(path))
    pool.until(path.exists)
    pool.stop(assignment, grace=grace)
    assert not alive(int(path.read_text()))


def test_a_descendant_is_killed_when_its_worker_crashes(pool: Harness, tmp_path: Path) -> None:
    """A daemon that a function forked is killed when its worker crashes."""
    path = tmp_path / "pid"
    assignment = pool.submit(functions.leave_daemon, str(path), functions.crash)
    assert pool.ending(assignment) is Ending.CRASHED
    assert not alive(int(path.read_text()))


def test_a_job_that_has_not_started_is_stopped_without_harm() -> None:
    """Stopping a queued job ends it at once; the running one and the others complete."""
    with harness(1) as pool:
        pool.warm_up(2)
        running = pool.submit(functions.nap, 0.2, short=True)
        behind = [pool.submit(functions.add, number, 1, short=True) for number in range(4)]
        pool.until(lambda: not pool.pending)
        pool.ask_to_stop(behind[1], grace=0)
        assert pool.endings[behind[1]].ending is Ending.STOPPED
        pool.until_ended(running, *behind)
        assert pool.ending(running) is Ending.RETURNED
        assert [pool.value(behind[index]) for index in (0, 2, 3)] == [1, 3, 4]
        assert pool.hand_backs == [behind[3], behind[2]]


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_stopping_a_job_hands_back_those_behind_it(tmp_path: Path, start_method: StartMethod) -> None:
    """Stopping a running job hands back the jobs queued behind it, the last one first."""
    with harness(1, start_method=start_method) as pool:
        pool.warm_up(2)
        running = pool.submit(functions.nap, 30, str(tmp_path / "pid"), short=True)
        behind = [pool.submit(functions.add, number, 1, short=True) for number in range(4)]
        pool.until((tmp_path / "pid").exists)
        assert not pool.pending
        pool.ask_to_stop(running, grace=0)
        assert pool.hand_backs == behind[::-1]
        pool.until_ended(running, *behind)
        assert pool.ending(running) is Ending.STOPPED
        assert [pool.value(each) for each in behind] == [1, 2, 3, 4]


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_recall_takes_back_only_jobs_that_have_not_started(tmp_path: Path, start_method: StartMethod) -> None:
    """`recall` takes back a queued job and those behind it, but not the running one."""
    with harness(1, start_method=start_method) as pool:
        pool.warm_up(2)
        running = pool.submit(functions.hold_gil, 1, str(tmp_path / "pid"), short=True)
        behind = [pool.submit(functions.pid, short=True) for _ in range(3)]
        pool.until((tmp_path / "pid").exists)
        assert not pool.pending
        assert pool.pool.recall(running) is Recall.STARTED
        assert pool.pool.recall(behind[1]) is Recall.TAKEN_BACK
        assert pool.hand_backs == behind[:0:-1]
        assert pool.pool.recall(behind[1]) is Recall.STARTED
        pool.until_ended(running, *behind)
        assert all(pool.ending(each) is Ending.RETURNED for each in (running, *behind))


def test_a_worker_that_drops_calls_twice_is_idle_once(pool: Harness, tmp_path: Path) -> None:
    """Two calls are taken back from a worker one by one; it is free for others once, when it has dropped both."""
    pool.warm_up(2)
    running = pool.submit(functions.hold_gil, 1, str(tmp_path / "pid"), short=True)
    pool.pool.resize(1)
    behind = [pool.submit(functions.pid, short=True) for _ in range(2)]
    pool.until((tmp_path / "pid").exists)
    assert not pool.pending
    for assignment in reversed(behind):
        pool.ask_to_stop(assignment, grace=0)
    pool.until_ended(running, *behind)
    pool.until(lambda: pool.idle >= 2)
    pool.turn()
    idle = pool.pool.workers.idle
    assert len(idle) == len(set(map(id, idle))) == 2


def test_a_call_is_asked_to_end_though_the_result_before_it_was_not_read(tmp_path: Path) -> None:
    """A stop that comes before the result of the call ahead is read is no stop of that call: the grace period holds."""
    path = tmp_path / "note"
    with harness(1) as pool:
        pool.warm_up(2)
        ahead = pool.submit(functions.wait_for_file, str(tmp_path / "go"), short=True)
        stopped = pool.submit(functions.clean_up_at_end, str(path), short=True)
        pool.until_running(ahead)
        assert not pool.pending
        (tmp_path / "go").touch()
        wait_for(lambda: text_of(path) == "started")  # Without a turn.
        pool.ask_to_stop(stopped, grace=3600)
        assert (pool.ending(ahead), pool.ending(stopped)) == (Ending.RETURNED, Ending.STOPPED)
    assert path.read_text() == "cleaned"


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_handing_back_behind_a_job_that_has_not_started_takes_back_all(start_method: StartMethod) -> None:
    """If the first job has not started after all, it is handed back too, and its slot is free."""
    with harness(1, start_method=start_method) as pool:
        pool.warm_up(2)
        for pid in pool.pids:
            os.kill(pid, signal.SIGSTOP)
        calls = [pool.submit(functions.add, number, 1, short=True) for number in range(3)]
        pool.until(lambda: not pool.pending)
        pool.pool.flush()
        assert not pool.pool.hand_back_queued(pool.now() + 1)
        assert pool.hand_backs == calls[::-1]
        assert pool.pool.busy == 0
        for pid in pool.pids:
            os.kill(pid, signal.SIGCONT)
        pool.until_ended(*calls)
        assert sorted(pool.value(each) for each in calls) == [1, 2, 3]


def test_jobs_that_were_never_sent_are_stopped_and_recalled(pool: Harness) -> None:
    """A job that was not sent yet can be stopped or recalled, and frees its slot."""
    stopped, recalled = pool.submit(functions.pid), pool.submit(functions.pid)
    pool.pending.clear()
    pool.pool.start(stopped)
    pool.pool.start(recalled)
    pool.ask_to_stop(stopped, grace=5)
    assert pool.endings[stopped].ending is Ending.STOPPED
    assert pool.pool.recall(recalled) is Recall.TAKEN_BACK
    assert pool.hand_backs == [recalled]
    assert pool.pool.busy == 0
    assert pool.value(recalled) > 0


def test_stopping_an_ended_job_is_harmless(pool: Harness) -> None:
    """Stop, interrupt and recall of a job that has ended do nothing."""
    assignment = pool.submit(functions.pid)
    pool.value(assignment)
    pool.ask_to_stop(assignment, grace=0)
    pool.pool.interrupt(assignment)
    assert pool.pool.recall(assignment) is Recall.STARTED
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_capacity_is_back_at_once_after_a_kill(pool: Harness, tmp_path: Path) -> None:
    """After a kill the spare worker runs the next job."""
    first = pool.submit(functions.nap, 3600, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    pool.until(lambda: len(pool.pids) == 2)
    (spare,) = set(pool.pids) - {int((tmp_path / "pid").read_text())}
    pool.stop(first, grace=0)
    assert pool.value(pool.submit(functions.pid)) == spare


# --- soft timeout ---


def test_interrupt_raises_in_the_function_and_logs_where(pool: Harness, tmp_path: Path) -> None:
    """`interrupt` raises SoftTimeoutError in the function, and logs the stack it interrupts."""
    assignment = pool.submit(functions.catch_soft_timeout, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    pool.until(lambda: pool.pool.interrupt(assignment))
    assert pool.value(assignment) == "SoftTimeoutError"
    (record,) = pool.messages_of(assignment, "log")
    assert "in catch_soft_timeout" in record["message"]


def test_a_soft_timeout_that_is_not_caught_is_the_error(pool: Harness, tmp_path: Path) -> None:
    """A SoftTimeoutError that the function does not catch is its error, and the worker stays usable."""
    assignment = pool.submit(functions.nap, 30, str(tmp_path / "pid"))
    pool.until((tmp_path / "pid").exists)
    pool.until(lambda: pool.pool.interrupt(assignment))
    assert isinstance(pool.error(assignment), SoftTimeoutError)
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_a_soft_timeout_amid_an_import_is_raised_when_the_function_begins(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would leave half a module behind, and be another error: Python wraps what `__set_name__` raises."""
    source = (
        "import os\n"
        "from executor_adapter.worker.process import INTERRUPT\n"
        "class Attribute:\n"
        "    def __set_name__(self, owner, name):\n"
        f"        os.getpid() == {os.getpid()} or os.kill(os.getpid(), INTERRUPT)\n"
        "class Owner:\n"
        "    attribute = Attribute()\n"
        "def nothing(): pass\n"
    )
    (tmp_path / "interrupts_its_import.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool.warm_up(2)  # Else the second job may get a worker that imports the module anew, and interrupts itself too.
    assignment = pool.submit("interrupts_its_import:nothing")
    assert isinstance(pool.error(assignment), SoftTimeoutError)
    (record,) = pool.messages_of(assignment, "log")
    assert "in __set_name__" in record["message"]
    assert pool.value(pool.submit("interrupts_its_import:nothing")) is None


# --- memory ---


def test_a_tree_that_outgrows_its_limit_is_killed(pool: Harness) -> None:
    """A process tree that exceeds memory_limit is killed, and the job's error is a MemoryLimitError."""
    assignment = pool.submit(functions.hold_memory, 200 << 20, 30, memory_limit=100 << 20)
    error = pool.error(assignment)
    assert pool.ending(assignment) is Ending.CRASHED
    assert isinstance(error, MemoryLimitError)
    assert error.exit_signal == signal.SIGKILL
    assert assignment.peak_rss is not None
    assert assignment.peak_rss > 100 << 20


def test_a_job_within_its_memory_limit_completes_and_is_measured(pool: Harness) -> None:
    """A job that stays below memory_limit completes, and its peak memory is recorded."""
    assignment = pool.submit(functions.hold_memory, 64 << 20, 0.2, memory_limit=400 << 20)
    assert pool.value(assignment) == 64 << 20
    assert assignment.peak_rss is not None
    assert 64 << 20 < assignment.peak_rss < 400 << 20


@pytest.mark.parametrize("leave", [functions.keep_memory, functions.leave_holder])
def test_what_earlier_jobs_left_in_a_worker_is_not_charged_to_the_next(
    leave: Callable[[int], None],
) -> None:
    """A job with a memory limit does not run in a worker in which earlier jobs left much memory."""
    with harness(1) as pool:
        pool.warm_up(2)
        left = pool.submit(leave, 200 << 20)
        pool.value(left)
        innocent = pool.submit(functions.hold_memory, 1 << 20, 0.3, memory_limit=150 << 20)
        assert pool.value(innocent) == 1 << 20
        again = pool.submit(functions.hold_memory, 1 << 20, 0, memory_limit=150 << 20)
        assert pool.value(again) == 1 << 20
    assert left.pid != innocent.pid
    assert again.pid == innocent.pid, "a worker in which little is left was replaced too"


def test_the_peak_memory_is_measured_for_each_attempt() -> None:
    """The peak memory of an attempt does not include that of earlier jobs of its worker."""
    with harness(1) as pool:
        pool.warm_up(2)
        large = pool.submit(functions.hold_memory, 100 << 20, 0)
        pool.value(large)
        small = pool.submit(functions.pid)
        pool.value(small)
    assert large.pid == small.pid
    assert large.peak_rss is not None
    assert small.peak_rss is not None
    assert small.peak_rss < large.peak_rss - (50 << 20)


def test_the_memory_limit_of_a_job_that_was_taken_back_holds_for_no_other(pool: Harness) -> None:
    """A worker from which a job with a memory_limit was taken back runs the next job without that limit."""
    pool.warm_up(2)
    for pid in pool.pids:
        os.kill(pid, signal.SIGSTOP)
    taken_back = pool.submit(functions.pid, memory_limit=100 << 20)
    pool.until_running(taken_back)
    pool.ask_to_stop(taken_back, grace=0)
    assert pool.ending(taken_back) is Ending.STOPPED
    for pid in pool.pids:
        os.kill(pid, signal.SIGCONT)
    pool.until(lambda: pool.idle == 2)
    unlimited = pool.submit(functions.hold_memory, 200 << 20, 1.0)
    assert pool.value(unlimited) > 0
    assert unlimited.pid == taken_back.pid
