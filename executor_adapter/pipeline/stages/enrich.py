"""Enrichment: columns of another table are joined to rows, and no row becomes two by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.stages.base import Stage, StageOutput


def enrich(
    *,
    table: str | Path,
    on: str | Sequence[str] | Mapping[str, str],
    columns: str | Sequence[str] | Mapping[str, str],
    missing: Literal["keep", "reject", "drop"] = "keep",
    lake: Path | None = None,
) -> Stage:
    """Return a stage that adds columns of a table, which is read once, when the first rows come.

    Args:
        table: the table's folder or file; a relative one is below the lake, such as `processed/flights/airlines`.
        on: the columns that must be equal; a mapping where they are called otherwise there (here -> there).
        columns: the columns to add; a mapping where they are to be called otherwise (there -> here).
        missing: what becomes of rows that have no partner: they are kept without values, rejected or dropped.
        lake: the folder of the lake.
    """
    path = (lake or Path()) / table
    keys, added = _as_mapping(on), _as_mapping(columns)
    if missing not in ("keep", "reject", "drop"):
        raise ConfigurationError(f"missing: {missing!r} is not allowed: must be keep, reject or drop")
    partners: list[pd.DataFrame] = []

    def stage(rows: pd.DataFrame) -> StageOutput:
        if not partners:
            partners.append(_read(path, keys, added))
        _check(rows, partners[0], keys, added)
        joined = rows.merge(partners[0], how="left", on=list(keys), indicator="_partner").set_axis(rows.index)
        alone = joined.pop("_partner") == "left_only"
        if missing == "keep" or not alone.any():
            return StageOutput(rows=joined)
        reasons = pd.Series(f"no partner by {', '.join(keys)} in {path.name}", index=rows.index[alone], dtype="object")
        kept = joined[~alone]
        return (
            StageOutput(rows=kept, rejected=reasons) if missing == "reject" else StageOutput(rows=kept, dropped=reasons)
        )

    return stage


def _as_mapping(names: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(names, str):
        names = [names]
    found = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    if not found:
        raise ConfigurationError("on and columns must have at least one column each")
    return found


def _read(path: Path, keys: dict[str, str], added: dict[str, str]) -> pd.DataFrame:
    """Return the partners with the names that their columns have in the rows; one for each key, none without."""
    if not path.exists():
        raise _error(f"{path} does not exist: process that table first, or correct table", "CONFIGURATION_ERROR")
    found = ds.dataset(path, partitioning="hive")
    unknown = [name for name in (*keys.values(), *added) if name not in found.schema.names]
    if unknown:
        names = ", ".join(found.schema.names)
        raise _error(f"{path} has no column {unknown[0]}: it has {names}", "CONFIGURATION_ERROR")
    there = {**{there: here for here, there in keys.items()}, **added}
    rows = found.to_table(columns=list(there)).rename_columns(list(there.values()))
    # Without the nulls, because pandas would take two of them for the same.
    partners: pd.DataFrame = rows.to_pandas(types_mapper=pd.ArrowDtype).dropna(subset=list(keys))
    repeated = partners[partners.duplicated(list(keys))]
    if len(repeated):
        key = repeated.iloc[0][list(keys)].to_dict()
        raise _error(f"{path} has several rows with {key}: rows would become more by it: join by more columns")
    return partners


def _check(rows: pd.DataFrame, partners: pd.DataFrame, keys: dict[str, str], added: dict[str, str]) -> None:
    for name in keys:
        if name not in rows:
            raise _error(f"there is no column {name}: the columns are {', '.join(map(str, rows.columns))}")
        here, there = (pa.Array.from_pandas(each[name].head(0)).type for each in (rows, partners))
        if here != there:
            raise _error(f"{name} is {here} here and {there} there: declare the same type in both schemas")
    taken = [name for name in added.values() if name in rows]
    if taken:
        raise _error(f"there is a column {taken[0]} already: give the other one a name by a mapping in columns")


def _error(message: str, code: str = "DATA_ERROR") -> DataProcessingException:
    return DataProcessingException(f"enrich: {message}", error_code=code, processing_stage="enrich")
