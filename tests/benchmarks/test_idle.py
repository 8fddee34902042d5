"""An executor with nothing to do does nothing: after all pools were used, no thread or process of it wakes up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.benchmarks.figures import Report, Row

SECONDS = 10


def measure_idle_executor() -> dict[str, float]:
    """CPU seconds and voluntary context switches over SECONDS."""
    command = [sys.executable, "-m", "tests.benchmarks.idle", str(SECONDS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


@pytest.mark.bench
def test_idle(report: Report) -> None:
    measured = measure_idle_executor()
    what = f"of an idle executor over {SECONDS} s, all pools"
    report.add(
        [
            Row(
                what=f"CPU, % {what}",
                ours=f"{measured['cpu']:.2f} s",
                figure=100 * measured["cpu"] / SECONDS,
                at_most=0.0,
            ),
            Row(
                what=f"wake-ups {what}",
                ours=f"{measured['switches']:.0f} voluntary context switches",
                figure=measured["switches"],
                form=".0f",
                at_most=0,
            ),
        ]
    )
    assert measured["tasks"] == 0, "threads or processes came or went meanwhile"
