"""An idle executor uses no CPU: after all pools were used, none of its threads or processes wakes up."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Report, Row
from tests.benchmarks.idle import measure_idle

SECONDS = 10


@pytest.mark.bench
def test_idle(report: Report) -> None:
    """CPU time and wake-ups of an idle executor."""
    measured = apart(measure_idle, SECONDS)
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
    assert measured["tasks"] == 0, "threads or processes started or ended meanwhile"
