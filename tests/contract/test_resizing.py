"""Tests `max_workers` changed while an executor runs; the contract is the same for every pool."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from executor_adapter import JobExecutor
from tests.contract import functions
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for


def test_the_number_of_workers_grows_and_shrinks(
    make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path
) -> None:
    """A larger max_workers starts waiting jobs at once; a smaller one lets attempts finish and starts no more."""
    executor = make_executor(1)
    gates = [tmp_path / f"{number}" for number in range(4)]
    futures = [executor.submit(make_job(functions.wait_for_file, str(gate))) for gate in gates]
    wait_for(lambda: len(executor.running()) == 1)

    executor.max_workers = 3
    assert executor.max_workers == 3
    wait_for(lambda: len(executor.running()) == 3)

    executor.max_workers = 1
    for number in range(2):
        gates[number].touch()
        futures[number].result(PATIENCE)
    executor.remove_observer(print)  # Returns when the supervisor has done all that follows.
    assert [job.job_id for job in executor.running()] == [futures[2].job.job_id]

    gates[2].touch()
    wait_for(lambda: [job.job_id for job in executor.running()] == [futures[3].job.job_id])
    gates[3].touch()
    assert futures[3].result(PATIENCE) is None


def test_jobs_queued_in_workers_are_taken_back(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """After max_workers was lowered, short jobs that were queued in other workers run one at a time too."""
    executor = make_executor(3)
    futures = [executor.submit(make_job(functions.times_of_a_sleep, 0.002)) for _ in range(300)]
    futures[60].result(PATIENCE)

    executor.max_workers = 1
    runs = sorted(future.result(PATIENCE) for future in futures)

    overlaps = [following < ended for (_, ended), (following, _) in itertools.pairwise(runs)]
    assert not any(overlaps[-50:])


@pytest.mark.parametrize("number", [0, -2, 1.5, None])
def test_a_number_that_leaves_no_worker_is_refused(number: int, make_executor: MakeExecutor) -> None:
    """A max_workers below 1 is refused in words, and the old number stays."""
    executor = make_executor(2)
    with pytest.raises(ValueError, match="max_workers") as refused:
        executor.max_workers = number
    assert str(number) in str(refused.value)
    assert executor.max_workers == 2


def test_idle_workers_beyond_the_number_end(make_job: MakeJob, make_executor: MakeExecutor, pool: str) -> None:
    """After max_workers was lowered, no more idle workers stay than one executor of that size would have."""
    if pool == "coroutine":
        pytest.skip("coroutines have no workers")
    executor: JobExecutor = make_executor(4)
    for future in [executor.submit(make_job(functions.times_of_a_sleep, 0.2)) for _ in range(4)]:
        future.result(PATIENCE)
    executor.max_workers = 1
    made = supervisor_of(executor).pools.made[pool]
    wait_for(lambda: len(getattr(made, "pids", ())) <= 2 and len(getattr(made, "idle_threads", ())) <= 1)
