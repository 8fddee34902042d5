"""The process pool alone, under a supervisor of the test's own: what it must survive, and what it must not leave."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.context import current_job
from executor_adapter.exceptions import (
    InvalidJobError,
    JobError,
    JobSerializationError,
    MemoryLimitError,
    SoftTimeoutError,
    WorkerCrashedError,
)
from executor_adapter.pools.base import Assignment, Ending
from executor_adapter.pools.process_tree import TREE_VARIABLE
from tests.contract import process_functions as functions
from tests.contract.process_harness import Harness, alive, harness, marked, open_descriptors, wait_for


@pytest.fixture
def pool() -> Iterator[Harness]:
    with harness() as made:
        yield made


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# --- running ---


def test_a_call_runs_in_another_process_and_its_value_comes_back(pool: Harness) -> None:
    assignment = pool.give(functions.pid)

    assert pool.value(assignment) == assignment.pid != os.getpid()
    assert assignment.started_at is not None
    assert assignment.ended_at is not None
    assert assignment.started_at <= assignment.ended_at <= time.monotonic()
    assert assignment.peak_rss is not None
    assert 1 << 20 < assignment.peak_rss < 1 << 30


def test_a_coroutine_function_is_run_to_its_end(pool: Harness) -> None:
    assert pool.value(pool.give(functions.add_later, 1, 2)) == 3


def test_workers_are_kept_and_used_again(pool: Harness) -> None:
    pids = {pool.value(pool.give(functions.pid)) for _ in range(20)}
    assert len(pids) <= 2


def test_short_calls_are_laid_behind_one_another_and_all_run_once(pool: Harness) -> None:
    assignments = [pool.give(functions.add, number, 1, short=True) for number in range(500)]
    pool.until_ended(*assignments)
    assert [pool.value(each) for each in assignments] == list(range(1, 501))
    assert all(pool.starts[each] == 1 for each in assignments)


def test_a_function_sees_its_job(pool: Harness) -> None:
    assignment = pool.give(
        functions.describe, tool_name="flights", metadata={"a": 1}, max_runtime=50.0, checkpoint=b"\x80\x05K\x07."
    )
    job_id, attempt, tool, metadata, remaining, checkpoint = pool.value(assignment)
    assert (job_id, attempt, tool, metadata) == (assignment.job.job_id, 1, "flights", {"a": 1})
    assert 40 < remaining <= 50
    assert checkpoint == 7


def test_the_scope_is_entered_around_the_function(pool: Harness, tmp_path: Path) -> None:
    path = str(tmp_path / "note")
    assignment = pool.give(functions.read, path, scope=("tests.contract.process_functions:noting", path))
    assert pool.value(assignment) == f"entered for {assignment.job.job_id}"
    assert Path(path).read_text() == "left"


def test_a_worker_has_its_own_session_no_input_and_little_loaded(pool: Harness) -> None:
    seen = pool.value(pool.give(functions.environment_of_worker))
    assert seen["session"] == seen["pid"]
    assert seen["stdin"] == ""
    assert not {"prefect", "pydantic", "pandas", "numpy", "cloudpickle"} & set(seen["modules"])


def test_the_host_s_path_reaches_workers_that_are_up(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.value(pool.give(functions.pid))
    (tmp_path / "made_for_this_test.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pool.value(pool.give("made_for_this_test:answer")) == 42
    sys.modules.pop("made_for_this_test")


def test_settings_reach_every_worker() -> None:
    options: dict[str, Any] = {
        "preload": ("numpy", "no_such_module"),
        "initializer": (functions.remember, ("kept",)),
        "nice": 3,
        "cpu_affinity": (0,),
    }
    with harness(2, **options) as pool:
        first, second = pool.give(functions.environment_of_worker), pool.give(functions.environment_of_worker)
        seen = [pool.value(first), pool.value(second)]
        assert pool.value(pool.give(functions.remembered)) == "kept"
    assert all((each["nice"], each["cpus"]) == (3, {0}) for each in seen)
    assert "numpy" in seen[0]["modules"]
    assert seen[0]["pid"] == seen[1]["pid"] or seen[0]["random"] != seen[1]["random"]


# --- what travels ---


def make_closure(base: int) -> Callable[[int], int]:
    return lambda value: base + value


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, value: int) -> int:
        return self.base + value

    def __call__(self, value: int) -> int:
        return self.base + value


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda value: value + 1, id="lambda"),
        pytest.param(make_closure(1), id="closure"),
        pytest.param(functools.partial(functions.add, 1), id="partial"),
        pytest.param(functools.partial(make_closure(0), 3), id="partial of a closure"),
        pytest.param(Adder(1).add, id="bound method"),
        pytest.param(Adder(1), id="callable object"),
        pytest.param((1).__add__, id="method of a builtin"),
    ],
)
def test_any_callable_travels(pool: Harness, function: Any) -> None:
    args = () if isinstance(function, functools.partial) and function.args == (3,) else (2,)
    assert pool.value(pool.give(function, *args)) == 3


def test_a_reference_travels(pool: Harness) -> None:
    assert pool.value(pool.give("operator:add", 1, 2)) == 3


@pytest.mark.parametrize("reference", ["no_such_module:f", "operator:no_such_function", "sys:path"])
def test_a_reference_that_leads_nowhere_is_refused(pool: Harness, reference: str) -> None:
    with pytest.raises(InvalidJobError, match=reference):
        pool.give(reference)


@pytest.mark.parametrize("name", ["__prefect_loader_123__", "flow_of_a_file", "os.path.of_nobody"])
def test_a_module_that_a_child_would_not_find_travels_by_value(
    pool: Harness, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its functions call one another, and its classes are the same ones when they come back."""
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    source = (
        "import dataclasses\n"
        "FACTOR = 3\n"
        "@dataclasses.dataclass\n"
        "class Row:\n    value: int\n"
        "def times(row):\n    return Row(row.value * FACTOR)\n"
        "def main(row):\n    return times(row)\n"
    )
    exec(source, vars(module))
    result = pool.value(pool.give(module.main, module.Row(2)))
    assert type(result) is module.Row
    assert result.value == 6
    module.FACTOR = 5
    assert pool.value(pool.give(module.main, module.Row(2))).value == 10


def test_a_module_hidden_by_another_file_travels_by_value(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was loaded under its stem, where the path leads to another file of that name."""
    (tmp_path / "hidden_flow.py").write_text("def answer():\n    return 'the other'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = type(sys)("hidden_flow")
    module.__file__ = str(tmp_path / "elsewhere" / "hidden_flow.py")
    monkeypatch.setitem(sys.modules, "hidden_flow", module)
    exec("def answer():\n    return 'this one'\n", vars(module))
    assert pool.value(pool.give(module.answer)) == "this one"


def test_main_travels_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses\n"
        "from tests.contract.process_harness import harness\n"
        "@dataclasses.dataclass\n"
        "class Row:\n    value: int\n"
        "def helper(row): return Row(row.value + 1)\n"
        "def main(row): return helper(row)\n"
        "if __name__ == '__main__':\n"
        "    with harness() as pool:\n"
        "        result = pool.value(pool.give(main, Row(1)))\n"
        "        assert type(result) is Row\n"
        "        print(result)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert (done.stdout, done.stderr) == ("Row(value=2)\n", "")


def test_an_argument_that_cannot_travel_is_refused_by_name(pool: Harness) -> None:
    with pytest.raises(JobSerializationError, match=r"argument 2 \(a lock\).*pass something that describes it"):
        pool.give(functions.accept, 1, threading.Lock())
    with pytest.raises(JobSerializationError, match="argument 'handle'"):
        pool.give(functions.accept, kwargs={"handle": threading.Lock()})


def test_a_function_that_cannot_travel_is_refused(pool: Harness) -> None:
    lock = threading.Lock()
    with pytest.raises(JobSerializationError, match="leave out what it captures"):
        pool.give(lambda: lock)


def test_large_values_travel_both_ways_and_are_freed(pool: Harness) -> None:
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    pool.value(pool.give(functions.pid))
    before = open_descriptors()
    table = pandas.DataFrame({"a": numpy.arange(500_000), "b": numpy.random.random(500_000)})
    back = pool.value(pool.give(functions.echo, table))
    pandas.testing.assert_frame_equal(back, table)
    assert pool.value(pool.give(functions.large_bytes, 3 << 20)) == bytes(3 << 20)
    assert pool.value(pool.give(functions.echo, [b"x" * (1 << 20)] * 3)) == [b"x" * (1 << 20)] * 3
    changed = pool.value(pool.give(functions.overwrite, numpy.zeros(300_000)))
    changed += 1
    assert changed.sum() == 600_000
    del back, changed
    pool.endings.clear()
    pool.starts.clear()
    assert open_descriptors() == before


def test_an_argument_is_the_same_in_every_attempt(pool: Harness) -> None:
    """What a function does to a large argument is its own affair."""
    numpy = pytest.importorskip("numpy")
    first = pool.give(functions.overwrite, numpy.zeros(300_000))
    assert pool.value(first).sum() == 300_000
    again = Assignment(first.job, 2, first.payload)
    pool.pending.append(again)
    assert pool.value(again).sum() == 300_000


# --- exceptions ---


def test_an_exception_arrives_with_its_traceback(pool: Harness) -> None:
    assignment = pool.give(functions.fail)
    error = pool.error(assignment)
    assert pool.ending(assignment) is Ending.RAISED
    assert type(error) is LookupError
    assert "process_functions.py" in str(error.__cause__)
    assert "attempt.py" not in str(error.__cause__)


def test_an_exception_that_cannot_travel_is_told_with_its_code(pool: Harness) -> None:
    error = pool.error(pool.give(functions.raise_cannot_load))
    assert type(error) is JobError
    assert str(error) == "CannotLoad: hold on"
    assert error.error_code == "RATE_LIMITED"


def test_sys_exit_is_the_job_s_error_and_the_worker_lives_on() -> None:
    with harness(1) as pool:
        first = pool.give(functions.exit_in_python)
        assert str(pool.error(first)) == "the function called sys.exit(5)"
        assert pool.ending(first) is Ending.RAISED
        assert pool.value(pool.give(functions.pid)) == first.pid


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


def test_those_behind_a_crash_are_handed_back_without_an_attempt() -> None:
    with harness(1) as pool:
        pool.value(pool.give(functions.pid))
        crashing = pool.give(functions.mark, "/dev/null", 0.3, short=True)
        behind = [pool.give(functions.add, number, 1, short=True) for number in range(5)]
        pool.until(lambda: not pool.pending)
        os.kill(pool.pool.pids[0], 0)
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
    after = pool.give(functions.add, 1, 1)

    assert pool.ending(begun) is Ending.CRASHED
    assert not alive(begun.pid)
    assert not alive(int(path.read_text()))
    assert pool.value(after) == 2


def test_a_guardian_that_is_stopped_is_replaced(pool: Harness) -> None:
    begun = pool.give(functions.nap, 30)
    pool.until(lambda: begun.pid)
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
        "from tests.contract import process_functions as functions\n"
        "from tests.contract.process_harness import Harness\n"
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


# --- stopping ---


def stop_and_time(pool: Harness, assignment: Assignment, grace: float) -> float:
    asked = time.monotonic()
    pool.pool.stop(assignment, grace=grace)
    assert pool.ending(assignment) is Ending.STOPPED
    return time.monotonic() - asked


def test_a_call_that_holds_the_gil_is_stopped_at_once(pool: Harness) -> None:
    assignment = pool.give(functions.hold_gil, 60)
    pool.until_running(assignment)
    assert stop_and_time(pool, assignment, 0) < 1.0
    assert assignment.pid is None or not alive(assignment.pid)


def test_a_function_is_asked_to_end_and_cleans_up(pool: Harness, tmp_path: Path) -> None:
    path = tmp_path / "note"
    assignment = pool.give(functions.clean_up_at_end, str(path))
    pool.until(lambda: text_of(path) == "begun")
    assert stop_and_time(pool, assignment, 10) < 5.0
    assert path.read_text() == "cleaned"


def test_a_function_that_looks_at_the_flag_ends_by_itself(pool: Harness, tmp_path: Path) -> None:
    path = tmp_path / "note"
    assignment = pool.give(functions.watch_flag, str(path))
    pool.until(lambda: text_of(path) == "begun")
    assert stop_and_time(pool, assignment, 10) < 5.0
    assert path.read_text() == "saw it"


def test_functions_that_ignore_sigterm_are_killed_side_by_side(tmp_path: Path) -> None:
    with harness(3) as pool:
        paths = [tmp_path / str(number) for number in range(3)]
        assignments = [pool.give(functions.ignore_sigterm, str(path), 30) for path in paths]
        pool.until(lambda: all(text_of(path) for path in paths))
        asked = time.monotonic()
        for assignment in assignments:
            pool.pool.stop(assignment, grace=0.3)
        pool.until_ended(*assignments)
        took = time.monotonic() - asked
    print(f"killed {took - 0.3:.4f} s after their grace")
    assert 0.3 <= took < 1.3
    assert not any(alive(int(path.read_text())) for path in paths)


def test_the_shorter_grace_counts(pool: Harness, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assignment = pool.give(functions.ignore_sigterm, str(path), 30)
    pool.until(lambda: text_of(path))
    pool.pool.stop(assignment, grace=20)
    assert stop_and_time(pool, assignment, 0.05) < 2.0


def test_a_stopped_worker_is_killed(pool: Harness, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assignment = pool.give(functions.stop_self, str(path))
    pool.until(lambda: text_of(path))
    assert stop_and_time(pool, assignment, 0.05) < 2.0
    assert not alive(int(path.read_text()))


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_a_descendant_in_a_session_of_its_own_goes_too(pool: Harness, tmp_path: Path, grace: float) -> None:
    path = tmp_path / "pid"
    assignment = pool.give(functions.leave_daemon, str(path))
    pool.until(path.exists)
    assert stop_and_time(pool, assignment, grace) < 3.0
    assert not alive(int(path.read_text()))


def test_a_descendant_goes_when_its_worker_crashes(pool: Harness, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assignment = pool.give(functions.leave_daemon, str(path), functions.crash)
    assert pool.ending(assignment) is Ending.CRASHED
    assert not alive(int(path.read_text()))


def test_what_has_not_begun_is_stopped_without_harm(pool: Harness) -> None:
    with harness(1) as pool:
        pool.value(pool.give(functions.pid))
        running = pool.give(functions.nap, 0.2, short=True)
        behind = [pool.give(functions.add, number, 1, short=True) for number in range(4)]
        pool.until(lambda: not pool.pending)
        pool.pool.stop(behind[1], grace=0)
        assert pool.endings[behind[1]][0] is Ending.STOPPED
        pool.until_ended(running, *behind)
        assert pool.ending(running) is Ending.RETURNED
        assert [pool.value(behind[index]) for index in (0, 2, 3)] == [1, 3, 4]
        assert pool.hand_backs == [behind[2], behind[3]]


def test_stopping_one_hands_back_those_behind(pool: Harness) -> None:
    with harness(1) as pool:
        pool.value(pool.give(functions.pid))
        running = pool.give(functions.nap, 30, short=True)
        behind = [pool.give(functions.add, number, 1, short=True) for number in range(4)]
        pool.until(lambda: not pool.pending)
        pool.until(lambda: pool.pool.pids)
        time.sleep(0.05)  # until it has taken its ticket: nothing that the host sees tells
        pool.pool.stop(running, grace=0)
        assert pool.hand_backs == behind
        pool.until_ended(running, *behind)
        assert pool.ending(running) is Ending.STOPPED
        assert [pool.value(each) for each in behind] == [1, 2, 3, 4]


def test_recall_takes_back_what_has_not_begun() -> None:
    with harness(1) as pool:
        pool.value(pool.give(functions.pid))
        running = pool.give(functions.hold_gil, 1, short=True)
        behind = [pool.give(functions.pid, short=True) for _ in range(3)]
        pool.until(lambda: not pool.pending)
        time.sleep(0.05)
        assert not pool.pool.recall(running)
        assert pool.pool.recall(behind[1])
        assert pool.hand_backs == behind[1:]
        assert not pool.pool.recall(behind[1])
        pool.until_ended(running, *behind)
        assert all(pool.ending(each) is Ending.RETURNED for each in (running, *behind))


def test_stop_and_recall_of_what_was_never_sent(pool: Harness) -> None:
    stopped, recalled = pool.give(functions.pid), pool.give(functions.pid)
    pool.pending.clear()
    pool.pool.start(stopped)
    pool.pool.start(recalled)
    pool.pool.stop(stopped, grace=5)
    assert pool.endings[stopped][0] is Ending.STOPPED
    assert pool.pool.recall(recalled)
    assert pool.hand_backs == [recalled]
    assert pool.pool.busy == 0
    assert pool.value(recalled) > 0


def test_stopping_what_is_over_is_harmless(pool: Harness) -> None:
    assignment = pool.give(functions.pid)
    pool.value(assignment)
    pool.pool.stop(assignment, grace=0)
    pool.pool.interrupt(assignment)
    assert not pool.pool.recall(assignment)
    assert pool.value(pool.give(functions.add, 1, 1)) == 2


def test_capacity_is_back_at_once_after_a_kill(pool: Harness) -> None:
    first = pool.give(functions.nap, 30)
    pool.until_running(first)
    pool.until(lambda: len(pool.pool.pids) == 2)
    stop_and_time(pool, first, 0)
    asked = time.monotonic()
    assert pool.value(pool.give(functions.add, 1, 1)) == 2
    took = time.monotonic() - asked
    print(f"next job ended {took:.4f} s after the kill")
    assert took < 1.0


# --- soft timeout ---


def test_interrupt_raises_in_the_function_and_logs_where(pool: Harness) -> None:
    assignment = pool.give(functions.catch_soft_timeout)
    pool.until_running(assignment)
    time.sleep(0.05)
    pool.pool.interrupt(assignment)
    assert pool.value(assignment) == "SoftTimeoutError"
    (record,) = pool.said_by(assignment, "log")
    assert "in catch_soft_timeout" in record["message"]


def test_a_soft_timeout_that_is_not_caught_is_the_error(pool: Harness) -> None:
    assignment = pool.give(functions.nap, 30)
    pool.until_running(assignment)
    time.sleep(0.05)
    pool.pool.interrupt(assignment)
    assert isinstance(pool.error(assignment), SoftTimeoutError)
    assert pool.value(pool.give(functions.add, 1, 1)) == 2


# --- memory ---


def test_a_tree_that_outgrows_its_limit_is_killed(pool: Harness) -> None:
    assignment = pool.give(functions.hold_memory, 200 << 20, 30, memory_limit=100 << 20)
    error = pool.error(assignment)
    assert pool.ending(assignment) is Ending.CRASHED
    assert isinstance(error, MemoryLimitError)
    assert error.exit_signal == signal.SIGKILL
    assert assignment.peak_rss is not None
    assert assignment.peak_rss > 100 << 20


def test_one_within_its_limit_is_left_alone_and_measured(pool: Harness) -> None:
    assignment = pool.give(functions.hold_memory, 64 << 20, 0.2, memory_limit=400 << 20)
    assert pool.value(assignment) == 64 << 20
    assert assignment.peak_rss is not None
    assert 64 << 20 < assignment.peak_rss < 400 << 20


def test_the_peak_is_each_attempt_s_own() -> None:
    with harness(1) as pool:
        large = pool.give(functions.hold_memory, 100 << 20, 0)
        pool.value(large)
        small = pool.give(functions.pid)
        pool.value(small)
    assert large.pid == small.pid
    assert large.peak_rss is not None
    assert small.peak_rss is not None
    assert small.peak_rss < large.peak_rss - (50 << 20)


# --- recycling ---


def test_a_worker_is_replaced_after_its_number_of_jobs() -> None:
    with harness(1, max_jobs_per_worker=3) as pool:
        pids = [pool.value(pool.give(functions.pid, short=True)) for _ in range(12)]
    assert all(pids.count(pid) <= 3 for pid in pids)


def test_a_worker_that_has_grown_is_replaced() -> None:
    with harness(1, max_rss_growth=50 << 20) as pool:
        grow = pool.give(lambda: globals().setdefault("kept", bytearray(b"x") * (80 << 20)) and None)
        pool.value(grow)
        assert pool.value(pool.give(functions.pid)) != grow.pid


# --- what functions say ---


def test_all_that_a_function_says_is_told_and_is_its_own(pool: Harness) -> None:
    speakers = {name: pool.give(functions.speak, name) for name in ("one", "two")}
    pool.until_ended(*speakers.values())
    for name, assignment in speakers.items():
        output = pool.said_by(assignment, "output")
        assert sorted(output) == [
            ("stderr", "raw to 2"),
            ("stdout", "from a child"),
            ("stdout", f"no end {name}"),
            ("stdout", f"printed {name}"),
            ("stdout", "raw to 1"),
        ]
        (record,) = pool.said_by(assignment, "log")
        assert (record["name"], record["level"], record["message"]) == ("collector", 20, f"logged {name}")
        assert record["page"] == 3
        assert record["thing"].startswith("<object")


def test_output_is_told_before_the_result_and_to_the_right_job() -> None:
    with harness(1) as pool:
        assignments = [pool.give(print, number, short=True) for number in range(200)]
        pool.until_ended(*assignments)
        assert [pool.said_by(each, "output") for each in assignments] == [[("stdout", str(n))] for n in range(200)]


def test_progress_is_thinned_but_its_last_word_is_told(pool: Harness) -> None:
    assignment = pool.give(functions.report_progress, 10_000)
    pool.value(assignment)
    told = pool.said_by(assignment, "progress")
    assert told[0] == (1, 10_000, "page 1")
    assert told[-1] == (10_000, 10_000, "page 10000")
    assert len(told) < 1_000


def test_checkpoints_and_events_are_told(pool: Harness) -> None:
    saved, sent = pool.give(functions.save_checkpoint, [1, 2]), pool.give(functions.send_event, "rows", {"n": 3})
    pool.until_ended(saved, sent)
    (checkpoint,) = pool.said_by(saved, "checkpoint")
    assert pool.said_by(sent, "event") == [("rows", {"n": 3})]
    assert pool.value(pool.give(lambda: current_job().checkpoint_value, checkpoint=checkpoint)) == [1, 2]


def test_a_flood_of_lines_is_cut_and_the_rest_counted(pool: Harness) -> None:
    assignment = pool.give(functions.shout, 40_000)
    pool.value(assignment)
    told = len(pool.said_by(assignment, "output"))
    (record,) = pool.said_by(assignment, "log")
    assert 10_000 <= told < 40_000
    assert record["message"].startswith(f"{40_000 - told} lines of output and log were left out")


def test_a_thousand_lines_a_second_are_all_told(pool: Harness) -> None:
    assignment = pool.give(functions.shout, 5_000)
    pool.value(assignment)
    assert len(pool.said_by(assignment, "output")) == 5_000
    assert not pool.said_by(assignment, "log")


# --- what functions do to their worker ---


@pytest.mark.parametrize(
    "function", [functions.write_garbage, functions.close_low_descriptors, functions.close_streams]
)
def test_a_worker_survives(function: Callable[[], str]) -> None:
    with harness(1) as pool:
        first = pool.give(function)
        pool.value(first)
        after = pool.give(print, "heard")
        pool.value(after)
        assert after.pid == first.pid
        assert ("stdout", "heard") in pool.said_by(after, "output")


def test_a_function_that_closes_everything_harms_itself_alone(pool: Harness) -> None:
    assignment = pool.give(functions.close_all_descriptors)
    assert pool.ending(assignment) is Ending.CRASHED
    assert "closed its socket" in str(pool.error(assignment))
    assert pool.value(pool.give(functions.add, 1, 1)) == 2


def test_a_worker_takes_its_signals_back() -> None:
    with harness(1) as pool:
        first = pool.give(functions.replace_handlers)
        pool.value(first)
        second = pool.give(functions.nap, 30)
        pool.until_running(second)
        time.sleep(0.05)
        assert stop_and_time(pool, second, 10) < 5.0
        assert first.pid == second.pid


def test_a_forked_process_that_returns_is_no_second_worker(pool: Harness) -> None:
    assert pool.value(pool.give(functions.fork_and_return)) > 0
    assert [pool.value(pool.give(functions.add, n, 1)) for n in range(5)] == [1, 2, 3, 4, 5]


# --- closing ---


def test_closing_leaves_no_process_and_no_descriptor() -> None:
    before = open_descriptors()
    for _ in range(3):
        with harness(3) as pool:
            assignments = [pool.give(functions.nap, 0.01) for _ in range(6)]
            crashed = pool.give(functions.crash)
            pool.until_ended(crashed, *assignments)
            pids = pool.pool.pids
            token = next(
                part
                for part in Path(f"/proc/{pids[0]}/environ").read_text().split("\0")
                if part.startswith(TREE_VARIABLE)
            )
        assert not any(map(alive, pids))
        assert not marked(token)
    del assignments, crashed, pool
    assert open_descriptors() == before


def test_closing_while_workers_start() -> None:
    pool = Harness(2)
    pool.give(functions.pid)
    pool.turn(0)
    pool.close()
    assert pool.pool.pids == []


def test_a_worker_that_will_not_leave_is_killed() -> None:
    """A thread that the function left is no reason to stay."""
    with harness(1) as pool:
        assignment = pool.give(lambda: __import__("atexit").register(__import__("time").sleep, 30) and None)
        pool.value(assignment)
        assert assignment.pid is not None
    assert not alive(assignment.pid)


def test_a_pool_that_was_never_used_closes() -> None:
    pool = Harness(2)
    pool.close()
