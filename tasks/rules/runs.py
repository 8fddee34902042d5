"""Rules for the run history of a Prefect server: finished flow runs and task runs, and their states."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

from tasks.rules import Rules

_UTC = pd.DatetimeTZDtype("us", "UTC")

_TYPES = [
    "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING",
]  # fmt: skip
_FINAL = ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]


def _in_order(rows: pd.DataFrame) -> pd.Series:
    known = rows["start_time"].notna() & rows["end_time"].notna()
    return ~known | (rows["start_time"] <= rows["end_time"])


def _run_columns(**own: pa.Column) -> dict[str, pa.Column]:
    return {
        "id": pa.Column(str),
        "name": pa.Column(str),
        **own,
        "state_type": pa.Column(str, pa.Check.isin(_FINAL, error="is not a final state")),
        "state_name": pa.Column(str),
        "run_count": pa.Column("Int64", pa.Check.ge(0, error="is negative")),
        "start_time": pa.Column(_UTC, nullable=True),
        "end_time": pa.Column(_UTC),
        "total_run_time": pa.Column(float, pa.Check.ge(0, error="is negative")),
        "tags": pa.Column(str),
    }


def _normalise_runs(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"total_run_time": "seconds"}).assign(
        succeeded=rows["state_type"] == "COMPLETED", retried=rows["run_count"] > 1
    )


def _runs(**own: pa.Column) -> Rules:
    return Rules(
        schema=pa.DataFrameSchema(_run_columns(**own), checks=[pa.Check(_in_order, error="ended before it started")]),
        key=("id",),
        normalise=_normalise_runs,
        group_by=("state_type",),
        measures={
            "runs": ("id", "count"),
            "succeeded": ("succeeded", "sum"),
            "retried": ("retried", "sum"),
            "seconds_sum": ("seconds", "sum"),
            "seconds_max": ("seconds", "max"),
        },
    )


def _states() -> Rules:
    return Rules(
        schema=pa.DataFrameSchema(
            {
                "id": pa.Column(str),
                "parent_id": pa.Column(str),
                "type": pa.Column(str, pa.Check.isin(_TYPES, error="is not a state type")),
                "name": pa.Column(str, nullable=True),
                "timestamp": pa.Column(_UTC),
                "message": pa.Column(str, nullable=True),
            }
        ),
        key=("id",),
        normalise=lambda rows: rows.assign(name=rows["name"].fillna(rows["type"].str.title())),
        group_by=("type", "name"),
        measures={"states": ("id", "count")},
    )


FLOW_RUNS = _runs(flow_id=pa.Column(str), deployment_id=pa.Column(str, nullable=True))
TASK_RUNS = _runs(flow_run_id=pa.Column(str, nullable=True), task_key=pa.Column(str))
FLOW_RUN_STATES = _states()
TASK_RUN_STATES = _states()
