"""Tests of progress bars: lines that fit the terminal, plain lines in a pipe, and counts that are right at the end."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import threading
import time
from concurrent.futures import Future

import pytest
from rich.text import Text

import executor_adapter.monitoring.progress as progress_module
from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from executor_adapter.scheduler import CollectionScheduler
from tests.waiting import PATIENCE, wait_for

FULL = ProgressCounts(done=1_234, failed=56, total=100_000, note="waiting for the server to record the task runs")


def invert(number: int) -> float:
    return 1 / number


def bar(counts: ProgressCounts, title: str = "fetch", *, seconds: float = 10.0) -> ProgressBar:
    made = ProgressBar(title, lambda: counts)
    made._began -= seconds  # noqa: SLF001
    return made


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("title", ["fetch", "a_function_with_a_very_long_name_that_nobody_would_choose"])
def test_a_bar_fits_its_terminal(width: int, title: str) -> None:
    """A bar is one line no wider than the terminal, and its counts are whole."""
    line = bar(ProgressCounts(done=1_234, failed=56, total=100_000), title).line(width)
    assert line.cell_len <= width
    assert "━━━━━" in line.plain
    assert "1,234 of 100,000 done  56 failed  123/s  13:20 left  10 s" in line.plain


def test_a_narrow_terminal_loses_the_bar_first() -> None:
    """Where counts and notes need the width, there is no bar."""
    assert "━" not in bar(FULL).line(60).plain


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (ProgressCounts(done=30, total=40), "fetch: 30 of 40 done, 3.0/s, 3 s left, 10 s"),
        (ProgressCounts(done=2, failed=1), "fetch: 2 done, 1 failed, 12.0/min, 10 s"),
        (ProgressCounts(note="waiting for a worker"), "fetch: waiting for a worker, 10 s"),
    ],
)
def test_a_pipe_gets_plain_lines(counts: ProgressCounts, text: str) -> None:
    """In a pipe a line says done, total where known, failed, rate, and what is waited for."""
    assert bar(counts).plain() == text


def test_map_counts_jobs_to_their_end(capsys: pytest.CaptureFixture[str]) -> None:
    """`map(progress=True)` prints one plain line at the end of a pipe, on stderr, with the right counts."""
    with JobExecutor(2, config=Settings()) as executor:
        results = list(executor.map(invert, [0, 1, 2, 4], progress=True, retry_attempts=0))
    assert [result.value for result in results] == [None, 1.0, 0.5, 0.25]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"invert: 4 of 4 done, 1 failed, [\d.,]+/s, 0 s\n", shown.err)


def test_map_without_a_length_has_no_total(capsys: pytest.CaptureFixture[str]) -> None:
    """Where an iterable has no length the bar has no total, and stopping early ends it."""
    with JobExecutor(2, config=Settings()) as executor:
        results = executor.map(invert, iter(range(1, 100)), progress=True, window=1)
        assert next(results).value == 1.0
        results.close()  # type: ignore[attr-defined]
    assert re.fullmatch(r"invert: \d+ done, .*\n", capsys.readouterr().err)


def test_a_pipe_hears_what_is_waited_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing ends, a plain line says so after FIRST_WORD seconds, without escape codes."""
    monkeypatch.setattr(progress_module, "FIRST_WORD", 0.01)
    go_on, heard = threading.Event(), ""
    with JobExecutor(1, config=Settings()) as executor:
        results = executor.map(lambda _: go_on.wait(PATIENCE), [1], progress=True, pool="thread")
        collecting = threading.Thread(target=lambda: list(results))
        collecting.start()
        while "0 of 1 done" not in heard:
            heard += capsys.readouterr().err
        go_on.set()
        collecting.join()
    assert "\x1b" not in heard + capsys.readouterr().err


def test_a_scheduler_has_a_bar_from_start_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """A scheduler with `progress=True` counts its jobs, and prints one line when it stops."""

    async def main() -> None:
        scheduler = CollectionScheduler(2, config=Settings(), progress=True)
        await scheduler.start()
        ids = [await scheduler.add_manual_job("invert", invert, number=number) for number in (1, 2)]
        ids.append(await scheduler.job_queue.add_job(Job(function=invert, args=(0,), retry_attempts=0)))
        jobs = [job for each in ids if (job := await scheduler.get_job_status(each)) is not None]
        while not all(job.status.is_terminal for job in jobs):
            await asyncio.sleep(0.01)
        await scheduler.stop()
        await scheduler.stop()

    asyncio.run(main())
    assert re.fullmatch(r"collection: 3 of 3 done, 1 failed, [\d.,]+/\w+, \d s\n", capsys.readouterr().err)


def test_a_shutdown_that_takes_long_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving an executor whose jobs still run says in the log what is waited for."""
    monkeypatch.setattr("executor_adapter.supervision.thread.FIRST_WORD", 0.01)
    caplog.set_level(logging.INFO, logger="executor_adapter")
    go_on = threading.Event()
    with JobExecutor(1, config=Settings()) as executor:
        executor.submit(Job(function=go_on.wait, args=(20,), pool="thread"))
        leaving = threading.Thread(target=executor.shutdown)
        leaving.start()
        while "waiting for unfinished jobs: 1" not in caplog.messages:
            time.sleep(0.005)
        go_on.set()
        leaving.join()


def test_a_shutdown_that_waits_for_job_tasks_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving an executor in which a submitted task still waits for its input says in the log what is waited for."""
    monkeypatch.setattr("executor_adapter.supervision.thread.FIRST_WORD", 0.01)
    caplog.set_level(logging.INFO, logger="executor_adapter")
    task: Future[None] = Future()
    executor = JobExecutor(1, config=Settings())
    executor.expect(task)
    leaving = threading.Thread(target=executor.shutdown)
    leaving.start()
    wait_for(lambda: "waiting for job tasks that have not ended: 1" in caplog.messages)
    task.set_result(None)
    leaving.join(PATIENCE)
    assert executor.is_closed


def test_two_bars_share_one_display(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars of several calls are shown together, and each prints its own line at its end."""
    counts = ProgressCounts(done=1, total=1)
    with ProgressBar("outer", lambda: counts), ProgressBar("inner", lambda: counts):
        shown = progress_module._display._render()  # noqa: SLF001
        assert [line.plain.split()[0] for line in shown.renderables if isinstance(line, Text)] == ["outer", "inner"]
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["inner", "outer"]


def test_a_bar_whose_reader_has_left_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`program 2>&1 | head -1`: the summary of a bar that nobody reads does not end the program."""

    class WithoutReader(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", WithoutReader())
    with ProgressBar("fetch", lambda: ProgressCounts(done=1)):
        pass
