"""SQL that casts text to the declared types: every value is taken exactly, or not at all.

Before DuckDB casts a text, a regular expression guards that the cast neither rounds, cuts nor moves it: null is what
is not right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from executor_adapter.config import Column

INTEGER = r"[+-]?\d+(\.0*)?"
FLOAT = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_OFFSET = r"Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?"
_ISO_TIME = r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,6}0{0,3})?)?"
_FIELDS = {
    "Y": ("year", r"(\d{4})"),
    "y": ("short", r"(\d\d)"),
    "m": ("month", r"(\d\d?)"),
    "b": ("name", r"([A-Za-z]{3})"),
    "d": ("day", r"(\d\d?)"),
    "j": ("number", r"(\d{1,3})"),
    "H": ("hour", r"(\d\d?)"),
    "I": ("half", r"(\d\d?)"),
    "p": ("noon", r"([AaPp][Mm])"),
    "M": ("minute", r"(\d\d?)"),
    "S": ("second", r"(\d\d?)"),
    "f": ("part", r"(\d{1,6})0{0,3}"),
    "z": ("zone", f"({_OFFSET})"),
    "%": ("", "%"),
}
"""What a directive of a format is called in SQL, where M and m are the same name, and what it matches."""
_MONTHS = "['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec']"


def reason_of(column: Column) -> str:
    """Return what is said of a value that the column cannot hold."""
    match column.kind:
        case "integer":
            return "is not an integer of 64 bits"
        case "float":
            return "is not a finite number"
        case "boolean":
            return f"is not one of {', '.join((*column.true_words, *column.false_words))}"
        case "date":
            return f"is not a date as {column.format or '2013-01-31'}"
        case "timestamp":
            example = column.format or ("2013-01-31T10:00:00" if column.zone else "2013-01-31T10:00:00Z")
            return f"is not a time as {example}{f' in {column.zone}' if column.zone else ' with a zone'}"
        case "json":
            return "is not JSON"
    return f"is not a {column.type}"


def cleaned(column: Column, text: str) -> str:
    """Return SQL of a text without the spaces around it and the words that mean null, as the column says."""
    if column.strip:
        text = rf"regexp_replace({text}, '^[\s\x0b\x1c-\x1f\x85\pZ]+|[\s\x0b\x1c-\x1f\x85\pZ]+$', '', 'g')"
    return f"CASE WHEN {text} NOT IN ({_texts(column.nulls)}) THEN {text} END" if column.nulls else text


def cast(column: Column, text: str) -> str:
    """Return SQL of the value of a text; null where it is not right. `text` is a column, so that it costs nothing."""
    match column.kind:
        case "integer":
            return _guarded(text, INTEGER, f"TRY_CAST({text} AS BIGINT)")
        case "decimal":
            digits, places = column.digits_and_places
            pattern = rf"[+-]?0*\d{{0,{digits - places}}}(\.\d{{0,{places}}}0*)?"
            return _guarded(text, pattern, f"TRY_CAST({text} AS DECIMAL({digits}, {places}))")
        case "float":
            number = f"TRY_CAST({text} AS DOUBLE)"
            return _guarded(text, FLOAT, f"CASE WHEN isfinite({number}) THEN {number} END")
        case "boolean":
            yes, no = (_texts(each.lower() for each in words) for words in (column.true_words, column.false_words))
            return f"CASE WHEN lower({text}) IN ({yes}) THEN true WHEN lower({text}) IN ({no}) THEN false END"
        case "date" if column.format is None:
            return _guarded(text, r"\d{4}-\d\d?-\d\d?", f"CASE WHEN {text} >= '0001' THEN TRY_CAST({text} AS DATE) END")
        case "date":
            return _with_fields(column.format or "", text, "TRY_CAST({date} AS DATE)")
        case "timestamp":
            return _timestamp(column, text)
        case "json":
            return f"CASE WHEN is_json({text}) THEN {text} END"
    return text


def is_json(text: str) -> bool:
    """Return whether a text is JSON as RFC 8259 has it: NaN and Infinity are not. DuckDB calls it by this name."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def shown(text: str, limit: int) -> str:
    """Return SQL that shows a text as Python does, cut where it is longer than `limit`."""
    cut = f"CASE WHEN length({text}) > {limit} THEN left({text}, {limit}) || '...' ELSE {text} END"
    for raw, code in (("'\\'", r"'\\'"), ("chr(10)", r"'\n'"), ("chr(13)", r"'\r'"), ("chr(9)", r"'\t'")):
        cut = f"replace({cut}, {raw}, {code})"
    double = f"contains({text}, '''') AND NOT contains({text}, '\"')"
    return f"CASE WHEN {double} THEN '\"' || {cut} || '\"' ELSE '''' || replace({cut}, '''', '\\''') || '''' END"


def literal(value: object) -> str:
    """Return a text in SQL."""
    return "'" + str(value).replace("'", "''") + "'"


def _timestamp(column: Column, text: str) -> str:
    moment = "TRY_CAST({moment} AS TIMESTAMPTZ)"
    local = "list_transform([TRY_CAST({moment} AS TIMESTAMP)], lambda l: " + _in_zone(column.zone) + ")[1]"
    if column.format is not None:
        if "%z" not in column.format.replace("%%", ""):
            return _with_fields(column.format, text, local)
        return _with_fields(column.format, text, moment.replace("{moment}", "{moment} || f.zone"))
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

    def there(moment: str) -> str:
        return f"timezone({literal(zone)}, timezone('UTC', {moment}))"

    # By the offset of the day before, and of the day after: where these differ, one of the two may be right.
    before, after = (f"(l - ({there(f'l {sign} INTERVAL 1 DAY')} - (l {sign} INTERVAL 1 DAY)))" for sign in "-+")
    is_before, is_after = f"{there(before)} = l", f"{there(after)} = l"
    return (
        f"CASE WHEN {is_before} AND ({before} = {after} OR NOT {is_after}) THEN timezone('UTC', {before}) "
        f"WHEN {is_after} AND NOT {is_before} THEN timezone('UTC', {after}) END"
    )


def _with_fields(format: str, text: str, value: str) -> str:
    """Return SQL of `value` with {date} and {moment}, in ISO 8601, of a text in a format; `f` has its fields."""
    parts = re.split(r"%(.)", format)
    pattern = "".join(_FIELDS[part][1] if place % 2 else re.escape(part) for place, part in enumerate(parts))
    names = ["whole", *(name for each in parts[1::2] if (name := _FIELDS[each][0]))]
    fields = f"regexp_extract({text}, {literal(f'^({pattern})$')}, [{_texts(names)}])"
    date, moment = _date(names), f"{_date(names)} || ' ' || {_time(names)}"
    inner = f"CASE WHEN f.whole <> '' THEN {value.format(date=date, moment=moment)} END"
    return f"CASE WHEN {text} IS NOT NULL THEN list_transform([{fields}], lambda f: {inner})[1] END"


def _date(names: list[str]) -> str:
    year, month, day = "'0001'", "'01'", "'01'"
    if "year" in names:
        year = "nullif(f.year, '0000')"
    if "short" in names:
        year = "CASE WHEN f.short < '69' THEN '20' ELSE '19' END || f.short"  # As POSIX has it.
    if "month" in names:
        month = "lpad(f.month, 2, '0')"
    if "name" in names:
        month = f"lpad(CAST(list_position({_MONTHS}, lower(f.name)) AS VARCHAR), 2, '0')"
    if "day" in names:
        day = "lpad(f.day, 2, '0')"
    if "number" not in names:
        return f"{year} || '-' || {month} || '-' || {day}"
    first = f"TRY_CAST({year} || '-01-01' AS DATE)"
    found = f"{first} + (CAST(f.number AS INTEGER) - 1)"
    same_year = f"CAST(f.number AS INTEGER) > 0 AND year({found}) = year({first})"
    return f"CASE WHEN {same_year} THEN CAST({found} AS VARCHAR) END"


def _time(names: list[str]) -> str:
    hour = "lpad(f.hour, 2, '0')" if "hour" in names else "'00'"
    if "half" in names:
        afternoon = "CASE WHEN lower(f.noon) = 'pm' THEN 12 ELSE 0 END" if "noon" in names else "0"
        found = f"lpad(CAST(CAST(f.half AS INTEGER) % 12 + {afternoon} AS VARCHAR), 2, '0')"
        hour = f"CASE WHEN CAST(f.half AS INTEGER) BETWEEN 1 AND 12 THEN {found} END"
    elif "hour" in names:
        hour = f"CASE WHEN {hour} < '24' THEN {hour} END"  # 24:00 would be the next day.
    minute, second = (f"lpad(f.{each}, 2, '0')" if each in names else "'00'" for each in ("minute", "second"))
    fraction = "'.' || rpad(f.part, 6, '0')" if "part" in names else "''"
    return f"{hour} || ':' || {minute} || ':' || {second} || {fraction}"


def _guarded(text: str, pattern: str, value: str) -> str:
    return f"CASE WHEN regexp_full_match({text}, '{pattern}') THEN {value} END"


def _texts(values: Iterable[str]) -> str:
    return ", ".join(map(literal, values))


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
