"""Tests that retries, and failures of which nobody asks, are in the log."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy, Transition
from executor_adapter.config import Settings
from executor_adapter.supervision.futures import UnreadFailures
from executor_adapter.testing import FakeClock, InlineExecutor
from tests.waiting import PATIENCE, wait_for

HELD = """
from executor_adapter import Job, JobExecutor

def fail(name):
    raise ValueError(name)

with JobExecutor(2) as executor:
    held, read_later = [
        executor.submit(Job(function=fail, args=(name,), job_id=name, retry_attempts=0)) for name in ("held", "read")
    ]
read_later.exception()
print("closed", flush=True)
"""


class Plain(JobExecutor):
    """An executor without hooks."""


class WithHook(JobExecutor):
    """An executor that runs each attempt through a hook."""

    async def pre_execution_hook(self, job: Job) -> None: ...


def fail(name: str) -> None:
    raise ValueError(name)


def failing(name: str, **fields: object) -> Job:
    return Job(function=fail, args=(name,), job_id=name, **({"retry_attempts": 0} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Plain, WithHook])
def test_each_retry_is_logged_once(kind: type[JobExecutor], caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt that is retried is one line: which attempt of how many, why it failed, and when the next one is."""
    with kind(2, config=Settings()) as executor:
        policy = RetryPolicy(retry_attempts=2, delays=(0.0,))
        assert executor.submit(failing("no", retry_attempts=2, retry=policy)).exception(PATIENCE) is not None
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "job no: attempt 1 of 3 failed (EXECUTION_ERROR: ValueError: no), next in 0 s",
        "job no: attempt 2 of 3 failed (EXECUTION_ERROR: ValueError: no), next in 0 s",
    ]


def test_a_retry_says_its_delay(caplog: pytest.LogCaptureFixture) -> None:
    """The delay is in seconds, with the job's default of a minute as it is."""
    with InlineExecutor() as executor:
        future = executor.submit(failing("no", retry=RetryPolicy(jitter=0)))
        assert caplog.messages == ["job no: attempt 1 of 4 failed (EXECUTION_ERROR: ValueError: no), next in 60 s"]
        future.cancel()


def test_a_failure_that_nobody_can_read_any_more_is_reported_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """A program that never closes its executor says once that a job failed whose future it has dropped."""
    with JobExecutor(2, config=Settings()) as executor:
        kept = executor.submit(failing("kept"))
        executor.submit(failing("dropped"))
        wait_for(lambda: bool(caplog.messages))
        assert kept.exception(PATIENCE) is not None
    (message,) = caplog.messages
    head = "jobs that failed without anybody reading their future: 1: "
    assert message == f"{head}dropped: EXECUTION_ERROR: ValueError: dropped"


def test_a_failure_that_its_caller_gave_up_on_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A caller that stops waiting has not read the future: a failure after that is reported."""
    clock = FakeClock()
    with InlineExecutor(clock=clock) as executor:
        future = executor.submit(failing("late", retry=RetryPolicy(retry_attempts=1, delays=(5.0,))))
        with pytest.raises(TimeoutError):
            future.result(0.01)
        caplog.clear()
        clock.advance(6.0)
        assert future.done()
        del future
        gc.collect()
    assert [message.partition(": ")[0] for message in caplog.messages] == [
        "jobs that failed without anybody reading their future"
    ]


def test_failures_that_nobody_read_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Futures that were dropped unread are reported once each; several in one line, with the first jobs' errors."""
    with JobExecutor(2, config=Settings()) as executor:
        for number in range(5):
            executor.submit(failing(f"job-{number}"))
        executor.submit(failing("read")).exception(PATIENCE)
        executor.submit(failing("called back")).add_done_callback(lambda _: None)
        executor.submit(Job(function=len, args=((),)))
        list(executor.map(fail, ["mapped"], retry_attempts=0))
    heads = [message.partition(": ")[2] for message in caplog.messages]
    assert sum(int(head.partition(":")[0]) for head in heads) == 5
    assert all("EXECUTION_ERROR: ValueError: job-" in head for head in heads)


def test_a_line_names_three_of_the_failures(caplog: pytest.LogCaptureFixture) -> None:
    """Of many failures at once the line has their number, and the first three."""
    with InlineExecutor() as executor:
        for number in range(5):
            executor.submit(failing(f"job-{number}"))
        gc.collect()  # The frames of the errors are those of the calls here, and hold the futures in cycles.
    (message,) = caplog.messages
    head, *named, more = message.split("; ")
    assert head.startswith("jobs that failed without anybody reading their future: 5: job-0")
    assert (len(named), more) == (2, "and 2 more")


def test_failures_of_an_executor_with_observers_are_theirs(caplog: pytest.LogCaptureFixture) -> None:
    """Where an observer is told of each transition, an unread future is not reported."""
    told: list[Transition] = []
    with JobExecutor(2, config=Settings(), observers=[told.append]) as executor:
        executor.submit(failing("observed"))
    assert told[-1].error is not None
    assert caplog.messages == []


def test_a_future_that_is_still_held_is_reported_at_the_exit(tmp_path: Path) -> None:
    """A future that is held when its executor closes may be read afterwards; if it was not, the exit says so."""
    program = tmp_path / "program.py"
    program.write_text(HELD)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "closed\n"
    assert done.stderr == (
        "jobs that failed without anybody reading their future: 1: held: EXECUTION_ERROR: ValueError: held\n"
    )


def test_the_end_waits_for_what_is_being_logged() -> None:
    """A failure that another thread is about to log is logged before the executor has closed, so before any exit."""
    unread, order = UnreadFailures(5, lambda _: None), list[str]()
    entered, go_on = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            assert go_on.wait(PATIENCE)
            order.append("logged")

    def close() -> None:
        unread.report()
        order.append("closed")

    assert unread.add(Future(), "job a: DATA_ERROR") is not None
    gc.collect()
    logger, handler = logging.getLogger("executor_adapter"), Slow()
    logger.addHandler(handler)
    logging_thread, closing = threading.Thread(target=unread.report_dropped), threading.Thread(target=close)
    try:
        logging_thread.start()
        assert entered.wait(PATIENCE)
        closing.start()
        closing.join(0.1)
        go_on.set()
        logging_thread.join()
        closing.join()
    finally:
        logger.removeHandler(handler)
    assert order == ["logged", "closed"]
