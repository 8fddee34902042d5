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
    process_table,
    reject_reasons,
    select_tables,
)
from executor_adapter.pipeline.loading import Loader
from executor_adapter.pipeline.text_rows import READ, REJECTED, connected, in_batches
from tasks.summary import summarise_flights, summarise_runs

ROOT = Path(__file__).resolve().parents[2]

FLIGHT: dict[str, Any] = {
    "year": 2013, "month": 1, "day": 1, "dep_time": 2354, "sched_dep_time": 2359, "dep_delay": -5,
    "arr_time": 437, "sched_arr_time": 442, "arr_delay": -5, "carrier": "B6", "flight": 707, "tailnum": "N594JB",
    "origin": "JFK", "dest": "SJU", "air_time": 189, "distance": 1598, "hour": 23, "minute": 59,
    "time_hour": "2013-01-02T04:00:00Z",
}  # fmt: skip
RUN: dict[str, Any] = {
    "id": "a", "name": "collect", "flow_run_id": None, "task_key": "k", "state_type": "COMPLETED",
    "state_name": "Completed", "run_count": 1, "start_time": "2026-01-02T10:00:00.5Z",
    "end_time": "2026-01-02T10:00:02Z", "total_run_time": 1.5, "tags": "[]",
}  # fmt: skip
STATE = {
    "id": "s",
    "parent_id": "a",
    "type": "RUNNING",
    "name": None,
    "timestamp": "2026-01-02T10:00:00Z",
    "message": None,
}
CANCELLED = {"dep_time": None, "dep_delay": None, "arr_time": None, "arr_delay": None, "air_time": None}


def table(lake: Path, name: str) -> ConfiguredTable:
    """A table of the project's configuration, in a lake of its own."""
    settings = load_config(ROOT / "config.yaml").model_copy(update={"lake": lake})
    found = [each for tool in settings.tools for each in configured_tables(settings, tool)]
    return next(each for each in found if each.name == name)


def processed(lake: Path, name: str, *rows: dict[str, Any]) -> ConfiguredTable:
    """Return the table after these rows were cast and processed."""
    found = table(lake, name)
    texts = [{key: None if value is None else str(value) for key, value in row.items()} for row in rows]
    schema = pa.schema([(key, pa.string()) for key in rows[0]])
    batches = [pa.RecordBatch.from_pylist(texts, schema=schema)]
    with (
        connected(lake / "spill") as connection,
        found.raw.writing("all", fingerprint="a") as writer,
        found.unfit.writing(f"{READ}all", fingerprint="a") as unfit,
    ):
        unfit.add(REJECTED.empty_table())
        loader = Loader(connection, found.schema, on_rejects=unfit.add)
        for loaded in (each for text in in_batches(batches) for each in loader.load(text)):
            writer.add(loaded.rows)
    process_table(found, "all")
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
    assert reasons(processed(tmp_path, "flights", *flights(change))) == []


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
    (found,) = reasons(processed(tmp_path, "flights", *flights({}, {}, change, {})))
    assert reason in found


def test_a_reject_lists_every_reason(tmp_path: Path) -> None:
    """A reject lists everything that is wrong with it."""
    found = processed(tmp_path, "flights", *flights({"month": 13, "origin": "Newark"}))
    assert reasons(found) == ["month: 13 is not between 1 and 12; origin: 'Newark' is not an FAA code of an airport"]


def test_normalised_flights_have_times_and_flags(tmp_path: Path) -> None:
    """A normalised flight has its departure times and the flags cancelled and diverted."""
    changes = ({"dep_time": 15, "dep_delay": 16}, CANCELLED, {"arr_delay": None, "air_time": None})
    kept = processed(tmp_path, "flights", *flights(*changes)).processed.read("all").to_pandas()
    assert kept["scheduled_departure"][0] == pd.Timestamp("2013-01-02T04:59Z")
    assert kept["departure"][0] == pd.Timestamp("2013-01-02T05:15Z")
    assert pd.isna(kept["departure"][1])
    assert list(kept["cancelled"]) == [False, True, False]
    assert list(kept["diverted"]) == [False, False, True]


def test_flights_are_counted_and_summarised(tmp_path: Path) -> None:
    """Measures are computed for each month and origin; the summary has them in a sentence and a plot."""
    found = processed(tmp_path, "flights", *flights({}, CANCELLED, {"origin": "EWR"}))
    names = ("month", "origin", "flights", "departed", "cancelled", "dep_delay_sum")
    counted = [tuple(row[name] for name in names) for row in found.aggregates.read("all").to_pylist()]
    assert counted == [(1, "EWR", 1, 1, 0, -5), (1, "JFK", 2, 1, 1, -5)]
    summary = summarise_flights({"flights": found})
    assert summary.lines == ["flights: 3, 1 cancelled, 0 diverted, on average -5.0 minutes late at departure"]
    assert (summary.png or b"").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state_type": "RUNNING"}, "state_type: 'RUNNING' is not a final state"),
        ({"end_time": "2026-01-02T09:00:00Z"}, "ended before it started"),
        ({"total_run_time": -1}, "total_run_time: -1.0 is negative"),
        ({"end_time": None}, "end_time: is empty"),
        ({"id": None}, "id: is empty"),
    ],
)
def test_an_impossible_run_is_rejected(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """An impossible run is rejected with the reason."""
    assert reasons(processed(tmp_path, "task_runs", RUN | change, RUN | {"id": "b"})) == [reason]


def test_runs_are_counted_by_final_state(tmp_path: Path) -> None:
    """Runs are counted by their final state; the summary counts successes, retries and seconds."""
    failed = RUN | {"id": "b", "state_type": "FAILED", "start_time": None, "total_run_time": 4.0, "run_count": 3}
    found = processed(tmp_path, "task_runs", RUN, failed)
    assert found.aggregates.read("all").to_pylist() == [
        {"state_type": "COMPLETED", "runs": 1, "succeeded": 1, "retried": 0, "seconds_sum": 1.5, "seconds_max": 1.5},
        {"state_type": "FAILED", "runs": 1, "succeeded": 0, "retried": 1, "seconds_sum": 4.0, "seconds_max": 4.0},
    ]
    summary = summarise_runs({"task_runs": found, "flow_runs": table(tmp_path, "flow_runs")})
    assert summary.lines == [
        "flow runs: no rows yet",
        "task runs: 2 finished, 50.0% of them succeeded, 1 were retried, 2.75 s on average, 4.00 s the longest",
    ]


def test_states_have_names(tmp_path: Path) -> None:
    """A state without a name is called by its type."""
    found = processed(tmp_path, "flow_run_states", STATE, STATE | {"id": "t", "name": "Late"})
    assert found.processed.read("all")["name"].to_pylist() == ["Running", "Late"]


def test_all_tables_of_the_demo_are_right() -> None:
    """Every table of config.yaml declares its types, and every step and measure of it can be loaded."""
    settings = load_config(ROOT / "config.yaml")
    found = select_tables(settings)
    assert len(found) == 9
    for each in found:
        assert each.schema is not None
        assert each.settings.measures
