"""Parses columns of text as declared: every value is taken exactly, or not at all.

Each parser takes an array of text and returns the values and a mask of those that are right; where the mask is false
the value has no meaning. Nothing is rounded, cut or shifted: what a type cannot hold is not right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.config import Column
from executor_adapter.pipeline.moments import parse_date, parse_timestamp

INTEGER = r"^[+-]?\d+(\.0*)?$"
DECIMAL = r"^(?P<sign>[+-]?)0*(?P<whole>\d*?)(?:\.(?P<places>\d*?)0*)?$"
FLOAT = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_SAFE_DIGITS = 18
"""Digits of which every integer fits in 64 bits."""
_MAX = 2**63 - 1


class Parsed(NamedTuple):
    """The values of a column, which of them are right, and what is said of the others."""

    values: pa.Array
    right: pa.Array
    reason: str


def arrow_type(column: Column) -> pa.DataType:
    """Return the type of a declared column in the lake."""
    match column.kind:
        case "integer":
            return pa.int64()
        case "decimal":
            return pa.decimal128(*column.digits_and_places)
        case "float":
            return pa.float64()
        case "boolean":
            return pa.bool_()
        case "date":
            return pa.date32()
        case "timestamp":
            return pa.timestamp("us", "UTC")
    return pa.string()


def parse(texts: pa.Array, column: Column) -> Parsed:
    """Parse an array of text as the column declares it; null texts are right.

    Of a dictionary array each text is parsed once, however many rows have it.
    """
    parser = _PARSERS[column.kind]
    if not isinstance(texts, pa.DictionaryArray):
        return parser(texts, column)
    values, right, reason = parser(texts.dictionary, column)
    if pc.all(right).as_py() is not False:
        return Parsed(values.take(texts.indices), pa.repeat(pa.scalar(True), len(texts)), reason)
    return Parsed(values.take(texts.indices), pc.fill_null(right.take(texts.indices), True), reason)


def _text(texts: pa.Array, column: Column) -> Parsed:
    return Parsed(
        texts, pa.array([True]).take(pa.repeat(0, len(texts))) if len(texts) else pa.array([], pa.bool_()), ""
    )


def _integer(texts: pa.Array, column: Column) -> Parsed:
    reason = "is not an integer of 64 bits"
    right = _matches(texts, INTEGER)
    # 12.0 is the same number as 12; 2.5 is no integer and has not matched.
    digits = pc.replace_substring_regex(pc.replace_substring_regex(texts, r"\.0*$", ""), r"^(\+|(-))?0*(\d)", r"\2\3")
    digits = _only(digits, right)
    if (pc.max(pc.utf8_length(digits)).as_py() or 0) > _SAFE_DIGITS:
        right = pc.and_(right, pc.fill_null(pc.less_equal(pc.utf8_length(digits), _SAFE_DIGITS + 2), True))
        wide = _only(digits, right).cast(pa.decimal128(38, 0))
        fits = pc.and_(
            pc.less_equal(wide, pa.scalar(_MAX, pa.decimal128(38, 0))),
            pc.greater_equal(wide, pa.scalar(-_MAX - 1, pa.decimal128(38, 0))),
        )
        right = pc.and_(right, pc.fill_null(fits, True))
    return Parsed(_only(digits, right).cast(pa.int64()), right, reason)


def _decimal(texts: pa.Array, column: Column) -> Parsed:
    digits, places = column.digits_and_places
    right = pc.and_(_matches(texts, DECIMAL), pc.fill_null(pc.match_substring_regex(texts, r"\d"), True))
    parts = pc.extract_regex(texts, DECIMAL)
    sign, whole, after = (pc.struct_field(parts, name) for name in ("sign", "whole", "places"))
    for part, most in ((whole, digits - places), (after, places)):
        right = pc.and_(right, pc.fill_null(pc.less_equal(pc.utf8_length(part), most), True))
    zero = pa.scalar("0")
    plain = pc.binary_join_element_wise(
        pc.replace_substring(sign, "+", ""), zero, whole, pa.scalar("."), after, zero, ""
    )
    # The added zeros need two digits more than the type has.
    wide = _only(plain, right).cast(pa.decimal256(digits + 2, places + 1))
    return Parsed(wide.cast(arrow_type(column)), right, f"is not a {column.type}")


def _float(texts: pa.Array, column: Column) -> Parsed:
    right = _matches(texts, FLOAT)
    values = _only(pc.replace_substring_regex(texts, r"^\+", ""), right).cast(pa.float64())
    return Parsed(values, pc.and_(right, pc.fill_null(pc.is_finite(values), True)), "is not a finite number")


def _boolean(texts: pa.Array, column: Column) -> Parsed:
    words = pc.utf8_lower(texts)
    yes = pc.is_in(words, pa.array([each.lower() for each in column.true_words], pa.string()))
    no = pc.is_in(words, pa.array([each.lower() for each in column.false_words], pa.string()))
    allowed = ", ".join((*column.true_words, *column.false_words))
    right = pc.or_(pc.or_(yes, no), pc.is_null(texts))
    return Parsed(_only(yes, pc.or_(yes, no)), right, f"is not one of {allowed}")


def _date(texts: pa.Array, column: Column) -> Parsed:
    values, right = parse_date(texts, column.format)
    return Parsed(values, right, f"is not a date as {column.format or '2013-01-31'}")


def _timestamp(texts: pa.Array, column: Column) -> Parsed:
    values, right = parse_timestamp(texts, column.format, column.zone)
    example = column.format or ("2013-01-31T10:00:00" if column.zone else "2013-01-31T10:00:00Z")
    where = f" in {column.zone}" if column.zone else " with a zone"
    return Parsed(values, right, f"is not a time as {example}{where}")


def _json(texts: pa.Array, column: Column) -> Parsed:
    right = [text is None or is_json(text) for text in texts.to_pylist()]
    return Parsed(texts, pa.array(right, pa.bool_()), "is not JSON")


def is_json(text: str) -> bool:
    """Return whether a text is JSON as RFC 8259 has it: NaN and Infinity are not."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _matches(texts: pa.Array, pattern: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(texts, pattern), True)


def _only(values: pa.Array, right: pa.Array) -> pa.Array:
    return pc.if_else(right, values, pa.scalar(None, values.type))


_PARSERS: dict[str, Callable[[pa.Array, Column], Parsed]] = {
    "text": _text,
    "integer": _integer,
    "decimal": _decimal,
    "float": _float,
    "boolean": _boolean,
    "date": _date,
    "timestamp": _timestamp,
    "json": _json,
}
