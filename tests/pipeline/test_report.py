"""The terminal and the report of a run show its jobs, failures and rows."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobStatus, Transition
from executor_adapter.pipeline import Balance
from executor_adapter.pipeline.flows import report
from executor_adapter.pipeline.flows.report import JobLines


@dataclass(frozen=True)
class Future:
    """The future of a job that is done."""

    task_run_id: str


@pytest.fixture
def lines() -> JobLines:
    return JobLines()


def enter(lines: JobLines, job: Job, *states: JobStatus) -> None:
    """Move the job through these states and notify the lines, as an executor does."""
    for status in states:
        previous = job.status
        if status is not JobStatus.PENDING:
            job.advance(status)
            job.state.started_at, job.state.completed_at = 1000.0, 1002.5 if status.is_terminal else None
        lines(Transition(job, previous, status, 1000.0, 1))


def job(job_id: str, stage: str = "collect", subject: str = "flights 2013-01", **fields: Any) -> Job:
    metadata = {"stage": stage, "subject": subject}
    return Job(function=print, job_id=job_id, tool_name="flights", pool="thread", metadata=metadata, **fields)


PENDING, RUNNING, COMPLETED, FAILED = (
    JobStatus.PENDING,
    JobStatus.RUNNING,
    JobStatus.COMPLETED,
    JobStatus.FAILED,
)


def test_a_finished_job_is_printed_as_a_line(lines: JobLines, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished job is printed with its state and duration."""
    enter(lines, job("a"), PENDING, RUNNING, COMPLETED)
    lines.on_done(Future("a"))
    _, ended = lines.wait()
    assert ended is not None
    lines.print_result(ended, {"status": "already_collected"})
    assert capsys.readouterr().out == "collect flights flights 2013-01: completed (already_collected), 2.50 s\n"


def test_a_job_has_ended_when_its_future_and_its_executor_say_so(lines: JobLines) -> None:
    """Whichever says it first; each job comes once, and one that no executor accepted comes by its future alone."""
    late, early = job("late"), job("early")
    futures = {name: Future(name) for name in ("late", "early", "refused")}
    enter(lines, late, PENDING, RUNNING)
    lines.on_done(futures["late"])
    enter(lines, early, PENDING, RUNNING, COMPLETED)
    lines.on_done(futures["refused"])
    assert lines.wait() == (futures["refused"], None)
    enter(lines, late, FAILED)
    assert lines.wait() == (futures["late"], late)
    lines.on_done(futures["early"])
    assert lines.wait() == (futures["early"], early)
    assert {each.job_id for each in lines.jobs()} == {"late", "early"}


def test_a_terminal_shows_a_bar_below_the_lines(
    lines: JobLines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal there is a bar beside the printed lines, and its counts stay; in a pipe there is none."""
    with lines.bar("pipeline"):
        enter(lines, job("a"), PENDING, RUNNING, COMPLETED)
        lines.print_result(lines.jobs()[0], None)
        enter(lines, job("b", stage="process"), PENDING, RUNNING, FAILED)
    assert capsys.readouterr() == ("collect flights flights 2013-01: completed, 2.50 s\n", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with lines.bar("pipeline"):
        pass
    assert capsys.readouterr().err.startswith("pipeline: 2 of 2 done, 1 failed, ")


def ended(status: JobStatus = COMPLETED, records: int | None = 5, attempts: int = 1, **fields: Any) -> Job:
    found = job("a", subject="planes a.csv", **fields)
    found.advance(RUNNING)
    found.advance(status)
    found.state.attempt, found.state.records_processed = attempts, records
    return found


def broken() -> Job:
    found = ended(FAILED, None, 4)
    found.state.error_code, found.state.error_message = "API_ERROR", "answered\n500 | a|b <dict>"
    return found


def test_new_rows_and_known_rows_are_counted_apart() -> None:
    """The sentence of a tool counts new rows apart from rows that were collected before, and names their windows."""
    balance = Balance(name="flights", collected=12, processed=12, rejected=0, unprocessed=0)
    assert list(report.collection_sentences([ended(), ended(stage="process")], [balance], {})) == [
        "flights: 5 new rows (planes a.csv); 7 were there before"
    ]
    none, jobs = ended(records=0), [ended(records=3) for _ in range(4)]
    assert list(report.collection_sentences([none, *jobs], [balance], {"flights": 1200})) == [
        "flights: 12 new rows (planes a.csv, planes a.csv, planes a.csv, 1 more), 1,200 came again"
    ]
    assert list(report.collection_sentences([none], [Balance(name="flights")], {})) == ["flights: 0 new rows"]


def test_a_failure_names_its_code_and_attempts() -> None:
    """A failed job is reported with its error code, attempts and message."""
    assert report.failure_sentences([ended(), broken()]) == [
        "failed: collect flights planes a.csv: API_ERROR after 4 attempts: answered\n500 | a|b <dict>"
    ]


def text_of(lake: Path, **fields: Any) -> str:
    given: dict[str, Any] = {
        "title": "pipeline", "jobs": [ended()], "rows": ["rows"], "rejected": [],
        "summaries": [{"lines": ["sentence"], "title": "delays", "png": None}],
    }  # fmt: skip
    return report.markdown(lake=lake, **given | fields)


def test_the_report_begins_with_failures_and_ends_with_plots(tmp_path: Path) -> None:
    """Failures come first, then rows, rejects by reason, the summary and the plots; nothing of a failure is markup."""
    rejects = Counter({("flights", "planes", "year | 0"): 7, ("flights", "weather", "wind"): 9})
    (tmp_path / "plot.png").write_bytes(b"x")
    summaries = [{"lines": ["sentence"], "title": "delays", "png": str(tmp_path / "plot.png")}]
    text = text_of(tmp_path, jobs=[ended(), broken()], rejected=report.reject_sentences(rejects), summaries=summaries)
    order = [
        "## Failures",
        "- failed: collect flights planes a.csv: API_ERROR after 4 attempts: answered 500 \\| a\\|b &lt;dict&gt;",
        "## Rows",
        "- rows",
        "## Rejected",
        "## Summary",
        "- sentence",
        "![delays](data:image/png;base64,eA==)",
        f"`{tmp_path}`",
    ]
    assert sorted(order, key=text.index) == order
    assert "- rejected: 9 rows of flights.weather: wind\n- rejected: 7 rows of flights.planes: year \\| 0\n" in text
    assert "Failures" not in text_of(tmp_path)


def test_a_text_that_cannot_be_encoded_costs_no_report(tmp_path: Path) -> None:
    """A byte of a file's name that is no text is shown as its number, and ESC as a sign, wherever they come from."""
    failed = ended(FAILED, None)
    failed.state.error_message = "x\udcff.csv \x1b[2J cannot be read"
    (tmp_path / "plot.png").write_bytes(b"x")
    summaries = [{"lines": ["y\udcff \x1b"], "title": "z\udcff", "png": str(tmp_path / "plot.png")}]
    rejects = Counter({("flights", "planes", "r\udcff \x1b"): 1})
    text = (
        text_of(tmp_path, jobs=[failed], rejected=report.reject_sentences(rejects), summaries=summaries)
        .encode()
        .decode()
    )
    assert r"x\\udcff.csv ␛\[2J cannot be read" in text
    assert r"flights.planes: r\\udcff ␛" in text
    assert "- y\\udcff ␛\n" in text
    assert "![z\\udcff](" in text


def test_the_most_frequent_reasons_are_sentences() -> None:
    """They say why rows were rejected: the most frequent reasons, and how many rows there are beside them."""
    rejects = Counter({("shop", "orders", f"price: '{n}'\nis too much"): 20 - n for n in range(12)})
    sentences = report.reject_sentences(rejects)
    assert sentences[0] == "rejected: 20 rows of shop.orders: price: '0' is too much"
    assert sentences[10:] == ["rejected: 19 rows for other reasons: executor-adapter pipeline rejects"]
    assert report.reject_sentences(Counter({("shop", "orders", "x" * 300): 1})) == [
        f"rejected: 1 row of shop.orders: {'x' * 200}"
    ]
