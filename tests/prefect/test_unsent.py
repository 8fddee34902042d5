"""The unsent changes of a mirror: their order, and which of them are skipped."""

from __future__ import annotations

from uuid import uuid4

import pytest

from executor_adapter import Job, JobStatus
from executor_adapter.prefect.mirror.events import FlowRunFacts
from executor_adapter.prefect.mirror.timeline import (
    FEW_UNSENT,
    UNSENT_LIMIT,
    History,
    JobHistory,
    Step,
    UnsentChanges,
)

FLOW = FlowRunFacts()


def history() -> JobHistory:
    return JobHistory(Job(function=dict), str(uuid4()))


def step(status: JobStatus, at: float = 1_000_000.0) -> Step:
    return Step(status, at, 0 if status is JobStatus.PENDING else 1, None, None)


def fill(unsent: UnsentChanges, jobs: int, *, finished: bool = True) -> None:
    for _ in range(jobs):
        job = history()
        for status in (JobStatus.PENDING, JobStatus.RUNNING, *([JobStatus.COMPLETED] if finished else [])):
            unsent.append(job, step(status))


def names(unsent: UnsentChanges) -> list[str]:
    return [event.name for event in unsent.next_events(1_000_000, FLOW)]


@pytest.mark.parametrize(("mode", "sent"), [("auto", 3), ("full", 3), ("final", 1)])
def test_all_states_are_sent_while_few_changes_are_unsent(mode: History, sent: int) -> None:
    """While few changes are unsent all states are sent, except with "final"."""
    unsent = UnsentChanges(mode)
    fill(unsent, 10)
    assert len(names(unsent)) == 10 * sent
    assert unsent.omitted == 10 * (3 - sent)
    assert not unsent


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_intermediate_states_are_skipped_while_many_changes_are_unsent(mode: History) -> None:
    """While many changes are unsent intermediate states are skipped, except with "full"; a final state never is."""
    jobs = 2 * UNSENT_LIMIT
    unsent = UnsentChanges(mode)
    fill(unsent, jobs)
    sent = names(unsent)
    assert sent.count("Completed") == jobs
    assert len(sent) + unsent.omitted == 3 * jobs
    assert (unsent.omitted > jobs) is (mode == "auto")


def test_states_of_unfinished_jobs_are_never_skipped() -> None:
    """States of unfinished jobs are not skipped, not even with "final"."""
    unsent = UnsentChanges("final")
    fill(unsent, UNSENT_LIMIT, finished=False)
    assert (len(names(unsent)), unsent.omitted) == (2 * UNSENT_LIMIT, 0)


@pytest.mark.parametrize(("mode", "is_bounded"), [("auto", True), ("final", True), ("full", False)])
def test_a_job_that_retries_while_the_server_is_away_keeps_few_changes(mode: History, is_bounded: bool) -> None:
    """A job that fails and retries for as long as a server is away has a bounded history, except with "full"."""
    unsent, job = UnsentChanges(mode), history()
    for status in 10 * FEW_UNSENT * (JobStatus.RUNNING, JobStatus.RETRYING):
        unsent.append(job, step(status))
    unsent.take_in()
    most = {"auto": UNSENT_LIMIT + FEW_UNSENT, "final": FEW_UNSENT}.get(mode)
    assert (most is not None and len(job.unsent) <= most) is is_bounded
    unsent.append(job, step(JobStatus.COMPLETED))
    assert names(unsent)[-1] == "Completed"
    assert not unsent


def test_a_job_sent_before_its_turn_is_sent_once() -> None:
    """In a hurry a job that has finished is sent before those that waited longer, and once."""
    unsent, slow = UnsentChanges("full"), [history() for _ in range(3)]
    for job in slow:
        unsent.append(job, step(JobStatus.PENDING))
    unsent.append(slow[-1], step(JobStatus.COMPLETED))
    unsent.is_hurried = True
    assert names(unsent) == ["Pending", "Completed"]
    unsent.is_hurried = False
    unsent.append(slow[0], step(JobStatus.COMPLETED))
    assert names(unsent) == ["Pending", "Completed", "Pending"]
    assert not unsent


@pytest.mark.parametrize(("finished", "states"), [(5, 15), (100, 100 + FEW_UNSENT)])
def test_in_a_hurry_only_finished_jobs_are_sent(finished: int, states: int) -> None:
    """In a hurry only finished jobs are sent; if they are many, only their final states."""
    unsent = UnsentChanges("auto")
    fill(unsent, 5, finished=False)
    fill(unsent, finished)
    unsent.is_hurried = True
    sent = names(unsent)
    assert sent.count("Completed") == finished
    assert len(sent) <= states
    assert (sent.count("Running") == finished) is (finished == 5)
    assert [event.name for event in unsent.final_events(FLOW)] == []


@pytest.mark.parametrize("sent", [False, True])
def test_a_job_that_finishes_twice_is_kept_once(sent: bool) -> None:
    """A job that finishes twice, as a rolled-back task run does, is kept once."""
    unsent, twice = UnsentChanges("auto"), history()
    fill(unsent, 1)
    unsent.append(twice, step(JobStatus.COMPLETED, 1.0))
    if sent:
        assert len(names(unsent)) == 4
    unsent.append(twice, step(JobStatus.FAILED, 2.0))
    finals = [event.name for event in unsent.final_events(FLOW)]
    assert finals == (["Failed"] if sent else ["Completed", "Failed"])


def test_an_unknown_history_mode_is_refused() -> None:
    """The message about an unknown history mode names the known ones."""
    with pytest.raises(ValueError, match="choose 'auto', 'full' or 'final'"):
        UnsentChanges("all")  # type: ignore[arg-type]


def test_times_rise_even_if_the_clock_is_set_back() -> None:
    """Times of states rise even if the clock is set back, since the server ignores older states."""
    unsent, job = UnsentChanges("full"), history()
    for status, at in ((JobStatus.PENDING, 100.0), (JobStatus.RUNNING, 90.0), (JobStatus.COMPLETED, 80.0)):
        unsent.append(job, step(status, at))
    events = unsent.next_events(3, FLOW)
    assert events[0].at < events[1].at < events[2].at
