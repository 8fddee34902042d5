"""How soon the jobs of an interrupted flow are recorded as cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.figures import Report, Row
from tests.benchmarks.prefect_server import Kind, prefect_server
from tests.prefect.cancelled_flow import seconds_to_cancelled


@pytest.mark.bench
@pytest.mark.parametrize("kind", ["default", "tuned", "postgresql"])
def test_how_soon_500_jobs_are_recorded_cancelled(tmp_path: Path, report: Report, kind: Kind) -> None:
    """All 500 jobs are recorded as Cancelled within five seconds of SIGINT."""
    with prefect_server(kind, tmp_path) as server:
        took = seconds_to_cancelled(server, 500)
    what = f"seconds from SIGINT until 500 jobs are recorded Cancelled, {kind} server"
    report.add([Row(what=what, ours=f"{took:.1f}", figure=took, form=".1f", at_most=5.0)])
