"""What a person is told of a run's jobs: the table, the lines, the sentences."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from executor_adapter.job.model import Job, JobStatus, Transition
from tasks import report_text
from tasks.progress_table import Board, JobLine
from tasks.row_balance import Balance


class Screen:
    """A board that writes to memory."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.output = io.StringIO()
        self.board = Board(Console(file=self.output, force_terminal=terminal, width=140, color_system=None))

    def tell(self, job: Job, *states: JobStatus) -> None:
        """The job enters these states, and the board is told, as an executor does."""
        for status in states:
            previous = job.status
            if status is not JobStatus.PENDING:
                job.advance(status, at=1000.0 if status is JobStatus.RUNNING else 1002.5)
            self.board(Transition(job, previous, status, 1000.0, 1))


@pytest.fixture
def screen() -> Screen:
    return Screen()


def job(job_id: str, stage: str = "collect", subject: str = "flights 2013-01", **fields: Any) -> Job:
    metadata = {"stage": stage, "subject": subject}
    return Job(function=print, job_id=job_id, tool_name="flights", pool="thread", metadata=metadata, **fields)


PENDING, RUNNING, COMPLETED, FAILED = (
    JobStatus.PENDING,
    JobStatus.RUNNING,
    JobStatus.COMPLETED,
    JobStatus.FAILED,
)


def test_a_job_that_is_over_is_told_of_in_a_line(screen: Screen) -> None:
    screen.tell(job("a"), PENDING, RUNNING, COMPLETED)
    line = screen.board.settle("a", {"status": "already_collected"})
    assert line is not None
    assert line.state == "completed (already_collected)"
    assert screen.output.getvalue().startswith("collect flights flights 2013-01: completed (already_collected)")
    assert screen.output.getvalue().endswith("2.50 s\n")


def test_a_future_may_be_done_before_the_executor_has_told_of_it(screen: Screen) -> None:
    late = job("a")
    screen.tell(late, PENDING, RUNNING)
    telling = threading.Timer(0.05, screen.tell, args=(late, COMPLETED))
    telling.start()
    line = screen.board.settle("a", None)
    telling.join()
    assert line is not None
    assert line.status is COMPLETED


def test_a_job_that_no_executor_took_has_no_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.progress_table.SETTLES_WITHIN", 0.01)
    assert screen.board.settle("unknown", None) is None
    assert screen.board.lines() == []


def test_lines_are_in_the_order_of_the_stages(screen: Screen) -> None:
    for job_id, stage, subject in (
        ("1", "find", "b"),
        ("2", "collect", "z"),
        ("3", "find", "a"),
        ("4", "collect", "c"),
    ):
        screen.tell(job(job_id, stage, subject), PENDING)
    assert [(line.stage, line.subject) for line in screen.board.lines()] == [
        ("find", "a"),
        ("find", "b"),
        ("collect", "c"),
        ("collect", "z"),
    ]


def test_on_a_terminal_a_table_moves_and_no_line_is_printed() -> None:
    screen = Screen(terminal=True)
    with screen.board.live():
        screen.tell(job("a"), PENDING, RUNNING, COMPLETED)
        screen.board.settle("a", None)
    assert "1 of 1 are over" in screen.output.getvalue()
    assert "collect flights flights 2013-01: completed" not in screen.output.getvalue()


def test_a_long_table_keeps_what_runs_in_sight() -> None:
    screen = Screen(terminal=True)
    with screen.board.live():
        for number in range(50):
            screen.tell(job(str(number), subject=f"over {number:02}"), PENDING, RUNNING, COMPLETED)
        screen.tell(job("r", subject="running now"), PENDING, RUNNING)
    last = screen.output.getvalue().rpartition("50 of 51 are over")[2]
    assert "running now" in last
    assert "over 49" in last
    assert "over 00" not in last


def line(status: JobStatus = COMPLETED, **fields: Any) -> JobLine:
    given: dict[str, Any] = {
        "tool": "flights", "stage": "collect", "subject": "a", "pool": "thread", "attempts": 1, "duration": 2.0,
        "records": 5, "note": "", "error": None,
    }  # fmt: skip
    return JobLine(status=status, **given | fields)


BROKEN = line(FAILED, attempts=4, duration=4.0, records=None, note="API_ERROR", error="answered\n500 | a|b <dict>")


def test_new_rows_are_told_apart_from_those_that_were_there() -> None:
    balance = Balance(tool="flights", collected=12, processed=12, rejected=0, unprocessed=0)
    assert report_text.new_rows([line(), line(stage="process")], [balance]) == [
        "flights: 5 new rows; 7 were already collected, and not collected again"
    ]
    assert report_text.new_rows([line(records=12)], [balance]) == ["flights: 12 new rows"]


def test_failures_are_told_with_code_and_attempts() -> None:
    assert report_text.failure_lines([line(), BROKEN]) == [
        "failed: collect flights a: API_ERROR after 4 attempts: answered\n500 | a|b <dict>"
    ]


def test_the_report_has_rate_duration_and_failures(tmp_path: Path) -> None:
    text = report_text.markdown("pipeline", [line(), line(), line(), BROKEN], ["rows"], ["sentence"], tmp_path)
    assert "| 4 | 3 | 1 | 75.0% | 2.50 s |" in text
    assert "| collect flights a | API_ERROR | 4 | answered 500 \\| a\\|b &lt;dict&gt; |" in text
    assert "- rows" in text
    assert "- sentence" in text
    assert f"`{tmp_path}`" in text


def test_a_run_without_jobs_has_a_report(tmp_path: Path) -> None:
    text = report_text.markdown("pipeline", [], [], [], tmp_path)
    assert "| 0 | 0 | 0 | 100.0% | 0.00 s |" in text
    assert "Failures" not in text
