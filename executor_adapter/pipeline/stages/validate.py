"""Validation by pandera: a row that fails a check is rejected, with everything that is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.stages.base import Stage, StageOutput
from executor_adapter.pipeline.stages.loading import import_object

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
            typed = found.validate(typed, lazy=True)
        except errors.SchemaErrors as error:
            # A check of several columns reports one failure for each of them.
            for failure in error.failure_cases.drop_duplicates(["index", "check", "column"]).itertuples():
                _note(failure, reasons)
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
        converted = values.astype(dtype)
        same = (converted.astype(values.dtype) == values) | values.isna()
    except (TypeError, ValueError, OverflowError) as error:
        raise _error(f"{values.name}: {values.dtype} cannot become {dtype}: {error}: declare its type") from error
    if not same.all() or (converted.isna() != values.isna()).any():
        changed = values[~same.astype(bool)].head(1).tolist()
        raise _error(f"{values.name}: {dtype} cannot hold {changed}: declare a wider type in the pandera schema")
    return converted


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
    return DataProcessingException(message, error_code="DATA_ERROR", processing_stage="validate")
