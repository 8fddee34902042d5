"""Normalisation: names, texts and zones in one form. Done twice it is the same as done once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from zoneinfo import ZoneInfo

import pandas as pd
from pandas.api.types import is_string_dtype

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.stages.base import Stage

Case = Literal["lower", "upper", "casefold"]
_CASES = ("lower", "upper", "casefold")


def normalise(
    *,
    names: Literal["snake_case"] | None = None,
    rename: Mapping[str, str] | None = None,
    strip: Sequence[str] = (),
    case: Mapping[str, Case] | None = None,
    empty_is_null: Sequence[str] = (),
    zones: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
) -> Stage:
    """Return a stage that brings rows into one form; they stay as many as they are.

    All options but `rename` name columns as they are called after the renaming.

    Args:
        names: "snake_case": names of columns become lower case, with _ between words.
        rename: new names of columns (old -> new), after `names`.
        strip: columns of text whose outer spaces are taken off, and whose inner ones become one.
        case: columns of text (name -> "lower", "upper" or "casefold").
        empty_is_null: columns in which an empty text is none.
        zones: columns of moments, each with the zone in which its time of day is shown.
        drop: columns that are left out.
    """
    renamed, cases, zones = dict(rename or {}), dict(case or {}), dict(zones or {})
    _check_rename(renamed, names is not None)
    _check_cases_and_zones(cases, zones)

    def stage(rows: pd.DataFrame) -> pd.DataFrame:
        rows = _renamed(rows, names is not None, renamed).drop(columns=list(drop), errors="ignore")
        changed: dict[str, pd.Series] = {}
        for column in strip:
            changed[column] = _mapped(rows, column, lambda text: " ".join(text.split()))
        for column, each in cases.items():
            changed[column] = _mapped(rows.assign(**changed), column, _in_case(each))
        for column in empty_is_null:
            texts = rows.assign(**changed)[_checked(rows, column)]
            changed[column] = texts.mask((texts == "").fillna(False).astype(bool))
        for column, zone in zones.items():
            changed[column] = _in_zone(rows, column, zone)
        return rows.assign(**changed)

    return stage


def _check_rename(renamed: dict[str, str], to_snake_case: bool) -> None:
    circle = sorted(set(renamed) & set(renamed.values()))
    if circle:
        raise ConfigurationError(f"rename: {circle[0]!r} is an old and a new name: what is done twice would differ")
    other = [new for new in renamed.values() if to_snake_case and snake_case(new) != new]
    if other:
        raise ConfigurationError(f"rename: {other[0]!r} is not in snake case: write {snake_case(other[0])!r}")


def _check_cases_and_zones(cases: dict[str, Case], zones: dict[str, str]) -> None:
    for column, each in cases.items():
        if each not in _CASES:
            raise ConfigurationError(f"case: {column}: {each!r} is not allowed: must be one of {', '.join(_CASES)}")
    for column, zone in zones.items():
        try:
            ZoneInfo(zone)
        except Exception:  # The database of zones raises many kinds.
            raise ConfigurationError(f"zones: {column}: {zone!r} is not the name of a zone") from None


def snake_case(name: str) -> str:
    """Return a name in lower case with _ between its words: `departure_delay` of "Departure delay"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^0-9a-z]+", "_", unicodedata.normalize("NFKD", spaced).casefold()).strip("_") or "_"


def _renamed(rows: pd.DataFrame, to_snake_case: bool, rename: dict[str, str]) -> pd.DataFrame:
    names = [snake_case(str(name)) if to_snake_case else str(name) for name in rows.columns]
    names = [rename.get(name, name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _error(f"two columns would be called {twice[0]!r}: give one of them another name by rename")
    return rows.set_axis(names, axis=1)


def _mapped(rows: pd.DataFrame, column: str, change: Callable[[str], str]) -> pd.Series:
    values = rows[_checked(rows, column)]
    if not is_string_dtype(values.dtype):
        raise _error(f"{column} is {values.dtype} and not text: take it out of strip and case")
    # Each text is changed once, however many rows have it.
    found = {text: change(text) for text in values.dropna().unique()}
    return values.map(found, na_action="ignore").astype(values.dtype)


def _in_case(case: Case) -> Callable[[str], str]:
    """Return a change of case after which the same change is none: in some scripts one step is not enough."""

    def change(text: str) -> str:
        while (changed := unicodedata.normalize("NFC", getattr(text, case)())) != text:
            text = changed
        return text

    return change


def _in_zone(rows: pd.DataFrame, column: str, zone: str) -> pd.Series:
    values = rows[_checked(rows, column)]
    if "timestamp" not in str(values.dtype) and "datetime64" not in str(values.dtype):
        raise _error(f"{column} is {values.dtype} and not a moment: declare it as timestamp in the table's schema")
    if values.dt.tz is None:
        raise _error(f"{column} has no zone: declare it as timestamp in the table's schema")
    converted: pd.Series = values.dt.tz_convert(zone)
    return converted


def _checked(rows: pd.DataFrame, column: str) -> str:
    if column not in rows:
        raise _error(f"there is no column {column}: the columns are {', '.join(map(str, rows.columns))}")
    return column


def _error(message: str) -> DataProcessingException:
    return DataProcessingException(f"normalise: {message}", error_code="DATA_ERROR", processing_stage="normalise")
