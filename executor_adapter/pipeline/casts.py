"""SQL that casts text to the declared types: every value is taken exactly, or not at all.

Before DuckDB casts a text, a regular expression guards that the cast neither rounds, cuts nor moves it: null is what
is not right.
"""

from __future__ import annotations

import json
import re
from typing import Any

from executor_adapter.config import Column

INTEGER = r"[+-]?\d+(\.0*)?"
FLOAT = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_OFFSET = r"Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?"
_ISO_TIME = r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,6}0{0,3})?)?"
_FIELDS = {
    "Y": r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})",
    "y": r"\d\d",
    "m": r"\d\d?",
    "b": "[A-Za-z]{3}",
    "d": r"\d\d?",
    "j": r"\d{1,3}",
    "H": r"\d\d?",
    "I": r"\d\d?",
    "p": "[AaPp][Mm]",
    "M": r"\d\d?",
    "S": r"\d\d?",
    "f": r"\d{1,6}0{0,3}",
    "z": f"({_OFFSET})",
    "%": "%",
}
"""What a directive of a format matches."""


def cleaned(column: Column, text: str) -> str:
    """Return SQL of a text without the words that mean null, as the column says."""
    nulls = ", ".join(map(literal, column.nulls))
    return f"CASE WHEN {text} NOT IN ({nulls}) THEN {text} END" if nulls else text


def cast(column: Column, text: str) -> tuple[str, str]:
    """Return SQL of the value of a text, null where it is not right, and what is said of it then.

    `text` is a column, so that it costs nothing. Every text is right for a column of text, of which nothing is said.
    """
    match column.kind:
        case "integer":
            return _guarded(text, INTEGER, f"TRY_CAST({text} AS BIGINT)"), "is not an integer of 64 bits"
        case "decimal":
            digits, places = column.digits_and_places
            pattern = rf"[+-]?0*\d{{0,{digits - places}}}(\.\d{{0,{places}}}0*)?"
            value = f"TRY_CAST({text} AS DECIMAL({digits}, {places}))"
            return _guarded(text, pattern, value), f"is not a {column.type}"
        case "float":
            number = f"TRY_CAST({text} AS DOUBLE)"
            value = f"CASE WHEN isfinite({number}) THEN {number} END"
            return _guarded(text, FLOAT, value), "is not a finite number"
        case "boolean":
            value = f"CASE lower({text}) WHEN 'true' THEN true WHEN 'false' THEN false END"
            return value, "is not one of true, false"
        case "date":
            value = f"CASE WHEN {text} >= '0001' THEN TRY_CAST({text} AS DATE) END"
            iso = _guarded(text, r"\d{4}-\d\d?-\d\d?", value)
            given = f"CAST({_by_format(column.format, text)} AS DATE)" if column.format else iso
            return given, f"is not a date as {column.format or '2013-01-31'}"
        case "timestamp":
            example = column.format or ("2013-01-31T10:00:00" if column.zone else "2013-01-31T10:00:00Z")
            zone = f" in {column.zone}" if column.zone else " with a zone"
            return _timestamp(column, text), f"is not a time as {example}{zone}"
        case "json":
            return f"CASE WHEN is_json({text}) THEN {text} END", "is not JSON"
    return text, ""


def is_json(text: str) -> bool:
    """Return whether a text is JSON as RFC 8259 has it: NaN and Infinity are not. DuckDB calls it by this name."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def literal(value: object) -> str:
    """Return a text in SQL."""
    return "'" + str(value).replace("'", "''") + "'"


def _timestamp(column: Column, text: str) -> str:
    moment = "TRY_CAST({moment} AS TIMESTAMPTZ)"
    local = "list_transform([TRY_CAST({moment} AS TIMESTAMP)], lambda l: " + _in_zone(column.zone) + ")[1]"
    if column.format is not None:
        found = _by_format(column.format, text)
        return found if "%z" in column.format.replace("%%", "") else local.format(moment=found)
    iso = f"replace({text}, ',', '.')"
    value = f"WHEN regexp_full_match({text}, '{_ISO_TIME}({_OFFSET})') THEN {moment.format(moment=iso)}"
    if column.zone is not None:
        value += f" WHEN regexp_full_match({text}, '{_ISO_TIME}') THEN {local.format(moment=iso)}"
    return f"CASE WHEN {text} < '0001' THEN NULL {value} END"


def _in_zone(zone: str | None) -> str:
    """Return SQL of the moment of a local time `l`; null where a change of the clocks leaves it out or has it twice."""
    if zone is None:
        return "CAST(NULL AS TIMESTAMPTZ)"
    if zone == "UTC":
        return "timezone('UTC', l)"
    moment = f"timezone({literal(zone)}, l)"
    is_local = [f"timezone({literal(zone)}, {moment} + INTERVAL ({each}) MINUTE) = l" for each in (0, -60, -30, 30, 60)]
    return f"CASE WHEN {is_local[0]} AND NOT ({' OR '.join(is_local[1:])}) THEN {moment} END"


def _by_format(format: str, text: str) -> str:
    """Return SQL of the time that a text in a format says, with its offset where the format has one."""
    parts = re.split(r"%(.)", format)
    pattern = "".join(_FIELDS[part] if place % 2 else re.escape(part) for place, part in enumerate(parts))
    given = text
    if "f" in parts[1::2]:  # Of nine digits after the point DuckDB takes none, though the last three are zeros.
        given = rf"regexp_replace({given}, '(\D\d{{6}})0{{1,3}}(\D|$)', '\1\2')"
    if "z" in parts[1::2]:  # It does not know Z either.
        given, format = f"replace({given}, 'Z', '+00')", format.replace("Z", "+00")
    return _guarded(text, pattern.replace("'", "''"), f"try_strptime({given}, {literal(format)})")


def _guarded(text: str, pattern: str, value: str) -> str:
    return f"CASE WHEN regexp_full_match({text}, '{pattern}') THEN {value} END"


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
