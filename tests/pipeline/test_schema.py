"""Types are declared: each text is taken exactly, or its row is rejected with the reason, and no other row is."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from executor_adapter.config import TableSchema
from executor_adapter.error_codes import NEVER_RETRIED
from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.loading import Loader
from executor_adapter.pipeline.text_rows import REJECTED, connected, together


def schema(**columns: Any) -> TableSchema:
    return TableSchema.model_validate({"columns": columns})


def batch(**columns: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(texts, pa.string()) for name, texts in columns.items()})


class Cast(NamedTuple):
    """What all batches gave."""

    rows: pa.Table
    rejects: pa.Table
    loader: Loader


def load(columns: TableSchema, *batches: pa.RecordBatch, finish: bool = True) -> Cast:
    with TemporaryDirectory() as space, connected(Path(space)) as connection:
        rejects: list[pa.RecordBatch] = []
        loader = Loader(connection, columns, on_rejects=rejects.append)
        loaded = [each for text in together(batches) for each in loader.load(text)]
        if finish:
            loader.finish()
    rows = [pa.Table.from_batches([each.rows]) for each in loaded]
    return Cast(pa.concat_tables(rows, promote_options="default"), pa.Table.from_batches(rejects, REJECTED), loader)


def values(column: Any, *texts: str | None) -> list[Any]:
    """The values of the texts, with the reason in place of each that is rejected."""
    cast = load(schema(a=column), batch(a=list(texts)))
    good = iter(cast.rows["a"].to_pylist())
    reasons = {row["row"] - 1: row["reason"] for row in cast.rejects.to_pylist()}
    return [reasons[place] if place in reasons else next(good) for place in range(len(texts))]


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("text", "00501", "00501"),
        ("text", "12345678901234567890", "12345678901234567890"),
        ("text", "NA", "NA"),
        ("text", "", ""),
        ("integer", "00501", 501),
        ("integer", "-9223372036854775808", -(2**63)),
        ("integer", "+9223372036854775807", 2**63 - 1),
        ("integer", "-0", 0),
        ("integer", "517.0", 517),
        ("decimal(5, 2)", "1.5", Decimal("1.50")),
        ("decimal(5, 2)", "-001.500", Decimal("-1.50")),
        ("decimal(38, 0)", "9" * 38, Decimal("9" * 38)),
        ("decimal(38, 38)", "0." + "9" * 38, Decimal("0." + "9" * 38)),
        ("float", "-1.5e3", -1500.0),
        ("float", "+.5", 0.5),
        ("boolean", "TRUE", True),
        ("date", "2012-02-29", date(2012, 2, 29)),
        ({"type": "date", "format": "%d.%m.%Y"}, "1.2.2013", date(2013, 2, 1)),
        ({"type": "date", "format": "%d%b%y"}, "05MAR69", date(1969, 3, 5)),
        ({"type": "date", "format": "%Y%j"}, "2012366", date(2012, 12, 31)),
        ("timestamp", "2013-01-01T10:00:00Z", datetime(2013, 1, 1, 10, tzinfo=UTC)),
        ("timestamp", "2013-01-01 10:00:00.123456+05:30", datetime(2013, 1, 1, 4, 30, 0, 123456, UTC)),
        ("timestamp", "2013-01-01T10:00-08", datetime(2013, 1, 1, 18, tzinfo=UTC)),
        ("timestamp", "2013-01-01T10:00:00.123456000Z", datetime(2013, 1, 1, 10, 0, 0, 123456, UTC)),
        ({"type": "timestamp", "zone": "Asia/Tokyo"}, "2013-07-01T12:00:00", datetime(2013, 7, 1, 3, tzinfo=UTC)),
        ({"type": "timestamp", "zone": "Europe/Berlin"}, "2013-07-01T12:00Z", datetime(2013, 7, 1, 12, tzinfo=UTC)),
        (
            {"type": "timestamp", "format": "%m/%d/%Y %I:%M %p", "zone": "UTC"},
            "7/4/2013 12:05 am",
            datetime(2013, 7, 4, 0, 5, tzinfo=UTC),
        ),
        ("json", '{"a": [1, null]}', '{"a": [1, null]}'),
        ({"type": "integer", "nulls": ["NA", -999]}, "-999", None),
    ],
)  # fmt: skip
def test_a_text_is_taken_exactly(column: Any, text: str, value: Any) -> None:
    """Each type takes what it can hold, and nothing of it changes."""
    assert values(column, text, None, text) == [value, None, value]


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        ("integer", "2.5", "a: '2.5' is not an integer of 64 bits"),
        ("integer", "9223372036854775808", "is not an integer of 64 bits"),
        ("integer", "1" * 30, "is not an integer of 64 bits"),
        ("integer", "1" * 50, "is not an integer of 64 bits"),
        ("integer", "", "'' is not an integer"),
        ("integer", " 5", "' 5' is not an integer"),
        ("integer", "1e3", "'1e3' is not an integer"),
        ("integer", "٣", "is not an integer"),
        ("decimal(5, 2)", "1.555", "is not a decimal(5, 2)"),
        ("decimal(5, 2)", "1000", "is not a decimal(5, 2)"),
        ("decimal(5, 2)", ".", "is not a decimal(5, 2)"),
        ("float", "NaN", "is not a finite number"),
        ("float", "1e999", "is not a finite number"),
        ("float", "0x10", "is not a finite number"),
        ("boolean", "yes", "is not one of true, false"),
        ("date", "2013-02-29", "is not a date as 2013-01-31"),
        ("date", "2013-13-01", "is not a date"),
        ("date", "2013-00-01", "is not a date"),
        ("date", "2013-01-00", "is not a date"),
        ("date", "0000-01-01", "is not a date"),
        ("date", "01/02/2013", "is not a date"),
        ({"type": "date", "format": "%d%b%y"}, "05FOO69", "is not a date as %d%b%y"),
        ({"type": "date", "format": "%Y%j"}, "2013366", "is not a date"),
        ("timestamp", "2013-01-01T10:00:00", "is not a time as 2013-01-31T10:00:00Z with a zone"),
        ("timestamp", "2013-01-01T24:00:00Z", "is not a time"),
        ("timestamp", "2013-01-01T10:00:60Z", "is not a time"),
        ("timestamp", "2013-01-01T10:00:00.123456789Z", "is not a time"),
        ({"type": "timestamp", "zone": "Europe/Berlin"}, "2013-10-27T02:30:00", "in Europe/Berlin"),
        ({"type": "timestamp", "zone": "Europe/Berlin"}, "2013-03-31T02:30:00", "in Europe/Berlin"),
        ("json", '{"a": NaN}', "is not JSON"),
        ("json", "[" * 100_000, "is not JSON"),
        ("json", "{'a': 1}", "is not JSON"),
        ({"type": "text", "nullable": False}, None, "a: is empty"),
        ({"type": "integer", "nullable": False, "nulls": "NA"}, "NA", "a: is empty"),
    ],
)
def test_what_does_not_fit_rejects_its_row(column: Any, text: str | None, reason: str) -> None:
    """A value that the type cannot hold is neither rounded, moved nor made null."""
    right = {"json": "[]", "date": "2013-01-01", "timestamp": "2013-01-01T00:00:00Z"}
    kind = column if isinstance(column, str) else column["type"]
    other = "true" if kind == "boolean" else right.get(kind, "1")
    if isinstance(column, dict) and "format" in column:
        other = {"%d%b%y": "05MAR69", "%Y%j": "2012366"}[column["format"]]
    first, found, last = values(column, other, text, other)
    assert reason in found
    assert first == last
    assert not isinstance(first, str) or kind in ("text", "json")


def test_a_reject_has_its_row_and_everything_that_is_wrong() -> None:
    """It names the row, counted over all batches, the column, the value, each reason and the row as it came."""
    columns = schema(n="integer", day="date", note="text")
    first = batch(n=["1", "2"], day=["2013-01-01", None], note=["a", "b"])
    cast = load(columns, first, batch(n=["3", "x" * 100], day=[None, "1.1.2013"], note=["c", "d"]))
    assert cast.rows.to_pylist()[2] == {"n": 3, "day": None, "note": "c"}
    (reject,) = cast.rejects.to_pylist()
    assert (reject["step"], reject["row"]) == ("type", 4)
    assert reject["reason"] == (
        f"n: '{'x' * 60}...' is not an integer of 64 bits; day: '1.1.2013' is not a date as 2013-01-31"
    )
    assert json.loads(reject["text"]) == {"n": "x" * 100, "day": "1.1.2013", "note": "d"}
    assert cast.loader.rows == 4


def test_a_missing_column_is_null_and_an_error_where_no_batch_has_it() -> None:
    """Batches may differ in their columns; one that is in none of them is told at the end."""
    cast = load(schema(a="integer", b="date"), batch(a=["1"]), batch(b=["2013-01-01"], a=["2"]))
    assert cast.rows.to_pydict() == {"a": [1, 2], "b": [None, date(2013, 1, 1)]}
    columns = schema(a="integer", b="date", c={"type": "text", "optional": True})
    with pytest.raises(
        DataProcessingException, match=r"missing columns: b: correct .*; the columns are B, a"
    ) as caught:
        load(columns, batch(a=["1"], B=["x"]))
    assert caught.value.error_code in NEVER_RETRIED
    with TemporaryDirectory() as space, connected(Path(space)) as connection:
        Loader(connection, columns).finish()


def test_columns_that_are_not_declared_are_kept_as_text() -> None:
    """They come after those that are declared."""
    columns = TableSchema.model_validate({"columns": {"a": "integer"}})
    assert load(columns, batch(z=["01"], a=["1"])).rows.to_pydict() == {"a": [1], "z": ["01"]}


def test_a_schema_is_written_in_yaml() -> None:
    """Columns are declared by their type alone, or with more."""
    text = """
      columns:
        id: text
        price: {type: "decimal(10,2)", nullable: false}
        paid: boolean
        at: {type: timestamp, zone: America/New_York, format: "%Y-%m-%d %H:%M"}
    """
    found = TableSchema.model_validate(yaml.safe_load(text))
    assert load(found, batch(**{name: [None] for name in found.columns})).rows.schema == pa.schema(
        [
            ("id", pa.string()),
            ("price", pa.decimal128(10, 2)),
            ("paid", pa.bool_()),
            ("at", pa.timestamp("us", "UTC")),
        ]
    )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("int", "must be 'text', 'integer', 'decimal(digits, places)'"),
        ("decimal", "must be 'text', 'integer'"),
        ("decimal(39, 2)", "1 to 38 digits"),
        ("decimal(3, 4)", "no more places than digits"),
        ({"type": "timestamp", "zone": "Berlin"}, "must be the name of a zone"),
        ({"type": "integer", "zone": "UTC"}, "zone is for timestamps, not for integer"),
        ({"type": "integer", "format": "%d"}, "format is for dates and timestamps"),
        ({"type": "date", "format": "%d %Q"}, "no directives but %Y"),
        ({"type": "date", "format": "%d%"}, "no directives but %Y"),
        ({"type": "date", "format": "%d.%m."}, "must have a year, %Y or %y: declare it as text, and let a step add"),
        ({"type": "timestamp", "format": "%d.%m.%Y %I:%M", "zone": "UTC"}, "must have %I and %p together"),
        ({"type": "timestamp", "format": "%d.%m.%Y %H:%M %p", "zone": "UTC"}, "must have %I and %p together"),
        ({"type": "text", "nulable": False}, "nulable"),
    ],
)
def test_a_wrong_declaration_is_refused(column: Any, message: str) -> None:
    """It is an error of the configuration, with what is allowed."""
    with pytest.raises((ConfigurationError, ValidationError)) as caught:
        schema(a=column)
    assert message in str(caught.value)


# --- properties ---

NUMBERS = st.from_regex(r"[+-]?[0-9]{0,22}(\.[0-9]{0,4})?", fullmatch=True)


# Many texts for each table, which costs more than they do.
@given(st.lists(NUMBERS | st.text(st.characters(exclude_categories=("Cs",)), max_size=4), min_size=20, max_size=40))
@settings(max_examples=12)
def test_numbers_are_those_of_python_or_rejected(texts: list[str]) -> None:
    """An integer or a decimal has the value that Python reads exactly, or the row is rejected; none is lost."""
    for column in ("integer", "decimal(12, 3)", "float"):
        cast = load(schema(a=column), batch(a=[*texts]))
        assert cast.rows.num_rows + cast.rejects.num_rows == len(texts)
        rejected = {row["row"] - 1 for row in cast.rejects.to_pylist()}
        kept = [text for place, text in enumerate(texts) if place not in rejected]
        for text, value in zip(kept, cast.rows["a"].to_pylist(), strict=True):
            assert value == (float(text) if column == "float" else Decimal(text))
        for place in rejected if column != "float" else ():
            try:
                number = Decimal(texts[place])
            except InvalidOperation:
                continue
            limit, places = (2**63, 0) if column == "integer" else (10**9, 3)
            exact = number.is_finite() and number == round(number, places)
            assert not (texts[place].isascii() and exact and abs(number) < limit and _plain(texts[place]))


def _plain(text: str) -> bool:
    return all(char in "+-.0123456789" for char in text) and (text[-1:] != "" and text.lstrip("+-")[0] != ".")


@given(
    st.lists(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), min_size=1, max_size=5),
    st.sampled_from(["%Y-%m-%dT%H:%M:%S.%f%z", "%d.%m.%Y %I:%M:%S %p %f %z", "%Y %j %H%M%S.%f %z"]),
    st.integers(-14 * 60, 14 * 60),
)
@settings(max_examples=25)
def test_times_are_those_of_python(moments: list[datetime], format: str, offset: int) -> None:
    """A time that Python writes by a format is read as the same moment."""
    hours, minutes = divmod(abs(offset), 60)
    zone = f"{'-' if offset < 0 else '+'}{hours:02}{minutes:02}"
    # On some systems strftime does not pad years.
    texts = [each.strftime(format.replace("%Y", f"{each.year:04}").replace("%z", zone)) for each in moments]
    expected = [each.replace(tzinfo=UTC) - timedelta(minutes=offset) for each in moments]
    assert values({"type": "timestamp", "format": format}, *texts) == expected
