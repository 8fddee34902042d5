"""How soon the jobs of a flow that is told to end are known as cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.figures import Report, Row
from tests.prefect.ending import seconds_to_cancelled


@pytest.mark.bench
def test_how_soon_500_jobs_are_recorded_cancelled(tmp_path: Path, report: Report) -> None:
    took = seconds_to_cancelled(tmp_path, 500)
    what = "seconds from SIGINT until 500 jobs are recorded Cancelled, default server"
    report.add([Row(what=what, ours=f"{took:.1f}", figure=took, form=".1f", at_most=5.0)])
