"""The cost of a store per job, compared with the memory store and with none."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.stored import measure_store_overhead
from tests.contract.stores.databases import postgresql_url

JOBS = 10_000


@pytest.mark.bench
def test_store_overhead(report: Report) -> None:
    """The microseconds per job that each store adds."""
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
        what=f"microseconds per no-op job more in {store} than in {other}",
        ours=f"{mine.summary()}, more by {more.summary()}",
        beside=f"{beside.summary()}, ratio {mine.over(beside).summary('.2f')}",
        figure=more.median,
        form=".0f",
        at_most=60,
        rounds={store: mine, other: beside},
    )
