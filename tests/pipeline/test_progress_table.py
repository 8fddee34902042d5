"""The progress table and the report of a run show its jobs, failures and rows."""

from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from executor_adapter import Job, JobStatus, Transition
from executor_adapter.pipeline import Balance
from executor_adapter.pipeline.flows import report_text
from executor_adapter.pipeline.flows.progress_table import JobRow, ProgressTable


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
                job.advance(status)
                job.state.started_at, job.state.completed_at = 1000.0, 1002.5 if status.is_terminal else None
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
    monkeypatch.setattr("executor_adapter.pipeline.flows.progress_table.TRANSITION_TIMEOUT", 0.01)
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


def test_a_terminal_shows_a_bar_and_no_lines_of_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal a bar of the block's own jobs takes the place of the printed lines, and a line of counts stays."""
    screen = Screen(terminal=True)
    with screen.table.live("collection"):
        screen.enter(job("a"), PENDING, RUNNING, COMPLETED)
        screen.table.record_result("a", None)
    with screen.table.live("processing"):
        screen.enter(job("b", stage="process"), PENDING, RUNNING, FAILED)
    assert screen.output.getvalue() == ""
    collection, processing = capsys.readouterr().err.splitlines()
    assert collection.startswith("collection: 1 of 1 done, ")
    assert processing.startswith("processing: 1 of 1 done, 1 failed, ")


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_and_its_states_are_whole(width: int) -> None:
    """In the table the name of a job is cut where there is no room, and its state never is."""
    table = ProgressTable(Console(file=io.StringIO(), width=width, color_system=None))
    rows = [row(note="already_collected", subject="a subject with a very long name " * 4, attempts=2)]
    table.console.print(table.render(rows))
    shown = table.console.file
    assert isinstance(shown, io.StringIO)
    text = shown.getvalue()
    assert "completed (already_collected)" + (", 2 attempts" if width == 80 else "") in text
    assert ("thread" in text) is (width == 140)
    assert max(map(len, text.splitlines())) <= width


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


def report(lake: Path, **fields: Any) -> report_text.Report:
    given: dict[str, Any] = {
        "title": "pipeline", "rows": ["rows"], "sentences": ["sentence"],
        "rejects": Counter(), "plots": [], "links": {},
    }  # fmt: skip
    return report_text.Report(lake=lake, **given | fields)


def test_the_report_begins_with_failures_and_ends_with_plots(tmp_path: Path) -> None:
    """Links and failures come first, then rows, rejects by reason, the summary and the plots."""
    rejects = Counter({("flights", "planes", "year | 0"): 7, ("flights", "weather", "wind"): 9})
    shown = report(tmp_path, rejects=rejects, plots=["![delays](data:x)"], links={"all jobs": "/artifacts/artifact/1"})
    text = report_text.markdown(shown, [row(duration=float(n), subject=f"part {n}") for n in range(9)] + [BROKEN])
    order = [
        "[all jobs](/artifacts/artifact/1)",
        "## Failures",
        "## Rows",
        "## Rejected",
        "## Summary",
        "![",
    ]
    assert sorted(order, key=text.index) == order
    assert "| flights | weather | wind | 9 |\n| flights | planes | year \\| 0 | 7 |" in text


def test_the_most_frequent_reasons_are_sentences() -> None:
    """The terminal says why rows were rejected: the most frequent reasons, and how many rows there are beside them."""
    rejects = Counter({("shop", "orders", f"price: '{n}'\nis too much"): 10 - n for n in range(6)})
    sentences = report_text.reject_sentences(rejects)
    assert sentences[0] == "rejected: 10 rows of shop/orders: price: '0' is too much"
    assert sentences[5:] == ["rejected: 5 rows for other reasons: see rejected in the lake"]
    assert report_text.reject_sentences(Counter({("shop", "orders", "x" * 300): 1})) == [
        f"rejected: 1 row of shop/orders: {'x' * 200}"
    ]


def test_the_report_counts_reasons_beyond_the_limit_together(tmp_path: Path) -> None:
    """Only the most frequent reasons are listed, and the rows of all others are counted in one line."""
    count = report_text.MAX_REASONS + 3
    rejects = Counter({("flights", "planes", f"reason {n}"): 100 - n for n in range(count)})
    text = report_text.markdown(report(tmp_path, rejects=rejects), [])
    assert "reason 19 " in text
    assert "reason 20 " not in text
    assert "| | | 3 more reasons | 237 |" in text


def test_the_report_has_rate_duration_and_failures(tmp_path: Path) -> None:
    """The Markdown report shows the success rate, the mean duration and escaped failures."""
    text = report_text.markdown(report(tmp_path), [row(), row(), row(), BROKEN])
    assert "| 4 | 3 | 1 | 75.0% | 2.50 s |" in text
    assert "| collect flights a | API_ERROR | 4 | answered 500 \\| a\\|b &lt;dict&gt; |" in text
    assert "- rows" in text
    assert "- sentence" in text
    assert f"`{tmp_path}`" in text


def test_a_run_without_jobs_has_a_report(tmp_path: Path) -> None:
    """A run without jobs gets a report without failures."""
    text = report_text.markdown(report(tmp_path, rows=[], sentences=[]), [])
    assert "| 0 | 0 | 0 | 100.0% | 0.00 s |" in text
    assert "Failures" not in text
