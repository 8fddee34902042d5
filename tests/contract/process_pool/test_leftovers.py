"""Tests that what a function leaves behind in its worker does not reach the next one."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.job.pool_names import StartMethod
from executor_adapter.pools.transport.envelope import Ending
from tests.contract.process_pool import functions, leftovers
from tests.contract.process_pool.harness import Harness, harness

REPLACED_BY = {"hard_limits", "user"}
"""What cannot be undone, also by root: the worker is replaced."""


@pytest.fixture(scope="module", params=["guardian", "spawn"])
def one_worker(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A harness with one worker, of each start method."""
    with harness(1, start_method=request.param) as made:
        made.warm_up(2)
        yield made


@pytest.fixture(scope="module")
def untouched(one_worker: Harness) -> dict[str, Any]:
    """The state of a worker that has run nothing."""
    state: dict[str, Any] = one_worker.value(one_worker.submit(leftovers.describe_state))
    return state


@pytest.mark.parametrize("name", leftovers.LEFT)
def test_a_function_leaves_nothing_to_the_next(one_worker: Harness, untouched: dict[str, Any], name: str) -> None:
    """The function after one that left something behind finds its worker as it was, or another worker."""
    one_worker.until(lambda: one_worker.idle == 2)  # From now on the worker used last is the one used next.
    pid = one_worker.value(one_worker.submit(leftovers.leave, name))
    if name == "traceback_later":
        one_worker.value(one_worker.submit(functions.nap, 0.6))
    found = one_worker.submit(leftovers.describe_state)
    state = one_worker.value(found)
    assert {key: (untouched[key], state[key]) for key in state if state[key] != untouched[key]} == {}
    assert name in REPLACED_BY or found.pid == pid
    one_worker.until(lambda: ("stdout", "from the job") in one_worker.messages_of(found, "output"))


def test_no_function_of_the_standard_library_is_replaced(one_worker: Harness) -> None:
    """What changes a process is the standard library's own in a worker."""
    assert one_worker.value(one_worker.submit(leftovers.changing_functions)) == leftovers.changing_functions()


def test_calls_of_one_function_are_compared_from_a_millisecond_on(pool: Harness) -> None:
    """A burst of short calls of one function is not compared; a long call of it finds nothing of those before."""
    pool.warm_up(2)
    calls = [pool.submit(leftovers.leave_variable, short=True) for _ in range(9)]
    assert "1" in [pool.value(each) for each in calls]
    calls = [pool.submit(leftovers.leave_variable_slowly) for _ in range(9)]
    assert {pool.value(each) for each in calls} == {None}


def test_a_timer_that_was_left_behind_harms_no_other_function(one_worker: Harness) -> None:
    """A handler that a function left behind may raise until another function follows, and never in that one."""
    for step in range(50):
        one_worker.until_ended(one_worker.submit(leftovers.leave_alarm, 1e-6 * (step + 1)))
        after = one_worker.submit(leftovers.nothing)
        assert one_worker.value(after) is None


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_what_the_initializer_did_stays(start_method: StartMethod) -> None:
    """What the initializer changed is there in each call, but the worker keeps the signals that it needs."""
    initializer = (leftovers.initialize, ())
    with harness(1, start_method=start_method, initializer=initializer) as pool:
        calls = [leftovers.describe_initialized, leftovers.leave_all, leftovers.describe_initialized]
        first, _, second = [pool.value(pool.submit(call)) for call in calls]
        stuck = pool.submit(functions.nap, 3600)
        pool.until_running(stuck)
        pool.stop(stuck, grace=3600)
    assert first == second
    assert first[:4] == ["1", 0o027, 4321, "_raise"]
    assert "_on_terminate" in first[4]
    assert first[5:7] == [[signal.SIGUSR2], 1800]
    assert first[7][1:] == ["NullHandler"]
    assert first[8] == ("ignore", ResourceWarning)


def test_what_a_module_did_when_it_was_imported_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function's module changed when it was imported is there in later calls too."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "configures.py").write_text(
        "import os, sys\nsys.setrecursionlimit(3210)\nos.environ['CONFIGURED'] = '1'\n"
        "def found():\n    return sys.getrecursionlimit(), os.environ.get('CONFIGURED')\n"
    )
    with harness(1) as pool:
        found = [pool.value(pool.submit("configures:found")) for _ in range(2)]
    assert found == [(3210, "1")] * 2


@pytest.mark.parametrize("name", ["folder", "environment", "values", "logging", "streams", "sigpipe", "mask"])
def test_short_calls_behind_one_another_find_nothing(pool: Harness, name: str) -> None:
    """Short calls that are queued behind each other in a worker find nothing of each other."""
    pool.warm_up(2)
    untouched = pool.value(pool.submit(leftovers.describe_state))
    calls = [pool.submit(leftovers.leave, name, short=True) for _ in range(9)]
    found = [pool.submit(leftovers.describe_state, short=True) for _ in range(9)]
    pool.pending = deque(call for pair in zip(calls, found, strict=True) for call in pair)
    assert [pool.value(each) for each in found] == [untouched] * 9


def test_calls_behind_one_that_cannot_be_undone_run_in_another_worker(pool: Harness) -> None:
    """A worker that cannot be restored hands back what waits in it, and nothing is lost or runs twice."""
    pool.warm_up(2)
    irrevocable = "user" if os.getuid() == 0 else "hard_limits"
    left = [pool.submit(leftovers.leave, irrevocable, short=True) for _ in range(4)]
    others = [pool.submit(functions.pid, short=True) for _ in range(8)]
    pool.until_ended(*left, *others)
    last_end = {pool.value(each): each.ended_at for each in left}
    assert all(each.ended_at <= last_end[each.pid] for each in others if each.pid in last_end)
    assert not [each for each in (*left, *others) if pool.ending(each) is not Ending.RETURNED]
