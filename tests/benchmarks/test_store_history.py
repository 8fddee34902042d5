"""A long history in SQLite: listed with a filter and paging, and half of it removed while jobs run.

The variable HISTORY_JOBS sets another number than a million.
"""

from __future__ import annotations

import os

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Report, Row
from tests.benchmarks.stored import LISTS, measure_history

JOBS = int(os.environ.get("HISTORY_JOBS", "1000000"))


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_store_history(report: Report) -> None:
    """Lists take at most 100 ms, and jobs are not held up by a clean-up."""
    measured = apart(measure_history, JOBS)
    size = f"{JOBS:,} jobs, {measured['megabytes']:,.0f} MB"
    lists = [
        Row(what=f"ms, list of 50 with the total: {name}", ours=size, figure=measured[name], form=".1f", at_most=100)
        for name in LISTS
    ]
    cleaned = f"{measured['deleted']:,.0f} deleted in {measured['cleanup seconds']:.0f} s"
    during = [
        Row(
            what=what,
            ours=cleaned,
            beside=f"{measured[f'{name}, idle']:.1f} without a clean-up",
            figure=measured[name],
            form=".1f",
            at_most=50,
        )
        for what, name in (
            ("ms, longest run of a no-op job during a clean-up", "longest run"),
            ("ms, longest wait of a job's record during a clean-up", "longest record"),
        )
    ]
    report.add([*lists, *during])
    assert measured["deleted"] > 0
