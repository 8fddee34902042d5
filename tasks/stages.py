"""The stages of processing: validate, normalise, aggregate. Pure functions that apply a table's rules to DataFrames.

Every input row is in the output exactly once: as a valid row, or as a reject with the reason.
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
"""The column of rejects that lists everything that is wrong with the row."""

_MERGE: dict[Measure, str] = {"sum": "sum", "count": "sum", "max": "max"}


def validate(rows: pd.DataFrame, rules: Rules, seen_keys: set[int] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split `rows` into valid rows and rejects. Both keep the index, which must be unique.

    Valid rows have the schema's columns and types only; rejects are unchanged but for the added column `reason`.
    `seen_keys` carries the keys from one batch to the next: a second row with the same key is rejected in any batch.

    Raises:
        DataProcessingException: DATA_ERROR, a column is missing, so no row can be valid.
    """
    reasons: dict[int, list[str]] = {}
    typed = _convert_columns(rows, rules.schema, reasons)
    _apply_schema(typed.drop(index=list(reasons)), rules.schema, reasons)
    good = typed.drop(index=list(reasons))
    _reject_repeated(good, rules.key, set() if seen_keys is None else seen_keys, reasons)
    rejects = rows.loc[list(reasons)].assign(**{REASON: ["; ".join(each) for each in reasons.values()]})
    return typed.drop(index=list(reasons)), rejects.astype({REASON: "str"}).sort_index()


def aggregate(rows: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Return the measures of normalised `rows`, one row per group, with the columns of the group first."""
    return _grouped(rows, rules.group_by, {name: (column, how) for name, (column, how) in rules.measures.items()})


def combine(parts: Iterable[pd.DataFrame], rules: Rules) -> pd.DataFrame:
    """Merge the measures of several sets of rows; the result equals `aggregate` of all rows together."""
    combined = pd.concat(list(parts), ignore_index=True)
    return _grouped(combined, rules.group_by, {name: (name, _MERGE[how]) for name, (_, how) in rules.measures.items()})


def _convert_columns(rows: pd.DataFrame, schema: pa.DataFrameSchema, reasons: dict[int, list[str]]) -> pd.DataFrame:
    """Return the schema's columns in its types; a value of another type becomes NA and its row a reject."""
    missing = [name for name in schema.columns if name not in rows]
    if missing:
        raise DataProcessingException(
            f"missing columns: {', '.join(missing)}: the columns are {', '.join(map(str, rows.columns))}",
            error_code="DATA_ERROR",
            processing_stage="validation",
        )
    typed = {}
    for name, column in schema.columns.items():
        typed[name], kind = _convert(rows[name], column.dtype.type)
        for index in rows.index[typed[name].isna() & rows[name].notna()]:
            reasons.setdefault(index, []).append(f"{name}: {_display(rows.at[index, name])} is not a {kind}")
    return pd.DataFrame(typed, index=rows.index)


def _convert(values: pd.Series, dtype: Any) -> tuple[pd.Series, str]:
    """Convert the values to `dtype`, with NA for values of another type; also return the name of the type."""
    if is_integer_dtype(dtype):
        numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
        return numbers.where(numbers % 1 == 0).astype(dtype), "whole number"
    if is_float_dtype(dtype):
        return pd.to_numeric(values, errors="coerce").astype("Float64").astype(dtype), "number"
    if is_datetime64_any_dtype(dtype):
        return pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601").astype(dtype), "time"
    return values.astype(dtype), "text"


def _display(value: Any) -> str:
    """Return a value as a person writes it: 13 instead of np.int64(13)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _apply_schema(typed: pd.DataFrame, schema: pa.DataFrameSchema, reasons: dict[int, list[str]]) -> None:
    try:
        schema.validate(typed, lazy=True)
    except pa.errors.SchemaErrors as errors:
        # A check of several columns reports one failure for each of them.
        failures = errors.failure_cases.drop_duplicates(["index", "check", "column"])
        for failure in failures.itertuples():
            _add_reason(failure, reasons)


def _add_reason(failure: Any, reasons: dict[int, list[str]]) -> None:
    index, column, check, value = failure.index, failure.column, failure.check, failure.failure_case
    if index is None or pd.isna(index):
        raise DataProcessingException(f"{check}: {value}", error_code="DATA_ERROR", processing_stage="validation")
    whole_row = failure.schema_context == "DataFrameSchema"
    empty = check == "not_nullable"
    reason = str(check) if whole_row else f"{column}: is empty" if empty else f"{column}: {_display(value)} {check}"
    row_reasons = reasons.setdefault(int(index), [])
    if reason not in row_reasons:
        row_reasons.append(reason)


def _reject_repeated(
    good: pd.DataFrame, key: Sequence[str], seen_keys: set[int], reasons: dict[int, list[str]]
) -> None:
    hashes = pd.util.hash_pandas_object(good[list(key)], index=False)
    repeated = hashes.duplicated() | hashes.isin(seen_keys)
    for index in good.index[repeated]:
        reasons[index] = [f"a second row with this {', '.join(key)}"]
    seen_keys.update(hashes.tolist())


def _grouped(rows: pd.DataFrame, by: Sequence[str], measures: dict[str, tuple[str, str]]) -> pd.DataFrame:
    # Without grouping columns all rows form one group, by a constant column that is dropped again.
    keys = list(by) or ["_all"]
    grouped = rows.assign(_all=0).groupby(keys, dropna=False, as_index=False, sort=True)
    counted = grouped.agg(**{name: pd.NamedAgg(column, how) for name, (column, how) in measures.items()})
    return counted[[*by, *measures]]
