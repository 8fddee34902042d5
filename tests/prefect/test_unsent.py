"""What a mirror still has to tell: in which order, and what of it is left out."""

from __future__ import annotations

from uuid import uuid4

import pytest

from executor_adapter import Job, JobStatus
from executor_adapter.prefect.mirror.job_history import JobHistory, Step
from executor_adapter.prefect.mirror.state_events import FlowRunFacts
from executor_adapter.prefect.mirror.unsent import (
    A_MOMENT,
    FEW,
    MOST_UNSENT,
    MOST_UNSENT_IN_A_HURRY,
    History,
    UnsentChanges,
)
from executor_adapter.testing import FakeClock

FLOW = FlowRunFacts()


def history() -> JobHistory:
    return JobHistory(Job(function=dict), str(uuid4()))


def step(status: JobStatus, at: float = 1_000_000.0) -> Step:
    return Step(status, at, 0 if status is JobStatus.PENDING else 1, None, None)


def fill(unsent: UnsentChanges, jobs: int, *, over: bool = True) -> None:
    for _ in range(jobs):
        job = history()
        for status in (JobStatus.PENDING, JobStatus.RUNNING, *([JobStatus.COMPLETED] if over else [])):
            unsent.append(job, step(status))


def names(unsent: UnsentChanges) -> list[str]:
    return [event.name for event in unsent.next_events(1_000_000, FLOW)]


@pytest.mark.parametrize(("mode", "told"), [("auto", 3), ("full", 3), ("final", 1)])
def test_a_mirror_that_keeps_up_tells_all(mode: History, told: int) -> None:
    unsent = UnsentChanges(mode)
    fill(unsent, 10)
    assert len(names(unsent)) == 10 * told
    assert unsent.omitted == 10 * (3 - told)
    assert not unsent


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_one_that_is_far_behind_leaves_out_what_is_passed(mode: History) -> None:
    """Until it has caught up; with "full" it never does. How a job ended is never left out."""
    jobs = 2 * MOST_UNSENT
    unsent = UnsentChanges(mode)
    fill(unsent, jobs)
    told = names(unsent)
    assert told.count("Completed") == jobs
    assert len(told) + unsent.omitted == 3 * jobs
    assert (unsent.omitted > jobs) is (mode == "auto")


def test_what_is_not_over_is_never_left_out() -> None:
    clock = FakeClock()
    unsent = UnsentChanges("final", clock=clock)
    fill(unsent, MOST_UNSENT, over=False)
    unsent.take_in()
    clock.advance(A_MOMENT)
    assert (len(names(unsent)), unsent.omitted) == (2 * MOST_UNSENT, 0)


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_what_may_be_passed_within_a_moment_is_told_after_what_cannot(mode: History) -> None:
    """So many short jobs are told of as a whole; and no job waits for long, however many others end meanwhile."""
    clock = FakeClock()
    unsent = UnsentChanges(mode, clock=clock)
    fill(unsent, FEW, over=False)
    fill(unsent, 2)
    whole = ["Pending", "Running", "Completed"]
    assert names(unsent) == 2 * whole
    assert unsent
    clock.advance(A_MOMENT)
    fill(unsent, 2)
    told = names(unsent)
    assert told[: 2 * FEW] == FEW * ["Pending", "Running"]
    assert told[2 * FEW :] == 2 * whole
    assert not unsent


def test_of_few_each_change_is_told_at_once() -> None:
    unsent = UnsentChanges("auto", clock=FakeClock())
    fill(unsent, FEW // 2, over=False)
    assert names(unsent) == FEW // 2 * ["Pending", "Running"]


def test_one_that_was_told_of_early_is_told_of_once() -> None:
    """It ended while others, which had been there before, were held back."""
    clock = FakeClock()
    unsent, slow = UnsentChanges("full", clock=clock), [history() for _ in range(2 * FEW)]
    for job in slow:
        unsent.append(job, step(JobStatus.PENDING))
    unsent.append(slow[-1], step(JobStatus.COMPLETED))
    assert names(unsent) == ["Pending", "Completed"]
    unsent.append(slow[0], step(JobStatus.COMPLETED))
    assert names(unsent) == ["Pending", "Completed"]
    clock.advance(A_MOMENT)
    assert names(unsent) == (2 * FEW - 2) * ["Pending"]
    assert not unsent


@pytest.mark.parametrize(("over", "states"), [(5, 15), (100, 100 + MOST_UNSENT_IN_A_HURRY)])
def test_in_a_hurry_only_jobs_that_are_over_are_told_of_and_of_many_only_how_they_ended(over: int, states: int) -> None:
    unsent = UnsentChanges("auto")
    fill(unsent, 5, over=False)
    fill(unsent, over)
    unsent.hurries = True
    told = names(unsent)
    assert told.count("Completed") == over
    assert len(told) <= states
    assert (told.count("Running") == over) is (over == 5)
    assert [event.name for event in unsent.finals(FLOW)] == []


@pytest.mark.parametrize("told", [False, True])
def test_one_that_ends_twice_is_kept_once(told: bool) -> None:
    """As a task run that is rolled back; whether or not the first end was told before, behind others."""
    clock = FakeClock()
    unsent, twice = UnsentChanges("auto", clock=clock), history()
    fill(unsent, 1)
    unsent.append(twice, step(JobStatus.COMPLETED, 1.0))
    if told:
        assert len(names(unsent)) == 4
    unsent.append(twice, step(JobStatus.FAILED, 2.0))
    finals = [event.name for event in unsent.finals(FLOW)]
    assert finals == (["Failed"] if told else ["Completed", "Failed"])


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'auto', 'full' or 'final'"):
        UnsentChanges("all")  # type: ignore[arg-type]


def test_times_rise_though_the_clock_is_set_back() -> None:
    """The server takes a state with an older time for passed; and the end is never before the start."""
    unsent, job = UnsentChanges("full"), history()
    for status, at in ((JobStatus.PENDING, 100.0), (JobStatus.RUNNING, 90.0), (JobStatus.COMPLETED, 80.0)):
        unsent.append(job, step(status, at))
    events = unsent.next_events(3, FLOW)
    assert events[0].at < events[1].at < events[2].at
