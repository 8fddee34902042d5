"""Progress in a real terminal: it fits, what is printed stands above it, and nothing of it stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.terminal import needs_tmux, terminal

pytestmark = needs_tmux

SIZES = pytest.mark.parametrize(("columns", "lines"), [(80, 24), pytest.param(120, 40, marks=pytest.mark.nightly)])

MAP = """
import logging, pathlib, time
from executor_adapter import JobExecutor
from executor_adapter.config import Settings

logging.basicConfig(level="INFO", format="%(message)s")

def fetch(page):
    if page == 30:
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
    print("printed", page, flush=True)
    logging.info("logged %d", page)
    return 1 / (page - 7)

if __name__ == "__main__":
    with JobExecutor(4, config=Settings()) as executor:
        list(executor.map(fetch, range(40), progress=True, retry_attempts=0, pool="thread"))
    print("over")
"""

LINES = """
import pathlib, threading, time
from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.pipeline.flows.report import JobLines

go = pathlib.Path("go")

def collect(number):
    while number >= 30 and not go.exists():
        time.sleep(0.01)
    return {"records_collected": 1000, "status": "already_collected"}

lines = JobLines()
with JobExecutor(40, config=Settings(), observers=[lines]) as executor, lines.bar("collection"):
    jobs = [
        Job(function=collect, args=(n,), tool_name="flights", pool="thread",
            metadata={"stage": "collect", "subject": f"flights of some longer name 2013-{n:02}"})
        for n in range(70)
    ]
    futures = [executor.submit(job) for job in jobs]
    for future in futures:
        lines.print_result(future.job, future.result())
print("over")
"""


@SIZES
def test_a_bar_is_one_line_below_what_is_printed(home: Path, columns: int, lines: int) -> None:
    """A bar is the last line while jobs run; prints and logs stand above it, and the end is one line of counts."""
    (home / "pages.py").write_text(MAP)
    with terminal(home, columns=columns, lines=lines) as pane:
        pane.type("python pages.py")
        shown = pane.wait_for(lambda text: re.search(r"39 of 40 done  1 failed", text)).rstrip().splitlines()
        assert re.match(r"fetch  ━{5,}  39 of 40 done  1 failed ", shown[-1])
        assert len(shown[-1]) <= columns
        (home / "go").touch()
        pane.wait_for("over")
        history = pane.history()
    assert "━" not in history
    assert re.search(r"^fetch: 40 of 40 done, 1 failed, .*\nover$", history, re.MULTILINE)
    for page in range(40):
        assert re.search(rf"^printed {page}$", history, re.MULTILINE)
        assert re.search(rf"^logged {page}$", history, re.MULTILINE)


def test_a_job_of_the_shell_shows_what_is_waited_for(home: Path) -> None:
    """`run` says on a terminal that its job runs, how far it is, and leaves nothing of that behind."""
    with terminal(home, columns=80, lines=24) as pane:
        pane.run("run work_of_a_user:slow --arg 1.5")
        pane.wait_for(lambda text: re.search(r"^slow  ━+  \d+ of 30 done .* page \d+ ", text, re.MULTILINE))
        pane.wait_for("completed in 1.")
        assert "━" not in pane.history()


@SIZES
def test_a_pipeline_shows_how_far_it_is(home: Path, columns: int, lines: int) -> None:
    """One bar for the jobs that run, below a line with the whole state of each that is done."""
    (home / "lines.py").write_text(LINES)
    with terminal(home, columns=columns, lines=lines) as pane:
        pane.type("python lines.py")
        pane.wait_for(lambda text: re.search(r"^collection  ━{5,}  30 of 70 done ", text, re.MULTILINE))
        (home / "go").touch()
        pane.wait_for("over")
        history = pane.history()
    assert history.replace("\n", "").count(": completed (already_collected), 1,000 rows") == 70
    assert "━" not in history
    assert re.search(r"^collection: 70 of 70 done, ", history, re.MULTILINE)
