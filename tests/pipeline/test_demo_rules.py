"""The demo's rules: unusual rows pass, impossible rows are rejected with a reason, and no row is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from executor_adapter.config import load_config
from executor_adapter.pipeline import (
    ConfiguredTable,
    balance,
    configured_tables,
    process_window,
    reject_reasons,
    select_tables,
    windows_to_process,
)
from executor_adapter.pipeline.loading import Loader
from executor_adapter.pipeline.text_rows import READ, REJECTED, connected, together
from tasks.summary import count_flights, summarise_flights

ROOT = Path(__file__).resolve().parents[2]

FLIGHT: dict[str, Any] = {
    "year": 2013, "month": 1, "day": 1, "dep_time": 2354, "sched_dep_time": 2359, "dep_delay": -5,
    "arr_time": 437, "sched_arr_time": 442, "arr_delay": -5, "carrier": "B6", "flight": 707, "tailnum": "N594JB",
    "origin": "JFK", "dest": "SJU", "air_time": 189, "distance": 1598, "hour": 23, "minute": 59,
    "time_hour": "2013-01-02T04:00:00Z",
}  # fmt: skip
AIRPORT: dict[str, Any] = {
    "icao": "LLMZ", "iata": "MTZ", "name": "Bar Yehuda Airfield ", "city": "Masada", "subd": "", "country": "IL",
    "elevation": -1266, "lat": 31.328, "lon": 35.389, "tz": "Asia/Jerusalem", "lid": "",
}  # fmt: skip
CANCELLED = {"dep_time": None, "dep_delay": None, "arr_time": None, "arr_delay": None, "air_time": None}


def table(lake: Path, name: str) -> ConfiguredTable:
    """A table of the project's configuration, in a lake of its own."""
    settings = load_config(ROOT / "config.yaml").model_copy(update={"lake": lake})
    found = [each for tool in settings.tools for each in configured_tables(settings, tool)]
    return next(each for each in found if each.full_name == name)


def processed(lake: Path, name: str, *rows: dict[str, Any]) -> ConfiguredTable:
    """Return the table after these rows were cast and processed."""
    found = table(lake, name)
    texts = [{key: None if value is None else str(value) for key, value in row.items()} for row in rows]
    schema = pa.schema([(key, pa.string()) for key in rows[0]])
    batches = [pa.RecordBatch.from_pylist(texts, schema=schema)]
    with (
        connected(lake / "spill") as connection,
        found.raw.writing("all", fingerprint="a") as writer,
        found.unfit.writing(f"{READ}all", fingerprint="a", origin="a") as unfit,
    ):
        unfit.add(REJECTED.empty_table())
        loader = Loader(connection, found.schema, on_rejects=unfit.add)
        for loaded in (each for text in together(batches) for each in loader.load(text)):
            writer.add(loaded.rows)
    process_window(found, "all")
    assert balance(name, [found]).holds
    return found


def reasons(found: ConfiguredTable) -> list[str]:
    return [reason for _, reason in reject_reasons([found])]


def flights(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [FLIGHT | {"flight": number} | change for number, change in enumerate(changes, 1)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        CANCELLED,
        {"arr_delay": None, "air_time": None},
        {"tailnum": None},
        {"tailnum": "N0EGMQ"},
        {"dep_time": 2400, "sched_dep_time": 2359, "dep_delay": 1},
        {"dep_time": 15, "sched_dep_time": 2355, "dep_delay": 20},
        {"dep_time": 1, "sched_dep_time": 2300, "dep_delay": 1501},
    ],
    ids=["usual", "cancelled", "diverted", "no tail", "fleet number", "midnight", "past midnight", "next day"],
)
def test_unusual_flights_are_valid(tmp_path: Path, change: dict[str, Any]) -> None:
    """Unusual but true flights are valid."""
    assert reasons(processed(tmp_path, "flights.flights", *flights(change))) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dep_delay": 100}, "dep_delay is not the difference of dep_time and sched_dep_time"),
        ({"arr_delay": 3}, "arr_delay is not the difference of arr_time and sched_arr_time"),
        ({"dep_delay": None}, "has only one of dep_time and dep_delay"),
        ({"air_time": None}, "has only one of arr_delay and air_time"),
        ({"dep_time": 1361}, "dep_time: 1361 is not a time of day (HHMM)"),
        ({"tailnum": "D942DN"}, "tailnum: 'D942DN' is not an American registration"),
        ({"month": 13}, "month: 13 is not between 1 and 12"),
        ({"origin": None}, "origin: is empty"),
        ({"distance": "far"}, "distance: 'far' is not an integer"),
        ({"distance": 1.5}, "distance: '1.5' is not an integer"),
        ({"time_hour": "yesterday"}, "time_hour: 'yesterday' is not a time"),
        ({"flight": 1}, "another row has this year, month, day, carrier, flight, sched_dep_time, origin"),
    ],
)
def test_an_impossible_flight_is_rejected_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """An impossible flight is rejected with the reason, and no other row is."""
    (found,) = reasons(processed(tmp_path, "flights.flights", *flights({}, {}, change, {})))
    assert reason in found


def test_a_reject_lists_every_reason(tmp_path: Path) -> None:
    """A reject lists everything that is wrong with it."""
    found = processed(tmp_path, "flights.flights", *flights({"month": 13, "origin": "Newark"}))
    assert reasons(found) == ["month: 13 is not between 1 and 12; origin: 'Newark' is not an FAA code of an airport"]


def test_normalised_flights_have_times_and_flags(tmp_path: Path) -> None:
    """A normalised flight has its departure times and the flags cancelled and diverted."""
    changes = ({"dep_time": 15, "dep_delay": 16}, CANCELLED, {"arr_delay": None, "air_time": None})
    kept = processed(tmp_path, "flights.flights", *flights(*changes)).processed.read("all").to_pandas()
    assert kept["scheduled_departure"][0] == pd.Timestamp("2013-01-02T04:59Z")
    assert kept["departure"][0] == pd.Timestamp("2013-01-02T05:15Z")
    assert pd.isna(kept["departure"][1])
    assert list(kept["cancelled"]) == [False, True, False]
    assert list(kept["diverted"]) == [False, False, True]


def test_flights_are_counted_and_summarised(tmp_path: Path) -> None:
    """They are counted for each month and origin; the summary has them in a sentence and a plot."""
    found = processed(tmp_path, "flights.flights", *flights({}, CANCELLED, {"origin": "EWR"}))
    names = ("month", "origin", "flights", "departed", "cancelled", "dep_delay_sum")
    counted = count_flights(found.processed.folder)[list(names)]
    assert list(counted.itertuples(index=False, name=None)) == [(1, "EWR", 1, 1, 0, -5), (1, "JFK", 2, 1, 1, -5)]
    summary = summarise_flights({"flights": found})
    assert summary.lines == ["flights: 3, 1 cancelled, 0 diverted, on average -5.0 minutes late at departure"]
    assert (summary.png or b"").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"icao": "_AYM"}, "icao: '_AYM' is not a code of ICAO"),
        ({"lat": 91.5}, "lat: 91.5 is not between -90 and 90"),
        ({"country": None}, "country: is empty"),
        ({"elevation": -1266}, None),
    ],
)
def test_an_impossible_airport_is_rejected(tmp_path: Path, change: dict[str, Any], reason: str | None) -> None:
    """An airport of the world is rejected with the reason; one at the Dead Sea is not."""
    found = processed(tmp_path, "world.airports", AIRPORT | change, AIRPORT)
    assert reasons(found) == ([] if reason is None else [reason])


def test_an_airline_is_what_its_model_says(tmp_path: Path) -> None:
    """An airline that does not fit the model is rejected with all that the model finds wrong, and no other is."""
    wrong, right = {"carrier": "9EX", "name": " "}, {"carrier": "AA", "name": "American Airlines Inc."}
    found = processed(tmp_path, "flights.airlines", wrong, {"carrier": "9E", "name": None}, right)
    assert sorted(reasons(found)) == [
        "carrier: String should match pattern '^[A-Z0-9]{2}$'; name: String should have at least 1 character",
        "name: Input should be a valid string",
    ]


def test_airports_of_the_flights_get_their_cities(tmp_path: Path) -> None:
    """An airport has the city that the airports of the world have for its code, and none where they do not know it.

    After a change there, its window is to be processed again.
    """
    processed(tmp_path, "world.airports", AIRPORT, AIRPORT | {"icao": "KJFK", "lid": "JFK", "city": "New York"})
    jfk = {"faa": "JFK", "name": "Kennedy", "lat": 40.6, "lon": -73.8, "alt": 13, "tz": -5, "dst": "A", "tzone": None}
    found = processed(tmp_path, "flights.airports", jfk, jfk | {"faa": "1C9"})
    assert found.processed.read("all").select(["faa", "city"]).to_pylist() == [
        {"faa": "JFK", "city": "New York"},
        {"faa": "1C9", "city": None},
    ]
    assert windows_to_process(found) == {}
    processed(tmp_path, "world.airports", AIRPORT)
    assert list(windows_to_process(found)) == ["all"]


def test_all_tables_of_the_demo_are_right() -> None:
    """Every table of config.yaml declares its types, and every step of it can be loaded."""
    settings = load_config(ROOT / "config.yaml")
    found = select_tables(settings)
    assert len(found) == 6
    for each in found:
        assert each.schema is not None
