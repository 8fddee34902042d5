"""The run that finds one changed row in a table of PostgreSQL, whose rows were all collected and processed before.

The variable CHANGED_ROWS is the number of rows of the table.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from tests.benchmarks.figures import Report
from tests.benchmarks.usage import Usage, row, usage
from tests.pipeline.databases import database

ROWS = int(os.environ.get("CHANGED_ROWS", "1000000"))
ROUNDS = 3
COLUMNS = {
    "id": "integer",
    "changed_at": "timestamp",
    "country": "text",
    "customer": "integer",
    "amount": "decimal(12, 2)",
}
FILL = f"""CREATE TABLE {{table}} AS SELECT
    i::bigint AS id,
    timestamptz '2026-01-01 00:00Z' + i * interval '1 second' AS changed_at,
    'country ' || i % 142 AS country,
    (i * 7919 % 1000)::integer AS customer,
    (i * 31 % 1000000 / 100.0)::numeric(12, 2) AS amount
FROM generate_series(1::bigint, {ROWS}) AS numbers(i)"""
CHANGE = """UPDATE {table}
SET amount = amount + 1, changed_at = (SELECT max(changed_at) + interval '1 second' FROM {table})
WHERE id = {changed}"""
TOTAL = "SELECT count(*), sum(amount), count(DISTINCT country) FROM {table}"


def write_config(directory: Path, url: str, table: str) -> Path:
    """Write a configuration that asks for what has changed, and keeps the latest of each id."""
    sales = {
        "table": table,
        "key": "id",
        "cursor": "changed_at",
        "schema": {"columns": COLUMNS},
        "steps": [{"deduplicate": {"key": "id", "order_by": "changed_at"}}],
    }
    shop = {"source": "sql", "url": url, "tables": {"sales": sales}}
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump({"lake": str(directory / "lake"), "tools": {"shop": shop}}))
    return config


def measured(engine: sa.Engine, table: str, config: Path) -> list[Usage]:
    """Return what the run of all rows took, and each that found one changed row. Each has the rows of the database."""
    statements = [FILL, *(CHANGE for _ in range(ROUNDS))]
    runs = []
    for changed, statement in enumerate(statements):
        with engine.begin() as connection:
            connection.execute(sa.text(statement.format(table=table, changed=changed)))
            expected = connection.execute(sa.text(TOTAL.format(table=table))).one()
        runs.append(usage("tests.benchmarks.sales", "config", str(config)))
        assert runs[-1].printed == f"{tuple(expected)}\n"
    return runs


@pytest.mark.bench
def test_a_changed_row(report: Report, tmp_path: Path) -> None:
    """The seconds of a program that does the jobs of such a run, one after another, are bounded."""
    with database("postgresql", tmp_path) as (url, engine, prefix):
        all_rows, *again = measured(engine, f"{prefix}sales", write_config(tmp_path, url, f"{prefix}sales"))
    beside = {"all rows": [all_rows]}
    what = f"one changed row in {ROWS:,} of PostgreSQL"
    report.add(
        [
            row(f"{what}: seconds", "wall", again, beside, 1.0, ".2f"),
            row(f"{what}: CPU seconds", "cpu", again, beside, form=".2f"),
        ]
    )
