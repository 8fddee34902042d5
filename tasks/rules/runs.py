"""Rules for the run history of a Prefect server: finished flow runs and task runs, and their states."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

_TYPES = [
    "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING",
]  # fmt: skip
_FINAL = ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]


def _in_order(rows: pd.DataFrame) -> pd.Series:
    known = rows["start_time"].notna() & rows["end_time"].notna()
    return ~known | (rows["start_time"] <= rows["end_time"]).fillna(True)


def _runs(**own: pa.Column) -> pa.DataFrameSchema:
    columns = {
        "id": pa.Column(),
        "name": pa.Column(),
        **own,
        "state_type": pa.Column(None, pa.Check.isin(_FINAL, error="is not a final state")),
        "state_name": pa.Column(),
        "run_count": pa.Column(None, pa.Check.ge(0, error="is negative")),
        "start_time": pa.Column(nullable=True),
        "end_time": pa.Column(),
        "total_run_time": pa.Column(None, pa.Check.ge(0, error="is negative")),
        "tags": pa.Column(),
    }
    return pa.DataFrameSchema(columns, checks=[pa.Check(_in_order, error="ended before it started")])


FLOW_RUNS = _runs(flow_id=pa.Column(), deployment_id=pa.Column(nullable=True))
TASK_RUNS = _runs(flow_run_id=pa.Column(nullable=True), task_key=pa.Column())
STATES = pa.DataFrameSchema(
    {
        "id": pa.Column(),
        "parent_id": pa.Column(),
        "type": pa.Column(None, pa.Check.isin(_TYPES, error="is not a state type")),
        "name": pa.Column(nullable=True),
        "timestamp": pa.Column(),
        "message": pa.Column(nullable=True),
    }
)


def normalise_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return runs with their seconds, and whether they succeeded and were retried."""
    return rows.rename(columns={"total_run_time": "seconds"}).assign(
        succeeded=rows["state_type"] == "COMPLETED", retried=rows["run_count"] > 1
    )


def normalise_states(rows: pd.DataFrame) -> pd.DataFrame:
    """Return states of which each has a name."""
    return rows.assign(name=rows["name"].fillna(rows["type"].str.title()))
