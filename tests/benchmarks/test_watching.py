"""Watching is cheap: a frame of `jobs watch`, the figures kept per job, and the statistics of all jobs."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.watched import measure_append, measure_frames, measure_question


@pytest.mark.bench
def test_watching(report: Report) -> None:
    """The time of a frame, of keeping figures, and of the statistics."""
    frames = Figures(tuple(apart(measure_frames, 100)))
    kept = Figures(tuple(apart(measure_append, 1_000_000) for _ in range(5)))
    asked = Figures(tuple(apart(measure_question) for _ in range(5)))
    report.add(
        [
            Row(
                what="a frame of jobs watch, ms, 95 of 100: 1,000 live of 20,000 jobs, SQLite",
                ours=frames.summary(".0f", 1e3),
                figure=frames.percentile(0.95) * 1e3,
                form=".0f",
                at_most=100,
                rounds={"ours": frames},
            ),
            Row(
                what="figures kept per job, microseconds",
                ours=kept.summary(".2f"),
                figure=kept.median,
                at_most=1.0,
                rounds={"ours": kept},
            ),
            Row(what="statistics, ms", ours=asked.summary(".1f"), figure=asked.median, form=".1f", at_most=10.0),
        ]
    )
