"""What is true of a flight: the pandera schema by which both the script and the pipeline check them."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

DAY = 24 * 60


def _is_clock(clock: pd.Series) -> pd.Series:
    return clock.between(0, 2400) & (clock % 100 < 60)


def _fits(rows: pd.DataFrame, actual: str, scheduled: str, delay: str) -> pd.Series:
    minutes = [rows[name] // 100 * 60 + rows[name] % 100 for name in (actual, scheduled)]
    # The clock restarts at midnight, so differences of whole days do not count.
    return ((minutes[0] - minutes[1] - rows[delay]) % DAY).fillna(0) == 0


def _integer(low: int, high: int, *, nullable: bool = False) -> pa.Column:
    return pa.Column("Int64", pa.Check.between(low, high, error=f"is not in {low} to {high}"), nullable=nullable)


def _clock(*, nullable: bool = False) -> pa.Column:
    return pa.Column("Int64", pa.Check(_is_clock, error="is not a time of day (HHMM)"), nullable=nullable)


def _text(pattern: str, *, nullable: bool = False) -> pa.Column:
    return pa.Column(str, pa.Check.str_matches(pattern, error=f"does not match {pattern}"), nullable=nullable)


SCHEMA = pa.DataFrameSchema(
    {
        "year": _integer(1903, 2100),
        "month": _integer(1, 12),
        "day": _integer(1, 31),
        "dep_time": _clock(nullable=True),
        "sched_dep_time": _clock(),
        "dep_delay": _integer(-120, 3 * DAY, nullable=True),
        "arr_time": _clock(nullable=True),
        "sched_arr_time": _clock(),
        "arr_delay": _integer(-180, 3 * DAY, nullable=True),
        "carrier": _text("^[A-Z0-9]{2}$"),
        "flight": _integer(1, 9999),
        "tailnum": _text("^N[0-9A-Z]{1,5}$", nullable=True),
        "origin": _text("^[A-Z0-9]{3}$"),
        "dest": _text("^[A-Z0-9]{3}$"),
        "air_time": _integer(1, DAY, nullable=True),
        "distance": _integer(1, 12_500),
        "minute": _integer(0, 59),
        "time_hour": pa.Column(pd.DatetimeTZDtype("us", "UTC")),
    },
    checks=[
        pa.Check(lambda rows: rows["dep_time"].isna() == rows["dep_delay"].isna(), error="has half a departure"),
        pa.Check(lambda rows: rows["arr_delay"].isna() == rows["air_time"].isna(), error="has half an arrival"),
        pa.Check(lambda rows: _fits(rows, "dep_time", "sched_dep_time", "dep_delay"), error="dep_delay is wrong"),
        pa.Check(lambda rows: _fits(rows, "arr_time", "sched_arr_time", "arr_delay"), error="arr_delay is wrong"),
    ],
)
