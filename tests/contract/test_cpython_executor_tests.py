"""CPython's own tests of executors, over `as_executor` on threads and on processes, each night.

All that apply are run, and pass but for those in NOT_MET. These do not apply:

- those that look inside an executor (`_threads`, `_processes`, `_call_queue`): `test_saturation`, `test_killed_child`,
  `test_idle_thread_reuse`, `test_threads_terminate`, `test_thread_names_assigned`, `test_traceback`, ...;
- those that name a class of `concurrent.futures` in a program of their own: `test_interpreter_shutdown`,
  `test_submit_after_interpreter_shutdown`, `test_hang_gh83386`, and all of test_deadlock and test_init;
- `test_cancel_futures`, which expects that `submit` itself lets the first calls begin: here all 50 may be cancelled;
- those of `Future` itself: a JobFuture is one, but only its executor makes and settles it.
"""

from __future__ import annotations

import os
import tempfile
import unittest
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from executor_adapter import JobExecutor
from executor_adapter.config import Settings
from tests.contract.cpython_suite import FileEvent, find_suite, import_suite

FOLDER = find_suite()
if FOLDER is None:
    message = "no interpreter here has CPython's tests of executors: install Debian's libpython3.x-testsuite"
    if os.environ.get("CI") == "true":
        raise RuntimeError(message)
    pytest.skip(message, allow_module_level=True)

TEMPORARY = tempfile.TemporaryDirectory()
POOLS = ("thread", "process")

# Methods of test classes, by module and class; those that call a function in the test need threads.
EVERYWHERE = {
    "executor:ExecutorTest": None,
    "test_as_completed:AsCompletedTests": None,
    "test_wait:WaitTests": None,
    "test_shutdown:ExecutorShutdownTest": (*("test_run_after_shutdown", "test_hang_issue12364", "test_hang_gh94440"),),
    "test_process_pool:ProcessPoolExecutorTest": ("test_map_chunksize",),
}
ON_THREADS = {
    "test_wait:ThreadPoolWaitTests": ("test_pending_calls_race",),
    "test_thread_pool:ThreadPoolExecutorTest": (
        *("test_map_submits_without_iteration", "test_executor_map_current_future_cancel"),
    ),
}
NOT_MET = {
    "test_max_workers_negative": "as_executor has no such argument; JobExecutor refuses the value in its own words",
    "test_map_chunksize": "map runs each call as a job of its own, and takes any chunksize",
}
SLOW = {"test_map_timeout", "test_duplicate_futures", "test_free_reference", "test_free_reference_yielded_future"}
"""They sleep for seconds, like all of WaitTests."""


class OverJobs(unittest.TestCase):
    """What the tests find beside their methods: an executor, and how to make another one."""

    worker_count = 5
    pool: Any

    def setUp(self) -> None:
        self.executor = self.executor_type(self.worker_count)

    def create_event(self) -> Any:
        return FileEvent(Path(tempfile.mkdtemp(dir=TEMPORARY.name)) / "is_set")

    def executor_type(self, max_workers: int) -> Executor:
        jobs = JobExecutor(max_workers, config=Settings())
        self.addCleanup(jobs.shutdown, timeout=0)
        return jobs.as_executor(pool=self.pool)


class Case(NamedTuple):
    """One test of CPython's, on one pool."""

    method: str
    function: Any
    pool: str

    def run(self) -> unittest.TestResult:
        kind = type("CPythonTest", (OverJobs,), {"pool": self.pool, self.method: self.function})
        result = unittest.TestResult()
        kind(self.method).run(result)
        return result


def cases() -> list[Any]:
    assert FOLDER is not None
    modules = import_suite(FOLDER, Path(tempfile.mkdtemp(dir=TEMPORARY.name)))
    found = []
    for pools, owners in ((POOLS, EVERYWHERE), (POOLS[:1], ON_THREADS)):
        for owner, names in owners.items():
            module, _, name = owner.partition(":")
            kind = getattr(modules(module), name)
            for method in names or unittest.TestLoader().getTestCaseNames(kind):
                mark = pytest.mark.chaos if method in SLOW or name == "WaitTests" else pytest.mark.nightly
                for pool in pools if hasattr(kind, method) else ():  # Older versions have fewer.
                    case = Case(method, getattr(kind, method), pool)
                    found.append(pytest.param(case, marks=mark, id=f"{method}-{pool}"))
    return found


CASES = cases()


def test_the_tests_are_found() -> None:
    """There are as many as CPython 3.13 has, less a few that older versions lack."""
    assert len(CASES) >= 48


@pytest.mark.parametrize("case", CASES)
def test_of_cpython(case: Case) -> None:
    """A test of CPython's own passes, or is one that is known to be not met."""
    result = case.run()
    failed = [text for _, text in (*result.errors, *result.failures)]
    assert result.testsRun == 1
    assert not result.skipped
    if case.method in NOT_MET:
        assert failed, f"it passes now: {NOT_MET[case.method]}"
    else:
        assert failed == []
