"""From the import of the package until the first result of a program, compared with concurrent.futures."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Report, Row, in_turn
from tests.benchmarks.first_job import FirstPool, measure_bare, measure_ours

PROCESSES = 9


@pytest.mark.bench
@pytest.mark.parametrize("pool", ["process", "thread"])
def test_first_job(pool: FirstPool, report: Report) -> None:
    """The import, the executor and its first no-op job, in new processes."""
    measured = in_turn(
        {"ours": lambda: apart(measure_ours, pool), "concurrent.futures": lambda: apart(measure_bare, pool)},
        rounds=PROCESSES,
    )
    ours = measured["ours"]
    report.add(
        [
            Row(
                what=f"ms from the import to the first result, pool {pool}, {PROCESSES} programs: p50",
                ours=ours.summary(".0f", 1e3),
                beside=measured["concurrent.futures"].summary(".0f", 1e3),
                figure=ours.median * 1e3,
                form=".0f",
                rounds=measured,
            )
        ]
    )
