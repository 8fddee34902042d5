"""Rules for the flights that left New York in 2013 and their weather, planes and airports.

Unusual but true values are valid: a cancelled flight has no dep_time, a diverted one no arr_delay, midnight is 2400,
and an airline's own fleet number can replace the tail number. Impossible values are rejected.
"""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

_DAY = 24 * 60


def _minutes(clock: pd.Series) -> pd.Series:
    """Return the minutes since midnight of a time written as HHMM."""
    return clock // 100 * 60 + clock % 100


def _is_clock(clock: pd.Series) -> pd.Series:
    return clock.between(0, 2400) & (clock % 100 < 60)


def _fits(rows: pd.DataFrame, actual: str, scheduled: str, delay: str) -> pd.Series:
    # The clock restarts at midnight, so differences of whole days do not count.
    drift = (_minutes(rows[actual]) - _minutes(rows[scheduled]) - rows[delay]) % _DAY
    return drift.fillna(0) == 0


def _clock(*, nullable: bool = False) -> pa.Column:
    return pa.Column("Int64", pa.Check(_is_clock, error="is not a time of day (HHMM)"), nullable=nullable)


def _between(low: float, high: float) -> pa.Check:
    return pa.Check.between(low, high, error=f"is not between {low} and {high}")


def _matches(pattern: str, error: str) -> pa.Check:
    return pa.Check.str_matches(pattern, error=error)


def _airport() -> pa.Column:
    return pa.Column(None, _matches(r"^[A-Z0-9]{3}$", "is not an FAA code of an airport"))


_DATE = {
    "year": pa.Column("Int64", _between(1903, 2100)),
    "month": pa.Column("Int64", _between(1, 12)),
    "day": pa.Column("Int64", _between(1, 31)),
}
_TAIL = _matches(r"^N[0-9A-Z]{1,5}$", "is not an American registration, which begins with N")


def _as_duration(minutes: pd.Series) -> pd.Series:
    # In Arrow's types, as the times are: pandas would convert these one by one.
    return (minutes.astype("int64[pyarrow]") * 60_000_000).astype("duration[us][pyarrow]")


def normalise_flights(rows: pd.DataFrame) -> pd.DataFrame:
    """Return flights with their times of departure, and whether they were cancelled or diverted."""
    scheduled = rows["time_hour"] + _as_duration(rows["minute"])
    small = {name: rows[name].astype("Int16") for name in ("dep_delay", "arr_delay", "air_time", "distance", "flight")}
    return pd.DataFrame(
        {
            "_row": rows["_row"],
            **{name: rows[name].astype("int16") for name in ("year", "month", "day")},
            "scheduled_departure": scheduled,
            "departure": scheduled + _as_duration(rows["dep_delay"]),
            **{name: rows[name] for name in ("carrier", "tailnum", "origin", "dest")},
            **small,
            "cancelled": rows["dep_time"].isna(),
            "diverted": rows["dep_time"].notna() & rows["arr_delay"].isna(),
        }
    )


FLIGHTS = pa.DataFrameSchema(
    {
        **_DATE,
        "dep_time": _clock(nullable=True),
        "sched_dep_time": _clock(),
        "dep_delay": pa.Column("Int64", _between(-120, 3 * _DAY), nullable=True),
        "arr_time": _clock(nullable=True),
        "sched_arr_time": _clock(),
        "arr_delay": pa.Column("Int64", _between(-180, 3 * _DAY), nullable=True),
        "carrier": pa.Column(None, _matches(r"^[A-Z0-9]{2}$", "is not an IATA code of an airline")),
        "flight": pa.Column("Int64", _between(1, 9999)),
        "tailnum": pa.Column(None, _TAIL, nullable=True),
        "origin": _airport(),
        "dest": _airport(),
        "air_time": pa.Column("Int64", _between(1, _DAY), nullable=True),
        "distance": pa.Column("Int64", _between(1, 12_500)),
        "minute": pa.Column("Int64", _between(0, 59)),
        "time_hour": pa.Column(),
    },
    checks=[
        pa.Check(
            lambda rows: rows["dep_time"].isna() == rows["dep_delay"].isna(),
            error="has only one of dep_time and dep_delay",
        ),
        pa.Check(
            lambda rows: rows["arr_delay"].isna() == rows["air_time"].isna(),
            error="has only one of arr_delay and air_time",
        ),
        pa.Check(
            lambda rows: _fits(rows, "dep_time", "sched_dep_time", "dep_delay"),
            error="dep_delay is not the difference of dep_time and sched_dep_time",
        ),
        pa.Check(
            lambda rows: _fits(rows, "arr_time", "sched_arr_time", "arr_delay"),
            error="arr_delay is not the difference of arr_time and sched_arr_time",
        ),
    ],
)


WEATHER = pa.DataFrameSchema(
    {
        "origin": _airport(),
        **_DATE,
        "hour": pa.Column("Int64", _between(0, 23)),
        "temp": pa.Column(float, _between(-80, 134), nullable=True),
        "dewp": pa.Column(float, _between(-120, 100), nullable=True),
        "humid": pa.Column(float, _between(0, 100), nullable=True),
        "wind_dir": pa.Column(float, _between(0, 360), nullable=True),
        # The strongest gust ever measured was 253 miles an hour, on Barrow Island in 1996.
        "wind_speed": pa.Column(float, _between(0, 253), nullable=True),
        "wind_gust": pa.Column(float, _between(0, 253), nullable=True),
        "precip": pa.Column(float, _between(0, 12.1), nullable=True),
        "pressure": pa.Column(float, _between(850, 1090), nullable=True),
        "visib": pa.Column(float, _between(0, 100), nullable=True),
        "time_hour": pa.Column(),
    }
)


PLANES = pa.DataFrameSchema(
    {
        "tailnum": pa.Column(None, _TAIL),
        "year": pa.Column("Int64", _between(1903, 2100), nullable=True),
        "type": pa.Column(),
        "manufacturer": pa.Column(),
        "model": pa.Column(),
        "engines": pa.Column("Int64", _between(1, 8)),
        "seats": pa.Column("Int64", _between(1, 900)),
        "speed": pa.Column("Int64", _between(1, 1500), nullable=True),
        "engine": pa.Column(),
    }
)


AIRPORTS = pa.DataFrameSchema(
    {
        "faa": _airport(),
        "name": pa.Column(),
        "lat": pa.Column(float, _between(-15, 72)),
        "lon": pa.Column(
            float,
            # From Guam across the date line to the Virgin Islands, without Europe, Africa and Asia.
            pa.Check(lambda lon: (lon <= -64) | (lon >= 144), error="is not a longitude of the United States"),
        ),
        "alt": pa.Column("Int64", _between(-300, 15_000)),
        "tz": pa.Column("Int64", _between(-12, 14)),
        "dst": pa.Column(None, pa.Check.isin(["A", "N", "U"], error="is not one of A, N and U")),
        "tzone": pa.Column(None, nullable=True),
    }
)


def normalise_weather(rows: pd.DataFrame) -> pd.DataFrame:
    """Return observations with their time as `observed`."""
    return rows.drop(columns=["hour"]).rename(columns={"time_hour": "observed"})


def normalise_planes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return planes with the names of their manufacturers in one form."""
    return rows.assign(manufacturer=rows["manufacturer"].str.title())
