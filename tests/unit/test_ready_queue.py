"""Tests of the queue of all jobs that wait, against lists that are searched."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from executor_adapter import Job, JobStatus
from executor_adapter.supervision.line import LineKey
from executor_adapter.supervision.scheduling import ReadyQueue
from tests.insides import cancel_queued

KEYS: list[LineKey] = [("thread", None, None), ("thread", None, "api"), ("process", None, None)]


def queued(priority: int, at: float) -> Job:
    """Return a job that the supervisor has admitted."""
    job = Job(function=print, priority=priority)
    job.live.queued_at = at
    return job


@given(st.data())
def test_the_first_job_is_that_of_the_highest_priority_then_the_oldest(data: st.DataObject) -> None:
    """Whatever is queued, put back, cancelled, held back or released: the right line is first, and none is lost."""
    queue = ReadyQueue()
    lists: defaultdict[LineKey, list[Job]] = defaultdict(list)
    held: set[LineKey] = set()
    for at in range(data.draw(st.integers(1, 60))):
        key = data.draw(st.sampled_from(KEYS))
        match data.draw(st.sampled_from(["push", "push", "put back", "cancel", "hold back", "release"])):
            case "push":
                job = queued(data.draw(st.integers(0, 2)), float(at))
                queue.push(job, key)
                lists[key].append(job)
            case "put back":
                job = queued(data.draw(st.integers(0, 2)), float(-at))
                queue.push(job, key, front=True)
                lists[key].insert(0, job)
            case "cancel" if pending := [job for job in lists[key] if job.status is JobStatus.PENDING]:
                cancel_queued(data.draw(st.sampled_from(pending)))
            case "hold back" if key in queue.lines and key not in held:
                queue.lines[key].place = None
                held.add(key)
            case "release" if key in held:
                held.remove(key)
                queue.enter(queue.lines[key])
        expected = first_of(lists, held)
        line = queue.first()
        assert (None if line is None else line.first) is expected
        if line is not None and data.draw(st.booleans()):
            queue.pop(line)
            next(jobs for jobs in lists.values() if expected in jobs).remove(expected)
    for key in held:
        queue.enter(queue.lines[key])
    while (line := queue.first()) is not None:
        assert line.first is first_of(lists, set())
        next(jobs for jobs in lists.values() if line.first in jobs).remove(line.first)
        queue.pop(line)
    assert first_of(lists, set()) is None
    assert queue.lines == {}


def first_of(lists: dict[LineKey, list[Job]], held: set[LineKey]) -> Job | None:
    """Return the job that starts next: the head of each line is compared, and lines that are held back are left out."""
    pending = ([job for job in lists[key] if job.status is JobStatus.PENDING] for key in lists.keys() - held)
    heads = [max(jobs, key=lambda job: job.priority) for jobs in pending if jobs]
    return min(heads, key=lambda job: (-job.priority, job.live.queued_at), default=None)


def test_jobs_that_always_come_first_leave_nothing_behind() -> None:
    """While urgent jobs pass one that waits for ever, the queue keeps a few places and not one for each of them."""
    queue, key = ReadyQueue(), KEYS[0]
    waits = queued(0, 0.0)
    queue.push(waits, key)
    for at in range(1, 1000):
        urgent = queued(1, float(at))
        queue.push(urgent, key)
        line = queue.first()
        assert line is not None
        assert line.first is urgent
        queue.pop(line)
    assert len(queue.pools["thread"]) < 20
    line = queue.first()
    assert line is not None
    assert line.first is waits
