"""Each stage keeps every row once: unusual rows pass, impossible rows are rejected with a reason."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from executor_adapter.exceptions import DataProcessingException
from tasks import rules, stages

FLIGHTS = rules.load("flights")
TASK_RUNS = rules.load("task_runs")

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


def frame(template: dict[str, Any], *changes: dict[str, Any]) -> pd.DataFrame:
    rows = [template | {"flight": number, "id": str(number)} | change for number, change in enumerate(changes, 1)]
    return pd.DataFrame([{name: row[name] for name in template} for row in rows])


def reasons(rows: pd.DataFrame, table: rules.Rules = FLIGHTS) -> list[str]:
    good, rejects = stages.validate(rows, table)
    assert len(good) + len(rejects) == len(rows)
    return list(rejects[stages.REASON])


CANCELLED = {"dep_time": None, "dep_delay": None, "arr_time": None, "arr_delay": None, "air_time": None}


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
def test_unusual_flights_are_valid(change: dict[str, Any]) -> None:
    """Unusual but true flights are valid."""
    assert reasons(frame(FLIGHT, change)) == []


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
        ({"distance": "far"}, "distance: 'far' is not a whole number"),
        ({"distance": 1.5}, "distance: 1.5 is not a whole number"),
        ({"time_hour": "yesterday"}, "time_hour: 'yesterday' is not a time"),
    ],
)
def test_an_impossible_flight_is_rejected_with_its_reason(change: dict[str, Any], reason: str) -> None:
    """An impossible flight is rejected with the reason, and no other row is."""
    found = reasons(frame(FLIGHT, {}, change, {}))
    assert len(found) == 1
    assert reason in found[0]


def test_a_reject_lists_every_reason() -> None:
    """A reject lists everything that is wrong with it."""
    (reason,) = reasons(frame(FLIGHT, {"month": 13, "origin": "Newark"}))
    assert reason == "month: 13 is not between 1 and 12; origin: 'Newark' is not an FAA code of an airport"


def test_a_value_of_another_type_rejects_one_row() -> None:
    """A word in a column of numbers rejects its own row only."""
    rows = frame(FLIGHT, {}, {"dep_delay": "late"}, {}).astype({"dep_delay": "str"})
    good, rejects = stages.validate(rows, FLIGHTS)
    assert list(rejects.index) == [1]
    assert list(good["dep_delay"]) == [-5, -5]


def test_rejects_are_unchanged() -> None:
    """A reject keeps its values as they were read."""
    rows = frame(FLIGHT, {}, {"tailnum": "D942DN"})
    _, rejects = stages.validate(rows, FLIGHTS)
    assert rejects.drop(columns=[stages.REASON]).equals(rows.loc[[1]])


def test_a_repeated_key_is_rejected_in_any_batch() -> None:
    """The second row with the same key is rejected, in the same batch or in a later one."""
    seen: set[int] = set()
    first, _ = stages.validate(frame(FLIGHT, {}, {}), FLIGHTS, seen)
    second, rejects = stages.validate(frame(FLIGHT, {}, {"flight": 9}, {"flight": 9}), FLIGHTS, seen)
    assert (len(first), len(second)) == (2, 1)
    assert set(rejects[stages.REASON]) == {
        "a second row with this year, month, day, carrier, flight, sched_dep_time, origin"
    }


def test_a_rejected_row_does_not_use_its_key() -> None:
    """The key of a rejected row is free for a valid row."""
    seen: set[int] = set()
    stages.validate(frame(FLIGHT, {"dep_delay": 100}), FLIGHTS, seen)
    good, _ = stages.validate(frame(FLIGHT, {}), FLIGHTS, seen)
    assert len(good) == 1


def test_a_missing_column_fails_the_whole_batch() -> None:
    """A missing column raises DATA_ERROR and names the columns."""
    with pytest.raises(DataProcessingException, match="missing columns: origin: the columns are year, month") as caught:
        stages.validate(frame(FLIGHT, {}).drop(columns=["origin"]), FLIGHTS)
    assert caught.value.error_code == "DATA_ERROR"


def test_no_rows_are_valid() -> None:
    """An empty batch passes all stages."""
    good, rejects = stages.validate(frame(FLIGHT, {}).iloc[:0], FLIGHTS)
    assert len(good) == len(rejects) == 0
    assert stages.aggregate(FLIGHTS.normalise(good), FLIGHTS).empty


def test_normalised_flights_have_times_and_flags() -> None:
    """A normalised flight has its departure times and the flags cancelled and diverted."""
    good, _ = stages.validate(
        frame(FLIGHT, {"dep_time": 15, "dep_delay": 16}, CANCELLED, {"arr_delay": None, "air_time": None}), FLIGHTS
    )
    kept = FLIGHTS.normalise(good)
    assert kept["scheduled_departure"][0] == pd.Timestamp("2013-01-02T04:59Z")
    assert kept["departure"][0] == pd.Timestamp("2013-01-02T05:15Z")
    assert pd.isna(kept["departure"][1])
    assert list(kept["cancelled"]) == [False, True, False]
    assert list(kept["diverted"]) == [False, False, True]


def test_measures_are_computed_by_group() -> None:
    """Measures are computed for each group of rows."""
    good, _ = stages.validate(frame(FLIGHT, {}, CANCELLED, {"origin": "EWR"}), FLIGHTS)
    counted = stages.aggregate(FLIGHTS.normalise(good), FLIGHTS).set_index(["month", "origin"])
    assert counted.loc[(1, "JFK"), ["flights", "departed", "cancelled", "dep_delay_sum"]].tolist() == [2, 1, 1, -5]
    assert counted.loc[(1, "EWR"), "flights"] == 1


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_measures_of_parts_combine_to_those_of_the_whole(cut: int) -> None:
    """Combined measures of two parts equal the measures of all rows."""
    changes = [{}, CANCELLED, {"origin": "EWR"}, {"month": 2}]
    good, _ = stages.validate(frame(FLIGHT, *changes), FLIGHTS)
    kept = FLIGHTS.normalise(good)
    parts = [stages.aggregate(part, FLIGHTS) for part in (kept.iloc[:cut], kept.iloc[cut:])]
    whole = stages.aggregate(kept, FLIGHTS)
    pd.testing.assert_frame_equal(stages.combine(parts, FLIGHTS), whole, check_dtype=False)


def test_measures_without_groups_are_one_row() -> None:
    """Rules without grouping columns give one row of measures."""
    airlines = rules.load("airlines")
    rows = pd.DataFrame({"carrier": ["UA", "AA"], "name": [" United ", "American"]})
    good, _ = stages.validate(rows, airlines)
    kept = airlines.normalise(good)
    assert list(kept["name"]) == ["United", "American"]
    assert stages.aggregate(kept, airlines).to_dict("records") == [{"airlines": 2}]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state_type": "RUNNING"}, "state_type: 'RUNNING' is not a final state"),
        ({"end_time": "2026-01-02T09:00:00Z"}, "ended before it started"),
        ({"total_run_time": -1}, "total_run_time: -1.0 is negative"),
        ({"end_time": None}, "end_time: is empty"),
    ],
)
def test_an_impossible_run_is_rejected(change: dict[str, Any], reason: str) -> None:
    """An impossible run is rejected with the reason."""
    assert reasons(frame(RUN, change, {}), TASK_RUNS) == [reason]


def test_runs_are_counted_by_final_state() -> None:
    """Runs are counted by their final state."""
    rows = frame(RUN, {}, {"state_type": "FAILED", "start_time": None, "total_run_time": 4.0, "run_count": 3})
    good, rejects = stages.validate(rows, TASK_RUNS)
    assert rejects.empty
    counted = stages.aggregate(TASK_RUNS.normalise(good), TASK_RUNS).set_index("state_type")
    assert counted.loc["COMPLETED", ["runs", "succeeded", "retried", "seconds_sum"]].tolist() == [1, 1, 0, 1.5]
    assert counted.loc["FAILED", ["runs", "succeeded", "retried", "seconds_max"]].tolist() == [1, 0, 1, 4.0]


@pytest.mark.parametrize("name", rules.NAMES)
def test_all_rules_are_consistent(name: str) -> None:
    """Keys are columns of the schema, and every measure can be combined."""
    table = rules.load(name)
    assert set(table.key) <= set(table.schema.columns)
    assert {how for _, how in table.measures.values()} <= {"sum", "count", "max"}
