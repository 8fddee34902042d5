"""Tests several executors of one program, each with worker processes of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from executor_adapter import JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.job import StartMethod
from tests.contract.process_pool import functions

EXECUTORS = 4
JOBS = 500


@pytest.mark.parametrize("start_method", ["guardian", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_executors_that_are_busy_at_once_get_the_results_of_their_own_jobs(start_method: StartMethod) -> None:
    """Their threads read at the same time, and no result goes to the job of another executor, or twice to one."""
    config = Settings(executor=ExecutorSettings(start_method=start_method))

    def use(number: int) -> list[object]:
        with JobExecutor(2, config=config) as executor:
            given = [(number, job) for job in range(JOBS)]
            return [result.unwrap() for result in executor.map(functions.echo, given, pool="process")]

    with ThreadPoolExecutor(EXECUTORS) as threads:
        found = list(threads.map(use, range(EXECUTORS)))
    assert found == [[(number, job) for job in range(JOBS)] for number in range(EXECUTORS)]
