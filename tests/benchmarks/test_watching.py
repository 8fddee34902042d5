"""Watching costs little: a frame of `jobs watch`, what is kept of each job, and a question about all of them."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.watched import measure_append, measure_frames, measure_question


@pytest.mark.bench
def test_watching(report: Report) -> None:
    frames = Figures(tuple(apart(measure_frames, 100)))
    kept = Figures(tuple(apart(measure_append, 1_000_000) for _ in range(5)))
    asked = Figures(tuple(apart(measure_question) for _ in range(5)))
    report.add(
        [
            Row(
                what="a frame of jobs watch, ms, 95 of 100: 1,000 live of 20,000 jobs, SQLite",
                ours=frames.told(".0f", 1e3),
                figure=frames.percentile(0.95) * 1e3,
                form=".0f",
                at_most=100,
            ),
            Row(
                what="figures kept of a job, microseconds",
                ours=kept.told(".2f"),
                figure=kept.median,
                at_most=1.0,
            ),
            Row(what="figures asked for, ms", ours=asked.told(".1f"), figure=asked.median, form=".1f", at_most=10.0),
        ]
    )
