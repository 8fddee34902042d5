"""What jobs log and raise cannot control the terminal of whoever looks at them."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest

import executor_adapter
from executor_adapter import Job, Transition
from executor_adapter.cli import output
from executor_adapter.cli.watch import read_frame, render
from executor_adapter.job.status import JobStatus
from executor_adapter.pipeline.flows.report import JobLines
from executor_adapter.store import JobFilter, JobStore, LogLine
from executor_adapter.terminal import SafeConsole
from tests.cli.conftest import Command, fill, progress, record

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31mgone\x08\x7f"
SEEN = "␛]0;owned␇␛[2J\N{REPLACEMENT CHARACTER}31mgone␈␡"


@pytest.fixture
def evil(store: JobStore) -> str:
    failed = record("evil", JobStatus.FAILED, error_code="DATA_ERROR", error_message=EVIL, tool_name=f"t{EVIL}")
    running = record("live", JobStatus.RUNNING, job_type=f"j{EVIL}", progress=progress(1, 2, EVIL))
    fill(store, failed, running)
    store.write_lines([LogLine("evil", 1, 1, time.time(), 30, f"logger{EVIL}", f"said {EVIL}")])
    return "evil"


@pytest.mark.parametrize("words", [("list",), ("show", "evil"), ("logs", "evil"), ("show", "live")])
@pytest.mark.parametrize("json", [False, True])
def test_no_command_prints_the_control_characters_of_a_job(
    command: Command, evil: str, words: tuple[str, ...], json: bool
) -> None:
    """The commands show what a job wrote with its control characters escaped, and as JSON as JSON escapes."""
    result = command("jobs", *words, *(["--json"] if json else []))
    assert not set(result.out) & set("\x1b\x07\x9b\x08\x7f")
    assert ("\\u001b]0;owned" if json else SEEN) in result.out


def test_the_live_view_keeps_its_own_sequences_only(evil: str, store: JobStore) -> None:
    """The live view of a terminal has the colours of its own and none of a job's control characters."""
    file = io.StringIO()
    screen = SafeConsole(file=file, force_terminal=True, width=200, color_system="standard")
    screen.print(render(read_frame(store, JobFilter(), 10), 200))
    shown = file.getvalue()
    assert SEEN in shown
    assert "\x1b[3" in shown  # Colours.
    assert not {"\x1b]", "\x1b[2J", "\x9b", "\x07"} & {shown[i : i + n] for n in (1, 2, 4) for i in range(len(shown))}


@pytest.mark.usefixtures("evil")
def test_errors_are_printed_without_control_characters(command: Command) -> None:
    """The message of an error cannot control the terminal either."""
    result = command("jobs", "show", f"no{EVIL}")
    assert result.code != 0
    assert "owned" in result.err
    assert not set(result.err) & set("\x1b\x07\x9b")


def test_a_line_is_one_line(command: Command, store: JobStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A name with line ends makes no second row, an error no second line, and the rest of a log record is indented."""
    fill(store, record("one", JobStatus.COMPLETED, job_type="a\nforged\r\u2028row"))
    rows = command("jobs", "list").out.splitlines()
    assert [line.split()[0] for line in rows[:2]] == ["ID", "one"]
    assert "a␊forged␍\N{REPLACEMENT CHARACTER}row" in rows[1]
    output.print_error("a\nforged line")
    assert capsys.readouterr().err == "executor-adapter: a␊forged line\n"
    store.write_lines([LogLine("one", 1, 1, time.time(), 30, "mine", "first\r\n12:00:00  forged")])
    assert "first\n    12:00:00  forged" in command("jobs", "logs", "one").out


def test_the_report_of_a_pipeline_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Names and messages of jobs are escaped there too, are no markup, and need not be valid Unicode."""
    lines = JobLines()
    job = Job(function=list, tool_name="[red]t\x1b[2J", metadata={"stage": "collect", "subject": "x\ny[/b]\ud800"})
    for status in (JobStatus.PENDING, JobStatus.CANCELLED):
        if status is not JobStatus.PENDING:
            job.advance(status)
        lines(Transition(job, None, status, 0.0, 0))
    lines.print_result(job, None)
    shown = capsys.readouterr().out
    assert "[red]t␛[2J" in shown
    assert "x␊y[/b]\\ud800" in shown


def test_all_consoles_are_safe() -> None:
    """Every console of the package, and every text for one, is of the kind that escapes."""
    assert isinstance(output.console(), SafeConsole)
    package = Path(executor_adapter.__file__).parent
    modules = {file: file.read_text() for file in package.rglob("*.py") if file.name != "terminal.py"}
    others = re.compile(r"(?<!Safe)\bConsole\(|^from rich\.text import", re.M)
    assert [file for file, text in modules.items() if others.search(text)] == []
