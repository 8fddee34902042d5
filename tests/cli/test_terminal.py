"""The command in a real terminal, as its users see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings
from executor_adapter.store import JobStore
from tests.cli.conftest import fill, progress, record
from tests.cli.terminal import Terminal, needs_tmux, terminal
from tests.waiting import wait_for

pytestmark = needs_tmux

FAILED, RUNNING, PENDING = JobStatus.FAILED, JobStatus.RUNNING, JobStatus.PENDING


@pytest.fixture
def pane(home: Path) -> Iterator[Terminal]:
    with terminal(home) as pane:
        yield pane


def test_a_list_is_a_table_in_colours(pane: Terminal, store: JobStore) -> None:
    """On a terminal `jobs list` is a table with coloured statuses."""
    fill(
        store,
        record("fine-0001", tool_name="radar"),
        record("broken-0002", FAILED, error_code="DATA_ERROR", error_message="no good"),
    )
    pane.run("jobs list")
    shown = pane.wait_for("2 jobs")
    assert re.search(r"^ID +STATUS +FUNCTION +TYPE +TOOL +TRY +CREATED +TOOK +ERROR", shown, re.MULTILINE)
    assert re.search(r"^broken-0002 +failed +collect +job +1 .*DATA_ERROR: no good", shown, re.MULTILINE)
    assert re.search(r"^fine-0001 +completed .*10\.0 s", shown, re.MULTILINE)
    assert re.search("\x1b\\[3[12]m(failed|completed)", pane.screen(colours=True))


def test_in_a_narrow_terminal_jobs_are_told_apart_by_the_ends_of_their_ids(home: Path, store: JobStore) -> None:
    """With 80 columns lists and the live view show the end of an id, and a name whole; the end finds the job."""
    ids = [f"019365b0-1234-7abc-8def-0123{number:08x}" for number in (1, 2, 3)]
    why = {"error_code": "DATA_ERROR", "error_message": "a long message " * 9}
    fill(
        store,
        record(ids[0], FAILED, tool_name="rest-flights", job_type="collection", **why),
        record(ids[1], RUNNING, tool_name="rest-flights", job_type="collection", progress=progress(1, 4, "page")),
        record(ids[2], FAILED, function="module:a_function_with_a_long_name", quarantined=True, **why),
    )
    with terminal(home, columns=80, lines=24) as pane:
        pane.run("jobs list")
        shown = pane.wait_for("3 jobs")
        assert re.search(r"^…00000003 +failed \(quarantined\) +a_function_with_a_long_name +DATA_ERROR", shown, re.M)
        assert re.search(r"^…00000001 +failed ", shown, re.MULTILINE)
        pane.run("jobs show …00000001")
        assert ids[0] in pane.wait_for("max_runtime")
        pane.run("jobs watch")
        row = r"^…00000002 +running +collection +rest-flights +1 .* 25% page"
        pane.wait_for(lambda text: re.search(row, text, re.MULTILINE))
        pane.press("C-c")
        pane.wait_for("ready>")


@pytest.mark.nightly
def test_a_job_runs_and_sets_the_exit_code(pane: Terminal) -> None:
    """`run` works in a terminal and sets the shell's exit code."""
    pane.run("run work_of_a_user:collect --arg flights; echo code $?")
    shown = pane.wait_for("code 0")
    assert '{"records_collected": 3, "year": 2013}' in shown
    assert re.search(r"^completed in 0\.\d\d s", shown, re.MULTILINE)
    pane.run("run work_of_a_user:slow --arg 60 --set max_runtime=0.5 --set retry_attempts=0; echo code $?")
    assert "TIMEOUT_ERROR: ran longer than max_runtime=0.5 s" in pane.wait_for("code 124")


@pytest.mark.nightly
def test_ctrl_c_ends_a_job(pane: Terminal, home: Path) -> None:
    """Ctrl-C in a terminal ends a running job."""
    (home / "ready.py").write_text("import time\ndef wait():\n    print('it runs', flush=True)\n    time.sleep(600)\n")
    pane.run("run ready:wait; echo code $?")
    pane.wait_for("it runs")
    pane.press("C-c")
    pane.wait_for("code 130")


def test_jobs_are_watched_live(pane: Terminal, home: Path) -> None:
    """`jobs watch` shows counts and progress live, and Ctrl-C restores the shell."""
    with JobExecutor(2, config=Settings(), store=f"sqlite:///{home / 'jobs.db'}") as executor:
        job = Job(function="work_of_a_user:slow", args=(60,), pool="process", job_id="slow-1", job_type="crawl")
        executor.submit(job)
        wait_for(lambda: job.status is RUNNING)
        pane.run("jobs watch")
        shown = pane.wait_for(lambda text: re.search(r"slow-1 +running +crawl .*\d+% page \d+", text))
        assert "1 running" in shown
        executor.cancel("slow-1")
        pane.wait_for(lambda text: "1 cancelled" in text and "0 running" in text)
        pane.press("C-c")
        assert "1 cancelled" not in pane.wait_for("ready>")


def test_a_thousand_live_jobs_fit_the_screen(pane: Terminal, store: JobStore) -> None:
    """`jobs watch` shows running jobs first, says how many are hidden, and never scrolls."""
    live = [record(f"run-{n:04}", RUNNING, age=60, progress=progress(n, 1000)) for n in range(200)]
    live += [record(f"wait-{n:04}", PENDING, age=50) for n in range(800)]
    fill(store, *live)
    pane.run("jobs watch")
    shown = pane.wait_for(lambda text: "800 pending" in text and re.search(r"^and 9\d\d more", text, re.MULTILINE))
    assert shown.splitlines()[0].startswith("800 pending   200 running")
    assert len(re.findall(r"^run-\d{4} ", shown, re.MULTILINE)) >= 25
    assert len(shown.rstrip("\n").splitlines()) <= 40
    pane.press("C-c")
    pane.wait_for("ready>")


def test_watching_needs_a_terminal(pane: Terminal, store: JobStore) -> None:
    """`jobs watch` without a terminal is refused with the alternative."""
    fill(store, record("over-0001"))
    pane.run("jobs watch | cat; echo code ${PIPESTATUS[0]}")
    assert "needs a terminal" in pane.wait_for("code 2")
    pane.run("jobs watch --json | cat")
    pane.wait_for('"completed": 1')


@pytest.mark.nightly
def test_doctor_prints_its_findings(pane: Terminal) -> None:
    """Doctor marks each check, says what to do about problems, and exits with code 1 if one failed."""
    pane.run("doctor --no-prefect --function work_of_a_user:collect; echo code $?")
    shown = pane.wait_for("code 0")
    for check in ("system", "configuration", "process pool", "store", "function work_of_a_user:collect"):
        assert re.search(rf"^ok +{check}", shown, re.MULTILINE), check
    pane.run("doctor --no-prefect --function work_of_a_user:nothing; echo code $?")
    assert re.search(r"^FAIL +function work_of_a_user:nothing\n +.*has no attribute", pane.wait_for("code 1"), re.M)


@pytest.mark.nightly
def test_help_and_completion(pane: Terminal) -> None:
    """Help names the commands, and the shell completion can be printed."""
    pane.run("--help")
    shown = pane.wait_for("ready>")
    pane.wait_for("--install-completion")
    pane.run("jobs --help")
    shown = pane.wait_for("watch")
    for name in ("list", "show", "retry", "cancel", "release", "cleanup"):
        assert name in shown
