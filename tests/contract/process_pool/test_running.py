"""Tests how workers run, are replaced and closed, what they survive, and that they leave nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.pools.transport.envelope import Ending
from executor_adapter.worker.process_tree import TREE_VARIABLE
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, alive, harness, marked, open_descriptors

# --- running ---


def test_a_call_runs_in_another_process_and_returns_its_value(pool: Harness) -> None:
    """A call runs in another process, and its value, times, pid and peak memory are reported."""
    assignment = pool.submit(functions.pid)

    assert pool.value(assignment) == assignment.pid != os.getpid()
    assert assignment.started_at is not None
    assert assignment.ended_at is not None
    assert assignment.started_at <= assignment.ended_at <= time.monotonic()
    assert assignment.peak_rss is not None
    assert 1 << 20 < assignment.peak_rss < 1 << 30  # Bytes, not pages or KiB.


def test_a_coroutine_function_is_run_to_its_end(pool: Harness) -> None:
    """A coroutine function runs to its end in a worker, and its value is returned."""
    assert pool.value(pool.submit(functions.add_later, 1, 2)) == 3


def test_workers_are_kept_and_used_again(pool: Harness) -> None:
    """Workers run one job after another."""
    pids = {pool.value(pool.submit(functions.pid)) for _ in range(20)}
    assert len(pids) <= 2


def test_short_calls_are_queued_behind_one_another_and_run_once(pool: Harness) -> None:
    """Short calls queued behind one another all run exactly once."""
    assignments = [pool.submit(functions.add, number, 1, short=True) for number in range(500)]
    pool.until_ended(*assignments)
    assert [pool.value(each) for each in assignments] == list(range(1, 501))
    assert all(pool.starts[each] <= 1 for each in assignments)
    assert all(each.started_at <= each.ended_at for each in assignments if each.started_at and each.ended_at)


def test_a_function_sees_its_job(pool: Harness) -> None:
    """`current_job()` in a worker has the job's id, attempt, tool, metadata, remaining time and checkpoint."""
    assignment = pool.submit(
        functions.describe, tool_name="flights", metadata={"a": 1}, max_runtime=50.0, checkpoint=b"\x80\x05K\x07."
    )
    job_id, attempt, tool, metadata, remaining, checkpoint = pool.value(assignment)
    assert (job_id, attempt, tool, metadata) == (assignment.job.job_id, 1, "flights", {"a": 1})
    assert 40 < remaining <= 50
    assert checkpoint == 7


def test_the_scope_is_entered_around_the_function(pool: Harness, tmp_path: Path) -> None:
    """The scope of an assignment is entered before the function and left after it."""
    path = str(tmp_path / "note")
    assignment = pool.submit(functions.read, path, scope=("tests.contract.process_pool.functions:noting", path))
    assert pool.value(assignment) == f"entered for {assignment.job.job_id}"
    assert Path(path).read_text() == "left"


def test_a_worker_has_its_own_session_no_input_and_little_loaded(pool: Harness) -> None:
    """A worker has a session of its own and empty stdin, and has not imported heavy packages."""
    seen = pool.value(pool.submit(functions.environment_of_worker))
    assert seen["session"] == seen["pid"]
    assert seen["stdin"] == ""
    assert not {"prefect", "pydantic", "pandas", "numpy", "cloudpickle"} & set(seen["modules"])


def test_a_changed_sys_path_reaches_running_workers(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of the host's sys.path reaches workers that are running already."""
    pool.value(pool.submit(functions.pid))
    (tmp_path / "made_for_this_test.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pool.value(pool.submit("made_for_this_test:answer")) == 42
    sys.modules.pop("made_for_this_test", None)


def test_a_changed_directory_reaches_running_workers_where_the_path_names_it(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The empty entry of sys.path is the host's directory, also after it was changed or renamed, or cannot be read."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    pool.value(pool.submit(functions.pid))
    (tmp_path / "made_for_this_place.py").write_text("def answer():\n    return 43\n")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(tmp_path)
    assert pool.value(pool.submit("made_for_this_place:answer")) == 43
    with subprocess.Popen(["sleep", "infinity"]) as ended:
        monkeypatch.chdir(f"/proc/{ended.pid}")
        ended.kill()
    with pytest.raises(ProcessLookupError):
        os.stat(".")
    assert pool.value(pool.submit(functions.pid)) != os.getpid()
    monkeypatch.chdir(gone)
    renamed = gone.rename(tmp_path / "renamed")
    (renamed / "made_for_another_place.py").write_text("def answer():\n    return 44\n")
    assert pool.value(pool.submit("made_for_another_place:answer")) == 44
    for name in ("made_for_this_place", "made_for_another_place"):
        sys.modules.pop(name, None)


def test_a_function_is_found_by_its_reference_in_the_main_module(
    pool: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has another main module, so the function itself is sent."""
    monkeypatch.setattr(sys.modules["__main__"], "made_for_this_test", functions.pid, raising=False)
    assert pool.value(pool.submit("__main__:made_for_this_test")) != os.getpid()


def test_settings_reach_every_worker() -> None:
    """Preload, initializer, nice and CPU affinity apply to each worker."""
    options: dict[str, Any] = {
        "preload": ("numpy", "no_such_module"),
        "initializer": (functions.remember, ("kept",)),
        "nice": 3,
        "cpu_affinity": (0,),
    }
    with harness(2, **options) as pool:
        first, second = pool.submit(functions.environment_of_worker), pool.submit(functions.environment_of_worker)
        seen = [pool.value(first), pool.value(second)]
        assert pool.value(pool.submit(functions.remembered)) == "kept"
    assert all((each["nice"], each["cpus"]) == (3, {0}) for each in seen)
    assert "numpy" in seen[0]["modules"]
    assert seen[0]["pid"] == seen[1]["pid"] or seen[0]["random"] != seen[1]["random"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", (True, gc.get_threshold()[0])),
        ("gc.disable()", (False, gc.get_threshold()[0])),
        ("gc.set_threshold(5000)", (True, 5000)),
    ],
)
def test_a_preloaded_module_decides_on_the_garbage_collector(
    code: str, expected: tuple[bool, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have it as the module has left it, and without a module that touches it as any process."""
    (tmp_path / "tunes_gc.py").write_text(f"import gc\n{code}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with harness(1, preload=("tunes_gc",)) as pool:
        assert pool.value(pool.submit(lambda: (gc.isenabled(), gc.get_threshold()[0]))) == expected


def test_a_preload_that_fails_with_an_odd_text_fails_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The text may hold a lone surrogate, as names of files do, and be cut off within a character: it is logged."""
    (tmp_path / "odd_text.py").write_text("raise OSError('\\udc80' + 5000 * 'é')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with harness(1, preload=("odd_text",)) as pool:
        assert pool.value(pool.submit(functions.add, 1, 2)) == 3
    assert any("cannot preload odd_text" in message and "\\udc80é" in message for message in caplog.messages)


# --- replacement ---


def test_a_worker_is_replaced_after_its_number_of_jobs() -> None:
    """No worker runs more than max_jobs_per_worker jobs."""
    with harness(1, max_jobs_per_worker=3) as pool:
        pids = [pool.value(pool.submit(functions.pid, short=True)) for _ in range(12)]
    assert all(pids.count(pid) <= 3 for pid in pids)


def test_a_worker_that_has_grown_is_replaced() -> None:
    """A worker that has grown by more than max_rss_growth is replaced."""
    with harness(1, max_rss_growth=50 << 20) as pool:
        grow = pool.submit(lambda: globals().setdefault("kept", bytearray(b"x") * (80 << 20)) and None)
        pool.value(grow)
        assert pool.value(pool.submit(functions.pid)) != grow.pid


# --- functions that harm their worker ---


@pytest.mark.parametrize(
    "function", [functions.write_garbage, functions.close_low_descriptors, functions.close_streams]
)
def test_a_worker_survives(function: Callable[[], str]) -> None:
    """A worker stays usable after a function that writes garbage or closes its descriptors or streams."""
    with harness(1) as pool:
        pool.warm_up(2)
        first = pool.submit(function)
        pool.value(first)
        after = pool.submit(print, "heard")
        pool.value(after)
        assert after.pid == first.pid
        assert ("stdout", "heard") in pool.messages_of(after, "output")


def test_a_function_that_closes_everything_harms_itself_alone(pool: Harness) -> None:
    """A function that closes the worker's socket crashes its own job only."""
    assignment = pool.submit(functions.close_all_descriptors)
    assert pool.ending(assignment) is Ending.CRASHED
    assert "closed its socket" in str(pool.error(assignment))
    assert pool.value(pool.submit(functions.add, 1, 1)) == 2


def test_a_worker_restores_its_signal_handlers(tmp_path: Path) -> None:
    """A worker can be asked to end after a function that replaced its signal handlers."""
    with harness(1) as pool:
        pool.warm_up(2)
        first = pool.submit(functions.replace_handlers)
        pool.value(first)
        second = pool.submit(functions.nap, 3600, str(tmp_path / "pid"))
        pool.until((tmp_path / "pid").exists)
        pool.stop(second, grace=3600)
        assert first.pid == second.pid


def test_a_forked_process_that_returns_is_no_second_worker(pool: Harness) -> None:
    """A process that a function forked, and that returns, does not become a second worker."""
    assert pool.value(pool.submit(functions.fork_and_return)) > 0
    assert [pool.value(pool.submit(functions.add, n, 1)) for n in range(5)] == [1, 2, 3, 4, 5]


# --- closing ---


def test_closing_leaves_no_process_and_no_descriptor() -> None:
    """A closed pool leaves no process and no open file descriptor."""
    before = open_descriptors()
    for _ in range(3):
        with harness(3) as pool:
            assignments = [pool.submit(functions.nap, 0.01) for _ in range(6)]
            crashed = pool.submit(functions.crash)
            pool.until_ended(crashed, *assignments)
            pids = pool.pids
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
    """A pool that is closed while its workers start leaves none."""
    pool = Harness(2)
    pool.submit(functions.pid)
    pool.turn(0)
    pool.close()
    assert pool.pids == []


def test_a_worker_that_does_not_exit_is_killed() -> None:
    """A worker that is held up by an exit handler is killed when the pool closes."""
    with harness(1) as pool:
        assignment = pool.submit(lambda: __import__("atexit").register(__import__("time").sleep, 30) and None)
        pool.value(assignment)
        assert assignment.pid is not None
    assert not alive(assignment.pid)


def test_a_pool_that_was_never_used_closes() -> None:
    """A pool that never ran a job can be closed."""
    pool = Harness(2)
    pool.close()
