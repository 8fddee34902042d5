"""Rules for the airports of the world. Nearly each value is possible somewhere: the lowest are at the Dead Sea."""

from __future__ import annotations

import pandera.pandas as pa


def _between(low: float, high: float) -> pa.Column:
    return pa.Column(float, pa.Check.between(low, high, error=f"is not between {low} and {high}"))


def _matches(pattern: str, error: str) -> pa.Column:
    return pa.Column(None, pa.Check.str_matches(pattern, error=error))


AIRPORTS = pa.DataFrameSchema(
    {
        # The package makes up codes for airports that have none, with an underscore.
        "icao": _matches(r"^[A-Z0-9]{4}$", "is not a code of ICAO"),
        "iata": _matches(r"^([A-Z]{3})?$", "is not a code of IATA"),
        "name": pa.Column(),
        "country": _matches(r"^[A-Z]{2}$", "is not a code of a country"),
        "elevation": _between(-1_400, 15_000),
        "lat": _between(-90, 90),
        "lon": _between(-180, 180),
    }
)
