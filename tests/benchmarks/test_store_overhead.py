"""What it costs a job to be remembered: batched, beside the memory store and none."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.stored import measure_store_overhead
from tests.contract.stores.databases import postgresql_url

JOBS = 10_000


@pytest.mark.bench
def test_store_overhead(report: Report) -> None:
    with postgresql_url() as url:
        measured = apart(measure_store_overhead, JOBS, {"postgresql": url})
    report.add(
        [
            _row("SQLite", "memory", measured["sqlite"], measured["memory"]),
            _row("SQLite", "none", measured["sqlite"], measured["none"]),
            _row("memory", "none", measured["memory"], measured["none"]),
            _row("PostgreSQL", "memory", measured["postgresql"], measured["memory"]),
        ]
    )
    assert min(measured["sqlite"].values) > 0


def _row(store: str, other: str, mine: Figures, beside: Figures) -> Row:
    more = Figures(tuple(a - b for a, b in zip(mine.values, beside.values, strict=True)))
    return Row(
        what=f"microseconds a no-op job more in {store} than in {other}: {more.told()}",
        ours=mine.told(),
        beside=f"{beside.told()}, ratio {mine.over(beside).told('.2f')}",
        figure=more.median,
        form=".0f",
        at_most=60,
    )
