"""What is new is added once: late rows are found, vanished ones settled, and no row is skipped."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.lake.table import LakeTable
from tests.pipeline.lakes import all_rows, at, lake_table, write, write_rows


def row(key: Any, cursor: Any, note: str = "") -> dict[str, Any]:
    return {"id": key, "at": cursor, "note": note}


def notes(table: LakeTable) -> list[tuple[Any, str]]:
    return sorted(((each["id"], each["note"]) for each in all_rows(table)), key=str)


def test_the_newer_row_replaces_the_older(tmp_path: Path) -> None:
    """Rows with the same key are one; with a key of several columns, and of nulls, too."""
    table = lake_table(tmp_path, key=("id", "at"))
    write_rows(table, "w", [row("a", 1, "old"), row("b", 1), row("a:1", 1), row(None, 1, "old")])
    result = write_rows(table, "w", [row("a", 1, "new"), row("a", 2), row(None, 1, "new")])
    assert (result.rows, result.added) == (5, 1)
    assert notes(table) == [("a", ""), ("a", "new"), ("a:1", ""), ("b", ""), (None, "new")]


def test_of_repeated_rows_the_last_stays(tmp_path: Path) -> None:
    """A key that comes twice in one answer, as where pages shift, or in another one, is one row; so is null."""
    table = lake_table(tmp_path, key=("id",))
    first, second = ([row("a", 1, "1"), row("b", 1, "1"), row(None, 1, "1")], [row("a", 2, "2"), row("a", 3, "3")])
    result = write(table, "w", pa.Table.from_pylist(first), pa.Table.from_pylist([*second, row(None, 2, "2")]))
    assert (result.rows, result.added) == (3, 3)
    assert notes(table) == [("a", "3"), ("b", "1"), (None, "2")]
    assert write_rows(table, "w", [row(None, 4, "4"), row("b", 4, "4")]).added == 0
    assert notes(table) == [("a", "3"), ("b", "4"), (None, "4")]


def test_of_repeated_rows_the_one_with_the_highest_cursor_stays(tmp_path: Path) -> None:
    """An answer may have the newest first, and one without a value; of equal values the later row stays."""
    table = lake_table(tmp_path, key=("id",), cursor="at")
    first, second = [row("a", 3, "3"), row("b", None), row("c", 1)], [row("a", 2), row("b", 1, "1"), row("c", 1, "2")]
    write(table, "all", pa.Table.from_pylist(first), pa.Table.from_pylist(second))
    assert notes(table) == [("a", "3"), ("b", "1"), ("c", "2")]
    write_rows(table, "all", [row("a", 1, "what the source says now")], since="0")
    assert notes(table)[0] == ("a", "what the source says now")
    texts = [{"id": "x", "at": at, "note": at} for at in ("9", "10")]
    other = lake_table(tmp_path / "texts", key=("id",), cursor="at")
    write_rows(other, "all", texts)
    assert notes(other) == [("x", "10")]  # Of texts the highest says nothing.


def test_repeated_rows_are_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account has them, since they are one row: a key that is too short is seen there."""
    said: list[str] = []
    monkeypatch.setattr("executor_adapter.pipeline.lake.table.log", lambda text, *values: said.append(text % values))
    write_rows(lake_table(tmp_path, key=("id",)), "w", [row("a", 1), row("a", 2), row("b", 1)])
    assert said == ["shop/order lines (raw) w: 1 rows have the key of another row"]


@pytest.mark.parametrize("policy", ["keep", "mark", "delete"])
def test_rows_that_vanished_are_settled(tmp_path: Path, policy: Any) -> None:
    """They are kept, marked or deleted; those that come again are rows as others."""
    table = lake_table(tmp_path, key=("id",), vanished_rows=policy)
    write_rows(table, "w", [row("b", 5), row("c", 6)])
    write_rows(table, "w", [row("c", 6, "new"), row("e", 7)])
    found = {each["id"]: each.get("vanished_at") is not None for each in all_rows(table)}
    assert found == {"c": False, "e": False} | ({} if policy == "delete" else {"b": policy == "mark"})
    write_rows(table, "w", [row("b", 5, "again"), row("c", 6), row("e", 7)])
    assert {each.get("vanished_at") for each in all_rows(table)} == {None}
    assert ("b", "again") in notes(table)


def test_a_cursor_needs_a_key(tmp_path: Path) -> None:
    """Rows at a bound come again, and so does one without a value: without a key they would be there twice."""
    with pytest.raises(ConfigurationError, match="cursor needs a key, by which rows that come again are merged: name"):
        lake_table(tmp_path, cursor="at")
    table = lake_table(tmp_path, cursor="at", key=("id", "at", "note"))
    write_rows(table, "w", [row("a", 1), row("b", 5), row("b", None)])
    result = write_rows(table, "w", [row("b", 5), row("b", None), row("c", 7)], since="5")
    assert (result.rows, result.added) == (4, 1)


@pytest.mark.parametrize(
    ("values", "look_back", "since"),
    [
        ([3, 7, 5], 2, "5"),
        (["a", "c"], 0, "c"),
        ([date(2013, 1, 1), date(2013, 1, 9)], 2, "2013-01-07"),
        ([datetime(2013, 1, 1, 10, tzinfo=UTC)], 3600, "2013-01-01T09:00:00+00:00"),
        ([Decimal("1.50")], 0, "1.50"),
        ([Decimal("1.50")], 0.25, "1.25"),
        ([3, None], 100, None),
        ([], 0, None),
    ],
)
def test_the_next_run_asks_from_the_watermark(tmp_path: Path, values: list[Any], look_back: Any, since: Any) -> None:
    """It asks from the highest value, which is asked for once more, and from as much before it as rows may be late."""
    table = lake_table(tmp_path, cursor="at", key=("at",))
    kind = pa.array(values).type if values else pa.int64()
    rows = pa.table({"at": pa.array(values, kind)})
    assert table.next_since("w") is None
    write(table, "w", rows)
    if since is None and values:
        assert table.next_since("w", look_back) == "-97"
    else:
        assert table.next_since("w", look_back) == since
        write(table, "w", rows.slice(0, 0), since=since)


def test_what_was_never_asked_for_is_asked_for(tmp_path: Path) -> None:
    """A range that was collected by itself hides nothing: the next run asks from where all was asked for."""
    table = lake_table(tmp_path, key=("id",), cursor="at")
    assert table.next_since("w", start="0") == "0"
    write_rows(table, "w", [row("a", 3)], since="0")
    assert table.next_since("w") == "3"
    write_rows(table, "w", [row("b", 20)], since="10", until="30")
    assert table.next_since("w") == "3"
    assert table.next_since("w", 2) == "1"
    assert table.next_since("w", 50, start="0") == "0"
    write_rows(table, "w", [row("c", 7)], since="3")
    assert table.next_since("w") == "7"
    write_rows(table, "w", [row("d", 8)], since="5", until="9")
    assert table.next_since("w") == "8"


def test_another_cursor_begins_anew(tmp_path: Path) -> None:
    """What was asked for by one column says nothing of another one."""
    by_time, by_note = (lake_table(tmp_path, key=("id",), cursor=cursor) for cursor in ("at", "note"))
    write_rows(by_time, "w", [row("a", 9, "9")])
    assert (by_time.next_since("w"), by_note.next_since("w"), by_note.next_since("w", start="0")) == ("9", None, "0")
    write_rows(by_note, "w", [row("a", 9, "3")], since="0")
    assert by_note.next_since("w") == "3"


@given(data=st.data())
@settings(max_examples=25)
def test_ranges_that_are_collected_again_hide_no_row(data: st.DataObject) -> None:
    """Rows come in the order of their cursor, runs ask for what is new, and others for any range: no row is missed."""
    with TemporaryDirectory() as folder:
        table, source, second = lake_table(Path(folder), key=("id",), cursor="at"), list[dict[str, Any]](), 0
        for second in range(data.draw(st.integers(2, 8))):
            for _ in range(data.draw(st.integers(0, 3))):
                source.append(row(len(source), (source[-1]["at"] if source else 0) + data.draw(st.integers(0, 3))))
            since, until = table.next_since("w", start="0"), None
            if data.draw(st.booleans()) and second:
                low = data.draw(st.integers(0, 20))
                since, until = str(low), str(low + data.draw(st.integers(1, 9)))
            answer = [each for each in source if int(since or 0) <= each["at"] < int(until or 10**6)]
            _write(table, answer, since, at(second), until)
        since = table.next_since("w", start="0")
        _write(table, [each for each in source if each["at"] >= int(since or 0)], since, at(50))
        assert sorted(each["id"] for each in all_rows(table)) == list(range(len(source)))


def test_a_bound_that_is_no_value_is_refused(tmp_path: Path) -> None:
    """A moment without a zone is not one, and the message says so."""
    table = lake_table(tmp_path, cursor="at", key=("at",))
    rows = pa.table({"at": pa.array([datetime(2013, 1, 1, tzinfo=UTC)])})
    write(table, "w", rows)
    with pytest.raises(DataProcessingException, match="is not a value of the cursor column") as caught:
        write(table, "w", rows, since="yesterday")
    assert caught.value.error_code == "CONFIGURATION_ERROR"


def test_a_range_of_days_is_one_of_dates(tmp_path: Path) -> None:
    """The moments in which days begin bound a cursor of dates, too."""
    table = lake_table(tmp_path, cursor="at", key=("id",))
    write_rows(table, "w", [row("a", date(2026, 1, 2))])
    write_rows(table, "w", [row("b", date(2026, 1, 9))], since="2026-01-05T00:00:00+00:00")
    assert table.next_since("w") == "2026-01-02"


def test_runs_that_overtake_one_another(tmp_path: Path) -> None:
    """The row that was asked for later wins, and rows of the older answer that no newer one has are added."""
    table = lake_table(tmp_path, key=("id",), cursor="at")
    write_rows(table, "w", [row("a", 1), row("b", 5)], collected_at=at(1))
    write_rows(table, "w", [row("b", 5, "new"), row("c", 6)], since="5", collected_at=at(4))
    late = write_rows(table, "w", [row("b", 5, "old"), row("d", 4)], since="4", collected_at=at(3))
    assert late.added == 1
    write_rows(table, "w", [row("a", 1, "back")], since="0", until="4", collected_at=at(3))
    assert notes(table) == [("a", "back"), ("b", "new"), ("c", ""), ("d", "")]


# --- properties ---

LATE = 3
"""How much later than its cursor's order a row may come, in the unit of the cursor."""


@given(data=st.data())
@settings(max_examples=25)
def test_no_row_is_skipped_whatever_the_order_of_arrival(data: st.DataObject) -> None:
    """Rows come at most `LATE` late, runs come at any time, fail, and overtake one another: all rows are there once."""
    with TemporaryDirectory() as folder:
        table = lake_table(Path(folder), cursor="at", key=("id",))
        source: list[dict[str, Any]] = []
        pending: list[tuple[str | None, list[dict[str, Any]], datetime]] = []
        clock = 0
        for second in range(1, data.draw(st.integers(2, 7)) + 1):
            for _ in range(data.draw(st.integers(1, 4))):
                clock += data.draw(st.integers(0, 2))
                # As late as may be is what a watermark that is one too high skips.
                source.append(row(len(source), clock - data.draw(st.sampled_from([0, LATE]))))
            since = table.next_since("w", LATE)
            answer = [each for each in source if since is None or each["at"] >= int(since)]
            outcome = data.draw(st.sampled_from(["done", "fails", "is slow"]))
            if outcome == "done":
                _write(table, answer, since, at(second))
            elif outcome == "is slow":
                pending.append((since, answer, at(second)))
        for since, answer, moment in data.draw(st.permutations(pending)):
            _write(table, answer, since, moment)
        since = table.next_since("w", LATE)
        _write(table, [each for each in source if since is None or each["at"] >= int(since)], since, at(50))
        assert sorted(each["id"] for each in all_rows(table)) == list(range(len(source)))


@given(deliveries=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=2, max_size=5), data=st.data())
@settings(max_examples=40)
def test_the_newest_row_wins_whatever_is_stored_first(deliveries: list[set[int]], data: st.DataObject) -> None:
    """Of deliveries that share a window each row is that of the last one that had it."""
    with TemporaryDirectory() as folder:
        table = lake_table(Path(folder), key=("id",))
        for number in data.draw(st.permutations(range(len(deliveries)))):
            rows = [row(each, 0, str(number)) for each in deliveries[number]]
            write_rows(table, "w", rows, collected_at=at(number), origin=str(number))
        newest = {each: str(number) for number, rows in enumerate(deliveries) for each in rows}
        assert notes(table) == sorted(newest.items())


def _write(
    table: LakeTable, rows: list[dict[str, Any]], since: str | None, moment: datetime, until: str | None = None
) -> None:
    columns = pa.schema([("id", pa.int64()), ("at", pa.int64()), ("note", pa.string())])
    write(table, "w", pa.Table.from_pylist(rows, schema=columns), since=since, until=until, collected_at=moment)
