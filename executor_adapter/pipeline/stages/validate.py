"""Validation by pandera: a row that fails a check is rejected, with everything that is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_integer_dtype, is_string_dtype

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.stages.base import Stage, StageOutput

MAX_VALUE = 60
"""Characters of a value in a reason."""


def validate(*, schema: Any) -> Stage:
    """Return a stage that checks rows against a pandera schema.

    Valid rows have the columns of the schema, in its types. A column that is missing fails the whole window.

    Args:
        schema: a `DataFrameSchema`, or `module:name` of one.
    """
    try:
        import pandera.errors as errors
    except ImportError:
        raise ConfigurationError(
            "stages: validate needs pandera, which is not installed: pip install 'pandera[pandas]'"
        ) from None
    found = import_object(schema, "stages: validate: schema") if isinstance(schema, str) else schema
    found = found.to_schema() if hasattr(found, "to_schema") else found

    def stage(rows: pd.DataFrame) -> StageOutput:
        typed = _in_types_of(rows, found)
        reasons: dict[Any, list[str]] = {}
        try:
            typed = found.validate(typed, lazy=True, inplace=True)
        except errors.SchemaErrors as error:
            # A check of several columns reports one failure for each of them.
            for failure in error.failure_cases.drop_duplicates(["index", "check", "column"]).itertuples():
                _note(failure, reasons)
        if not reasons:
            return StageOutput(rows=typed)
        rejected = pd.Series({label: "; ".join(each) for label, each in sorted(reasons.items())}, dtype="object")
        return StageOutput(rows=typed.drop(index=list(reasons)), rejected=rejected)

    return stage


def _in_types_of(rows: pd.DataFrame, schema: Any) -> pd.DataFrame:
    """Return the schema's columns in its types; a type that cannot hold a value exactly is a mistake of the schemas."""
    missing = [name for name, column in schema.columns.items() if name not in rows and column.required]
    if missing:
        raise _error(f"missing columns: {', '.join(missing)}: the columns are {', '.join(map(str, rows.columns))}")
    typed = {}
    for name, column in schema.columns.items():
        if name not in rows:
            continue
        typed[name] = rows[name]
        if column.dtype is not None and rows[name].dtype != column.dtype.type:
            typed[name] = _converted(rows[name], column.dtype.type)
    return pd.DataFrame(typed, index=rows.index)


def _converted(values: pd.Series, dtype: Any) -> pd.Series:
    try:
        if _is_exact(values.dtype, dtype):
            return pd.Series(dtype.__from_arrow__(values.array.__arrow_array__()), values.index, name=values.name)
        converted = values.astype(dtype)
        same = (converted.astype(values.dtype) == values) | values.isna()
    except (TypeError, ValueError, OverflowError) as error:
        raise _error(f"{values.name}: {values.dtype} cannot become {dtype}: {error}: declare its type") from error
    if not same.all() or (converted.isna() != values.isna()).any():
        changed = values[~same.astype(bool)].head(1).tolist()
        raise _error(f"{values.name}: {dtype} cannot hold {changed}: declare a wider type in the pandera schema")
    return converted


def _is_exact(given: Any, dtype: Any) -> bool:
    """Return whether pandas takes an Arrow column as it is into the type, or raises: without asking value by value."""
    if not (isinstance(given, pd.ArrowDtype) and hasattr(dtype, "__from_arrow__")):
        return False
    kind = given.pyarrow_dtype
    return (
        (pa.types.is_integer(kind) and is_integer_dtype(dtype))
        or (pa.types.is_string(kind) and is_string_dtype(dtype))
        or (pa.types.is_timestamp(kind) and kind.tz is not None and isinstance(dtype, pd.DatetimeTZDtype))
    )


def _note(failure: Any, reasons: dict[Any, list[str]]) -> None:
    label, column, check = failure.index, failure.column, failure.check
    if label is None or pd.isna(label):
        raise _error(f"{column}: {check}: {failure.failure_case}")
    if failure.schema_context == "DataFrameSchema":
        reason = str(check)
    elif check == "not_nullable":
        reason = f"{column}: is empty"
    else:
        reason = f"{column}: {_shown(failure.failure_case)} {check}"
    found = reasons.setdefault(int(label), [])
    if reason not in found:
        found.append(reason)


def _shown(value: Any) -> str:
    """Return a value as a person writes it, cut where it is long: 13 instead of np.int64(13)."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def _error(message: str) -> DataProcessingException:
    return DataProcessingException(f"validate: {message}", error_code="DATA_ERROR", processing_stage="validate")
