"""The progress table and the report of a run show its jobs, failures and rows."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from executor_adapter import Job, JobStatus, Transition
from tasks import report_text
from tasks.progress_table import JobRow, ProgressTable
from tasks.row_balance import Balance


class Screen:
    """A progress table that writes to memory."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.output = io.StringIO()
        self.table = ProgressTable(Console(file=self.output, force_terminal=terminal, width=140, color_system=None))

    def enter(self, job: Job, *states: JobStatus) -> None:
        """Move the job through these states and notify the table, as an executor does."""
        for status in states:
            previous = job.status
            if status is not JobStatus.PENDING:
                job.advance(status, at=1000.0 if status is JobStatus.RUNNING else 1002.5)
            self.table(Transition(job, previous, status, 1000.0, 1))


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


def test_a_finished_job_is_printed_as_a_line(screen: Screen) -> None:
    """A finished job is printed with its state and duration."""
    screen.enter(job("a"), PENDING, RUNNING, COMPLETED)
    row = screen.table.record_result("a", {"status": "already_collected"})
    assert row is not None
    assert row.state == "completed (already_collected)"
    assert screen.output.getvalue().startswith("collect flights flights 2013-01: completed (already_collected)")
    assert screen.output.getvalue().endswith("2.50 s\n")


def test_the_result_waits_for_the_last_transition(screen: Screen) -> None:
    """The table waits for a transition that arrives after the future is done."""
    late = job("a")
    screen.enter(late, PENDING, RUNNING)
    notification = threading.Timer(0.05, screen.enter, args=(late, COMPLETED))
    notification.start()
    row = screen.table.record_result("a", None)
    notification.join()
    assert row is not None
    assert row.status is COMPLETED


def test_a_job_that_no_executor_accepted_has_no_row(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that no executor accepted is not in the table."""
    monkeypatch.setattr("tasks.progress_table.TRANSITION_TIMEOUT", 0.01)
    assert screen.table.record_result("unknown", None) is None
    assert screen.table.rows() == []


def test_rows_are_sorted_by_stage_and_subject(screen: Screen) -> None:
    """Rows are sorted by the order in which stages began, then by subject."""
    for job_id, stage, subject in (
        ("1", "find", "b"),
        ("2", "collect", "z"),
        ("3", "find", "a"),
        ("4", "collect", "c"),
    ):
        screen.enter(job(job_id, stage, subject), PENDING)
    assert [(row.stage, row.subject) for row in screen.table.rows()] == [
        ("find", "a"),
        ("find", "b"),
        ("collect", "c"),
        ("collect", "z"),
    ]


def test_a_terminal_shows_a_live_table_and_no_lines() -> None:
    """On a terminal the live table replaces the printed lines."""
    screen = Screen(terminal=True)
    with screen.table.live():
        screen.enter(job("a"), PENDING, RUNNING, COMPLETED)
        screen.table.record_result("a", None)
    assert "1 of 1 finished" in screen.output.getvalue()
    assert "collect flights flights 2013-01: completed" not in screen.output.getvalue()


def test_a_long_live_table_shows_running_jobs() -> None:
    """A live table with more rows than fit drops finished jobs first."""
    screen = Screen(terminal=True)
    with screen.table.live():
        for number in range(50):
            screen.enter(job(str(number), subject=f"finished {number:02}"), PENDING, RUNNING, COMPLETED)
        screen.enter(job("r", subject="running now"), PENDING, RUNNING)
    last = screen.output.getvalue().rpartition("50 of 51 finished")[2]
    assert "running now" in last
    assert "finished 49" in last
    assert "finished 00" not in last


def row(status: JobStatus = COMPLETED, **fields: Any) -> JobRow:
    given: dict[str, Any] = {
        "tool": "flights", "stage": "collect", "subject": "a", "pool": "thread", "attempts": 1, "duration": 2.0,
        "records": 5, "note": "", "error": None,
    }  # fmt: skip
    return JobRow(status=status, **given | fields)


BROKEN = row(FAILED, attempts=4, duration=4.0, records=None, note="API_ERROR", error="answered\n500 | a|b <dict>")


def test_new_rows_and_known_rows_are_counted_apart() -> None:
    """The sentence of a tool counts new rows apart from rows that were collected before."""
    balance = Balance(tool="flights", collected=12, processed=12, rejected=0, unprocessed=0)
    assert report_text.collection_sentences([row(), row(stage="process")], [balance]) == [
        "flights: 5 new rows; 7 were already collected, and not collected again"
    ]
    assert report_text.collection_sentences([row(records=12)], [balance]) == ["flights: 12 new rows"]


def test_a_failure_names_its_code_and_attempts() -> None:
    """A failed job is reported with its error code, attempts and message."""
    assert report_text.failure_sentences([row(), BROKEN]) == [
        "failed: collect flights a: API_ERROR after 4 attempts: answered\n500 | a|b <dict>"
    ]


def test_the_report_has_rate_duration_and_failures(tmp_path: Path) -> None:
    """The Markdown report shows the success rate, the mean duration and escaped failures."""
    text = report_text.markdown("pipeline", [row(), row(), row(), BROKEN], ["rows"], ["sentence"], tmp_path)
    assert "| 4 | 3 | 1 | 75.0% | 2.50 s |" in text
    assert "| collect flights a | API_ERROR | 4 | answered 500 \\| a\\|b &lt;dict&gt; |" in text
    assert "- rows" in text
    assert "- sentence" in text
    assert f"`{tmp_path}`" in text


def test_a_run_without_jobs_has_a_report(tmp_path: Path) -> None:
    """A run without jobs gets a report without failures."""
    text = report_text.markdown("pipeline", [], [], [], tmp_path)
    assert "| 0 | 0 | 0 | 100.0% | 0.00 s |" in text
    assert "Failures" not in text
