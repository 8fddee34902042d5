"""Runs all tests as `make test` does: one group after the other, and at the end a line that adds them up.

Arguments go to pytest: python -m tests.run -n 4 -k name -x
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest

from tests.servers import RUN_VARIABLE, processes_of

GROUPS = ("checks", "tests", "prefect", "alone")
"""The groups of tests, in their order; `tests/scheduling.py` says which files are in them."""

OPTIONS = ("--dist=load", "--maxschedchunk=1", "--max-worker-restart=0", "-oconsole_output_style=classic")
"""A file at a time for each process; how many tests there are is not known before they run."""

COUNTED = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")


class Totals:
    """Counts the outcomes of all sessions."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stops_early = False

    def pytest_configure(self, config: pytest.Config) -> None:
        self.stops_early = bool(config.getoption("maxfail"))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self.outcomes.update({name: len(terminalreporter.stats.get(name, ())) for name in COUNTED})


def main(arguments: list[str]) -> int:
    """Run the sessions; return the exit code of pytest for them together."""
    started = time.monotonic()
    totals = Totals()
    worst = 0
    os.environ[RUN_VARIABLE] = run = uuid4().hex
    for group in arguments[arguments.index("--group") + 1 :][:1] if "--group" in arguments else GROUPS:
        alone = ["--maxprocesses=1"] if group == "alone" else []
        code = pytest.main([*OPTIONS, *alone, "--group", group, *arguments], plugins=[totals])
        if code != pytest.ExitCode.NO_TESTS_COLLECTED:
            worst = max(worst, int(code))
        if code == pytest.ExitCode.INTERRUPTED or (worst and totals.stops_early):
            break
    end_all_of(run)
    outcomes = ", ".join(f"{totals.outcomes[name]} {name}" for name in COUNTED if totals.outcomes[name])
    print(f"===== {outcomes or 'no tests ran'} in {time.monotonic() - started:.2f}s =====")
    return worst if outcomes else int(pytest.ExitCode.NO_TESTS_COLLECTED)


def end_all_of(run: str) -> None:
    """Kill what the tests of this run have left, as those do that Ctrl-C interrupts, and say what that was."""
    for process in processes_of(run):
        print("ended, since a test has left it:", " ".join(process.command)[:200].strip())
        with suppress(ProcessLookupError):
            os.kill(int(process.pid), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
