"""What jobs log and raise cannot control the terminal of whoever looks at them."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from executor_adapter.cli import output
from executor_adapter.cli.output import SafeConsole
from executor_adapter.cli.watch import View, render
from executor_adapter.job.status import JobStatus
from executor_adapter.store import JobFilter, JobStore, LogLine
from tests.cli.conftest import Command, fill, progress, record

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31mgone\x08\x7f"
SEEN = "]0;owned[2J31mgone"


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
    """The commands show what a job wrote without its control characters, and as JSON with these escaped."""
    result = command("jobs", *words, *(["--json"] if json else []))
    assert not set(result.out) & set("\x1b\x07\x9b\x08\x7f")
    assert ("\\u001b]0;owned" if json else SEEN) in result.out


def test_the_live_view_keeps_its_own_sequences_only(evil: str, store: JobStore) -> None:
    """The live view of a terminal has the colours of its own and none of a job's control characters."""
    file = io.StringIO()
    screen = SafeConsole(file=file, force_terminal=True, width=200, color_system="standard")
    screen.print(render(View(store, JobFilter()).frame(10)))
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


def test_all_consoles_of_commands_are_safe() -> None:
    """Every console that a command prints to is the one without foreign control characters."""
    assert isinstance(output.console(), SafeConsole)
    folder = Path(output.__file__).parent
    plain = [file.name for file in folder.glob("*.py") if " Console(" in file.read_text()]
    assert plain == []
    assert issubclass(SafeConsole, Console)
