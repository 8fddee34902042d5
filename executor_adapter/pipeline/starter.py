"""The files of a new pipeline: a configuration, a module with what is its own, a flow, and a file to collect."""

from __future__ import annotations

from pathlib import Path

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import explained

CONFIG = """\
# The settings of this pipeline. Check them:  executor-adapter config check
#                                Run it:      executor-adapter pipeline run

# The folder of the tables, relative to this file.
lake: data

tools:
  shop:
    source: files
    directory: inbox
    summary: my_rules:summarise # sentences for the report
    tables:
      orders:
        file: "*.csv"
        # A window of each month: it is collected and processed by itself.
        partition: day
        period: month
        # Types are declared, and never guessed. A row that does not fit is put aside, with the reason.
        schema:
          columns:
            id: { type: text, nullable: false }
            day: date
            country: text
            price: { type: "decimal(10, 2)", nulls: ["NA"] }
        # What its rows go through: steps of the package, SQL, and functions of your own.
        steps:
          - deduplicate: { key: id }
          - sql: select * replace (upper(country) as country) from {rows}
          - my_rules:reject_free_orders
        group_by: country
        measures: { orders: [id, count], total: [price, sum] }

  # An API is another tool. Its pages are asked for day by day.
  # api:
  #   source: rest
  #   url: https://api.example/v1
  #   credential: { env: API_TOKEN }
  #   paging: { by: offset }
  #   resources:
  #     customers: { path: /customers, params: { since: "{since}", until: "{until}" } }
"""

RULES = '''\
"""What is this pipeline's own. config.yaml names these functions."""

from __future__ import annotations

import duckdb
import pandas as pd

from executor_adapter.pipeline import ConfiguredTable
from executor_adapter.pipeline.flows import Summary


def reject_free_orders(rows: pd.DataFrame) -> pd.DataFrame:
    """Reject orders without a price: a row with a `_reason` is put aside with it."""
    free = rows["price"].fillna(0) == 0
    return rows.assign(_reason=free.map({True: "has no price", False: None}))


def summarise(tables: dict[str, ConfiguredTable]) -> Summary:
    """Return a sentence for the report, from the tables by their names."""
    folder = tables["orders"].processed.folder
    ((count, total),) = duckdb.sql(f"select count(*), sum(price) from read_parquet('{folder}')").fetchall()
    return Summary(lines=[f"{count} orders for {total} in all"])
'''

FLOW = '''\
"""The flow, for deployments: python flow.py serves it, and runs it each morning."""

from executor_adapter.pipeline.flows import pipeline_flow

if __name__ == "__main__":
    pipeline_flow.serve("shop", cron="0 6 * * *")
'''

ORDERS = """\
id,day,country,price
1,2026-01-30,de,12.50
2,2026-01-31,fr,8.00
2,2026-01-31,fr,8.00
3,2026-02-01,de,NA
4,2026-02-02,us,cheap
"""

FILES = {"config.yaml": CONFIG, "my_rules.py": RULES, "flow.py": FLOW, "inbox/orders.csv": ORDERS}
"""The content of each file, by its path."""


def write_starter(folder: Path) -> list[Path]:
    """Write the files of a new pipeline into a folder, and return their paths.

    Raises:
        ConfigurationError: one of them is there already; nothing was written.
    """
    paths = {folder / name: content for name, content in FILES.items()}
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise ConfigurationError(f"{', '.join(there)} is there already: choose an empty folder")
    for path, content in paths.items():
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return list(paths)
