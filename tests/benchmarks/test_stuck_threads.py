"""Threads stuck in C for a minute: their jobs time out on time, and the process exits at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.benchmarks.figures import ROUNDS, Figures, Report, Row

THREADS = 8
LIMIT = 0.5
STOP_TIMEOUT = 0.2
"""Seconds that a thread has to stop before it is abandoned."""


def measure_stuck_threads() -> tuple[Figures, Figures]:
    """Measure how late jobs time out, and the seconds from the end of `main` to the end of the process."""
    late: list[float] = []
    exits: list[float] = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.benchmarks.stuck", str(THREADS), str(LIMIT)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        ended = time.monotonic()
        measured = json.loads(done.stdout)
        late += measured["late"]
        exits.append(ended - measured["exit_called"])
    return Figures(tuple(late)), Figures(tuple(exits))


@pytest.mark.bench
def test_stuck_threads(report: Report) -> None:
    """How late the jobs time out, and how soon the process exits."""
    late, exits = measure_stuck_threads()
    report.add(
        [
            Row(
                what=f"s past the limit, threads stuck in C for 60 s, {THREADS} at once: worst",
                ours=late.summary(".3f"),
                figure=max(late.values),
                at_most=STOP_TIMEOUT + 0.3,
                rounds={"ours": late},
            ),
            Row(
                what="s from the end of main to that of the process, threads still stuck: worst",
                ours=exits.summary(".3f"),
                figure=max(exits.values),
                at_most=0.5,
                rounds={"ours": exits},
            ),
        ]
    )
    assert min(late.values) >= 0
