"""Threads stuck in C for a minute: their jobs end on time, and the process exits at once when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.benchmarks.figures import ROUNDS, Figures, Report, Row

THREADS = 8
LIMIT = 0.5
PATIENCE = 0.2
"""Seconds that a thread is given before it is written off."""


def measure_stuck_threads() -> tuple[Figures, Figures]:
    """Seconds past the limit at which jobs ended; seconds from the end of `main` to that of the process."""
    late: list[float] = []
    exits: list[float] = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.benchmarks.stuck", str(THREADS), str(LIMIT)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        ended = time.monotonic()
        measured = json.loads(done.stdout)
        late += measured["late"]
        exits.append(ended - measured["asked"])
    return Figures(tuple(late)), Figures(tuple(exits))


@pytest.mark.bench
def test_stuck_threads(report: Report) -> None:
    late, exits = measure_stuck_threads()
    report.add(
        [
            Row(
                what=f"s past the limit, threads stuck in C for 60 s, {THREADS} at once: worst",
                ours=late.told(".3f"),
                figure=max(late.values),
                at_most=PATIENCE + 0.3,
            ),
            Row(
                what="s from the end of main to that of the process, threads still stuck: worst",
                ours=exits.told(".3f"),
                figure=max(exits.values),
                at_most=0.5,
            ),
        ]
    )
    assert min(late.values) >= 0
