"""Stages, and a pandera schema, as a user writes them: the tests name them by `module:name`."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

from executor_adapter.pipeline.stages.base import Stage, StageOutput

ORDERS = pa.DataFrameSchema(
    {
        "id": pa.Column("Int64", pa.Check.ge(1, error="is not positive")),
        "city": pa.Column(str, nullable=True),
        "price": pa.Column("Float64", pa.Check.lt(1000, error="is too much"), nullable=False),
    },
    checks=pa.Check(lambda rows: rows["city"].fillna("") != "Nowhere", error="is sent nowhere"),
)


def keep_cheap(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows whose price is below 100."""
    return rows[(rows["price"] < 100).fillna(False)]


def lose_index(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with an index of their own."""
    return rows.reset_index(drop=True)


def double(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each row twice."""
    return pd.concat([rows, rows])


def lose_silently(rows: pd.DataFrame) -> StageOutput:
    """Return a part of the rows without a word of the others."""
    return StageOutput(rows=rows.head(1))


def return_number(rows: pd.DataFrame) -> int:
    """Return no rows."""
    return len(rows)


def misspell(rows: pd.DataFrame) -> pd.DataFrame:
    """Ask for a column that is not there."""
    return rows[rows["prise"] > 0]


def with_limit(*, column: str, limit: float) -> Stage:
    """Return a stage that rejects rows at or above a limit."""

    def stage(rows: pd.DataFrame) -> StageOutput:
        wrong = (rows[column] >= limit).fillna(False).astype(bool)
        reasons = pd.Series(f"{column} is not below {limit:g}", index=rows.index[wrong], dtype="object")
        return StageOutput(rows=rows[~wrong], rejected=reasons)

    return stage


def note_nothing(rows: pd.DataFrame) -> pd.DataFrame:
    """Add a column that has no value in any row of the first batch."""
    return rows.assign(note=[None if label <= 2 else "x" for label in rows.index])
