"""Checks by pandera: a row that fails a check is rejected, with everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.text_rows import REASON, ROW, shown


def checked_by(schema: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return a function that checks rows against a pandera schema, and gives those that fail a `_reason`.

    The columns of the schema get its types. Others stay, unless it is strict, as pandera has it. A column that is
    missing fails the whole window.

    Args:
        schema: a `DataFrameSchema`, or a model of one.
    """
    try:
        import pandera.errors as errors
    except ImportError:
        raise ConfigurationError(
            "steps: check needs pandera, which is not installed: pip install 'pandera[pandas]'"
        ) from None
    schema = schema.to_schema() if hasattr(schema, "to_schema") else schema

    def check(rows: pd.DataFrame) -> pd.DataFrame:
        numbers = rows.pop(ROW)
        typed = _in_types_of(rows, schema)
        reasons: dict[Any, list[str]] = {}
        try:
            typed = schema.validate(typed, lazy=True, inplace=True)
        except errors.SchemaErrors as error:
            # A check of several columns reports one failure for each of them.
            for failure in error.failure_cases.drop_duplicates(["index", "check", "column"]).itertuples():
                _note(failure, reasons)
        found = pd.Series({label: "; ".join(each) for label, each in reasons.items()}, dtype="object")
        return typed.assign(**{ROW: numbers, REASON: found.reindex(rows.index).astype("string[pyarrow]")})

    return check


def _in_types_of(rows: pd.DataFrame, schema: Any) -> pd.DataFrame:
    """Return rows in the schema's types; a type that cannot hold a value exactly is a mistake of the schemas."""
    wrong = {
        name: column.dtype.type
        for name, column in schema.columns.items()
        if name in rows and column.dtype is not None and rows[name].dtype != column.dtype.type
    }
    return rows.assign(**{name: _converted(rows[name], kind) for name, kind in wrong.items()})


def _converted(values: pd.Series, dtype: Any) -> pd.Series:
    kind = pa.array(pd.Series([], dtype=dtype)).type
    if pa.types.is_null(kind) or pa.types.is_dictionary(kind):  # Python's objects and categories hold any value.
        return values.astype(dtype)
    try:
        source = pa.array(values)
        given = source.cast(kind)
        if not given.cast(source.type).equals(source):  # Arrow rounds a decimal to the nearest float.
            raise ValueError("a value would change")
        found = dtype.__from_arrow__(given) if hasattr(dtype, "__from_arrow__") else np.asarray(given)
        return pd.Series(found, values.index, dtype, name=values.name)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _error(f"{values.name}: {values.dtype} cannot become {dtype}: {error}: declare its type") from error


def _note(failure: Any, reasons: dict[Any, list[str]]) -> None:
    label, column, check = failure.index, failure.column, failure.check
    if label is None or pd.isna(label):
        raise _error(f"{column or 'the rows'}: {check}: {failure.failure_case}")
    if failure.schema_context == "DataFrameSchema":
        reason = str(check)
    elif check == "not_nullable":
        reason = f"{column}: is empty"
    else:
        reason = f"{column}: {shown(failure.failure_case)} {check}"
    found = reasons.setdefault(int(label), [])
    if reason not in found:
        found.append(reason)


def _error(message: str) -> DataProcessingException:
    return rows_error(f"check: {message}", "check")
