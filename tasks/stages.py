"""The stages of processing: validate, normalise, aggregate. Pure functions on DataFrames, by the rules of a table.

Every row that goes in comes out once: as a good one, or as a reject that says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandas.api.types import is_datetime64_any_dtype, is_float_dtype, is_integer_dtype

from executor_adapter.exceptions import DataProcessingException
from tasks.rules import Measure, Rules

REASON = "reason"
"""The column of rejects that says what is wrong, all of it."""

_MERGE: dict[Measure, str] = {"sum": "sum", "count": "sum", "max": "max"}


def validate(rows: pd.DataFrame, rules: Rules, seen: set[int] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part `rows` into those that follow the rules, typed and with the schema's columns alone, and the rejects, as they
    came and with a `reason`. Both keep the index, which must be unique.

    `seen` remembers the keys from one batch to the next: the second row of a key is a reject in any of them.

    Raises:
        DataProcessingException: DATA_ERROR, a column is missing: no row could pass.
    """
    reasons: dict[int, list[str]] = {}
    typed = _typed(rows, rules.schema, reasons)
    _check(typed.drop(index=list(reasons)), rules.schema, reasons)
    good = typed.drop(index=list(reasons))
    _reject_repeated(good, rules.key, set() if seen is None else seen, reasons)
    rejects = rows.loc[list(reasons)].assign(**{REASON: ["; ".join(each) for each in reasons.values()]})
    return typed.drop(index=list(reasons)), rejects.astype({REASON: "str"}).sort_index()


def aggregate(rows: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """The measures of normalised `rows`, one row a group, the group's columns first."""
    return _grouped(rows, rules.by, {name: (column, how) for name, (column, how) in rules.measures.items()})


def combine(parts: Iterable[pd.DataFrame], rules: Rules) -> pd.DataFrame:
    """The measures of several sets of rows from the measures of each, as if `aggregate` had seen all at once."""
    every = pd.concat(list(parts), ignore_index=True)
    return _grouped(every, rules.by, {name: (name, _MERGE[how]) for name, (_, how) in rules.measures.items()})


def _typed(rows: pd.DataFrame, schema: pa.DataFrameSchema, reasons: dict[int, list[str]]) -> pd.DataFrame:
    """The schema's columns with its types; a value that has not the type becomes NA, and the row a reject."""
    missing = [name for name in schema.columns if name not in rows]
    if missing:
        raise DataProcessingException(
            f"no column {', '.join(missing)}: there are {', '.join(map(str, rows.columns))}",
            error_code="DATA_ERROR",
            processing_stage="validation",
        )
    typed = {}
    for name, column in schema.columns.items():
        typed[name], kind = _converted(rows[name], column.dtype.type)
        for index in rows.index[typed[name].isna() & rows[name].notna()]:
            reasons.setdefault(index, []).append(f"{name}: {_shown(rows.at[index, name])} is no {kind}")
    return pd.DataFrame(typed, index=rows.index)


def _converted(values: pd.Series, dtype: Any) -> tuple[pd.Series, str]:
    """The values as `dtype`, NA where they are none, and what such a value is called."""
    if is_integer_dtype(dtype):
        numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
        return numbers.where(numbers % 1 == 0).astype(dtype), "whole number"
    if is_float_dtype(dtype):
        return pd.to_numeric(values, errors="coerce").astype("Float64").astype(dtype), "number"
    if is_datetime64_any_dtype(dtype):
        return pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601").astype(dtype), "time"
    return values.astype(dtype), "text"


def _shown(value: Any) -> str:
    """A value as a person writes it: 13, and not np.int64(13)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _check(typed: pd.DataFrame, schema: pa.DataFrameSchema, reasons: dict[int, list[str]]) -> None:
    try:
        schema.validate(typed, lazy=True)
    except pa.errors.SchemaErrors as errors:
        # A check over several columns fails once for each of them.
        failures = errors.failure_cases.drop_duplicates(["index", "check", "column"])
        for failure in failures.itertuples():
            _note(failure, reasons)


def _note(failure: Any, reasons: dict[int, list[str]]) -> None:
    index, column, check, value = failure.index, failure.column, failure.check, failure.failure_case
    if index is None or pd.isna(index):
        raise DataProcessingException(f"{check}: {value}", error_code="DATA_ERROR", processing_stage="validation")
    whole_row = failure.schema_context == "DataFrameSchema"
    empty = check == "not_nullable"
    reason = str(check) if whole_row else f"{column}: is empty" if empty else f"{column}: {_shown(value)} {check}"
    noted = reasons.setdefault(int(index), [])
    if reason not in noted:
        noted.append(reason)


def _reject_repeated(good: pd.DataFrame, key: Sequence[str], seen: set[int], reasons: dict[int, list[str]]) -> None:
    hashes = pd.util.hash_pandas_object(good[list(key)], index=False)
    repeated = hashes.duplicated() | hashes.isin(seen)
    for index in good.index[repeated]:
        reasons[index] = [f"a second row with this {', '.join(key)}"]
    seen.update(hashes.tolist())


def _grouped(rows: pd.DataFrame, by: Sequence[str], measures: dict[str, tuple[str, str]]) -> pd.DataFrame:
    # Without columns to group by all rows are one group, made by a constant that is dropped again.
    keys = list(by) or ["_all"]
    grouped = rows.assign(_all=0).groupby(keys, dropna=False, as_index=False, sort=True)
    counted = grouped.agg(**{name: pd.NamedAgg(column, how) for name, (column, how) in measures.items()})
    return counted[[*by, *measures]]
