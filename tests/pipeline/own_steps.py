"""Steps of one's own and a pandera schema, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.compute as pc

if TYPE_CHECKING:
    import duckdb
    import polars as pl

ORDERS = pa.DataFrameSchema(
    {
        "id": pa.Column("Int64", pa.Check.gt(0, error="is not positive")),
        "city": pa.Column(nullable=True),
        "price": pa.Column("Float64", pa.Check.le(1000, error="is too much")),
    },
    checks=[pa.Check(lambda rows: (rows["city"] != "Nowhere").fillna(True), error="is sent nowhere")],
)
STRICT = pa.DataFrameSchema({"id": pa.Column()}, strict=True)
SOME = pa.DataFrameSchema({"id": pa.Column("Int64", pa.Check.gt(0, error="is not positive"))})

LATE = pa.DataFrameSchema(
    {
        "price": pa.Column(checks=pa.Check.lt(0)),
        "cost": pa.Column(checks=pa.Check.lt(0, error="is not below 0")),
        "day": pa.Column(checks=pa.Check(lambda days: days.astype(str) >= "2030", error="must be in 2030")),
        "at": pa.Column(checks=pa.Check(lambda times: times.astype(str) >= "2030", error="is too early")),
        "text": pa.Column(checks=pa.Check.str_length(max_value=9)),
    }
)


def keep_cheap(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["price"] < 100]


def reject_free(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(_reason=(rows["price"].fillna(0) == 0).map({True: "is free", False: None}))


def below(rows: pd.DataFrame, *, column: str, limit: float) -> pd.DataFrame:
    """Reject rows at or above a limit."""
    high = (rows[column] >= limit).fillna(False)
    return rows.assign(_reason=high.map({True: f"{column} is not below {limit:g}", False: None}))


def sort_and_number(rows):  # type: ignore[no-untyped-def]
    """Order all rows by price, and give each its rank."""
    rows = rows.sort_values("price")
    return rows.assign(rank=range(1, len(rows) + 1))


def count_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(size=len(rows))


def with_polars(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return rows.with_columns(pl.col("price") * 2)


def with_columns(rows: pyarrow.Table) -> dict[str, list[object]]:
    return rows.to_pydict()


def with_pyarrow(rows: pyarrow.Table) -> pyarrow.Table:
    return rows.filter(pc.greater(rows["price"], 15))


def with_duckdb(rows: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    return rows.filter("price > 15")


def sums_by_city(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby("city", dropna=False, as_index=False)["price"].sum()


def renumber(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(_row=rows["_row"] + 100)


def double(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows, rows])


def return_number(rows: pd.DataFrame) -> int:
    return len(rows)


def return_nothing(rows: pd.DataFrame) -> None:
    rows["price"] = 0


def return_a_plan(rows: pl.DataFrame) -> pl.LazyFrame:
    return rows.lazy()


def misspell(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["prise"] > 0]


def fail(rows: pd.DataFrame) -> pd.DataFrame:
    raise ConnectionError("cut off")


def none_of_it(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(note=None)


def same(rows: pyarrow.Table) -> pyarrow.Table:
    """What it is given."""
    return rows
