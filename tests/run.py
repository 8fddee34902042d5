"""Runs all tests as `make test` does, in groups, and at the end prints a line that adds them up.

Arguments go to pytest: python -m tests.run -n 4 -k name -x

The tests that import Prefect run beside those that do not, in a run of their own whose output is printed when it has
ended: they wait for Prefect's server, which has one process, while the others compute. With `-n 0` nothing runs beside.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.servers import RUN_VARIABLE, processes_of, running
from tests.waiting import PATIENCE

GROUPS = ("checks", "tests", "prefect", "alone")
"""The groups of tests, in their order; `tests/scheduling.py` says which files are in them."""

BESIDE = {"tests": "prefect"}
"""The groups that run while another does."""

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
    options = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    options.add_argument("--group")
    options.add_argument("-n", type=int, default=0)
    given, _ = options.parse_known_args(arguments)
    beside = {} if given.group or given.n == 0 else BESIDE
    worst = 0
    os.environ[RUN_VARIABLE] = run = uuid4().hex
    for group in [given.group] if given.group else [each for each in GROUPS if each not in beside.values()]:
        alone = ["--maxprocesses=1"] if group == "alone" else []
        with running_beside(beside.get(group), arguments, given.n, totals) as other:
            codes = [pytest.main([*OPTIONS, *alone, "--group", group, *arguments], plugins=[totals])]
            if other is not None and not is_over(codes, totals):
                codes.append(end_of(other))
        worst = max(worst, *(int(code) for code in codes if code != pytest.ExitCode.NO_TESTS_COLLECTED), 0)
        if is_over(codes, totals):
            break
    end_all_of(run)
    outcomes = ", ".join(f"{totals.outcomes[name]} {name}" for name in COUNTED if totals.outcomes[name])
    print(f"===== {outcomes or 'no tests ran'} in {time.monotonic() - started:.2f}s =====")
    return worst if outcomes else int(pytest.ExitCode.NO_TESTS_COLLECTED)


def is_over(codes: list[int], totals: Totals) -> bool:
    """Return whether no further tests are to run: after Ctrl-C, or after a failure where that ends a run."""
    failed = set(codes) - {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    return pytest.ExitCode.INTERRUPTED in codes or (totals.stops_early and bool(failed))


@contextmanager
def running_beside(
    group: str | None, arguments: list[str], processes: int, totals: Totals
) -> Iterator[subprocess.Popen[bytes] | None]:
    """Run a group in a process, if there is one, which is interrupted in the end, unless it was waited for.

    It gets half as many processes of its own as the other.

    Then what it has printed is printed, and its last line added to the totals.
    """
    if group is None:
        yield None
        return
    command = [sys.executable, "-m", "tests.run", "--group", group, *arguments, "-n", str(max(1, processes // 2))]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"
        try:
            with running(command, env=dict(os.environ), cwd=Path.cwd(), log=log, patience=PATIENCE) as process:
                yield process
        finally:
            *said, total = log.read_text(errors="replace").splitlines() or [""]
            print(*said, sep="\n", flush=True)
            for count, name in re.findall(r"(\d+) (\w+)", total.partition(" in ")[0]):
                totals.outcomes[name] += int(count)


def end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, or for Ctrl-C; return its exit code."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        return int(pytest.ExitCode.INTERRUPTED)


def end_all_of(run: str) -> None:
    """Kill what the tests of this run have left, as those do that Ctrl-C interrupts, and say what that was."""
    for process in processes_of(run):
        print("ended, since a test has left it:", " ".join(process.command)[:200].strip())
        with suppress(ProcessLookupError):
            os.kill(int(process.pid), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
