"""Aggregation: measures of groups of rows, batch by batch; the result is that of all rows together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.exceptions import ConfigurationError, DataProcessingException

Measure = Literal["count", "sum", "min", "max", "mean"]

_PARTS: dict[str, tuple[str, ...]] = {"count": ("count",), "sum": ("sum",), "min": ("min",), "max": ("max",)}
_PARTS["mean"] = ("sum", "count")
_AGAIN = {"count": "sum", "sum": "sum", "min": "min", "max": "max"}


class Aggregate:
    """Collects the measures of rows.

    Args:
        by: the columns whose values make the groups; none: all rows are one group.
        measures: for each measure (name -> (column, how)) the column and "count", "sum", "min", "max" or "mean".
            Rows without a value do not count; a group without any has null, and a count of 0.

    Raises:
        ConfigurationError: a measure is of another kind, or has the name of a column of the group.
    """

    def __init__(self, by: Sequence[str] = (), measures: Mapping[str, tuple[str, Measure]] | None = None) -> None:
        self._by = [by] if isinstance(by, str) else list(by)
        self._measures = {name: (column, how) for name, (column, how) in (measures or {}).items()}
        self._partial: pa.Table | None = None
        if not self._measures:
            raise ConfigurationError("measures: must have at least one entry, such as rows: [id, count]")
        for name, (_, how) in self._measures.items():
            if how not in get_args(Measure):
                allowed = ", ".join(get_args(Measure))
                raise ConfigurationError(f"measures: {name}: {how!r} is not allowed: must be one of {allowed}")
            if name in self._by:
                raise ConfigurationError(f"measures: {name} is a column of the group: give the measure another name")

    def add(self, rows: pa.Table) -> None:
        """Add rows.

        Raises:
            DataProcessingException: DATA_ERROR, a column is missing, or a sum has more than 64 bits.
        """
        for column in (*self._by, *(column for column, _ in self._measures.values())):
            if column not in rows.column_names:
                raise _error(f"measures: there is no column {column}: the columns are {', '.join(rows.column_names)}")
        sums = {
            f"{part} {name}": (_wide(rows[column]) if part == "sum" else rows[column], part)
            for name, (column, how) in self._measures.items()
            for part in _PARTS[how]
        }
        values = {name: column for name, (column, _) in sums.items()}
        table = pa.table({**{f"by {name}": rows[name] for name in self._by}, **values})
        found = self._grouped(table, {name: part for name, (_, part) in sums.items()})
        if self._partial is not None:
            both = pa.concat_tables([self._partial, found], promote_options="permissive")
            found = self._grouped(both, {name: _AGAIN[part] for name, (_, part) in sums.items()})
        self._partial = found

    def _grouped(self, table: pa.Table, how: dict[str, str]) -> pa.Table:
        groups = [f"by {name}" for name in self._by]
        grouped = table.group_by(groups, use_threads=False).aggregate(list(how.items()))
        names = {f"{name}_{part}": name for name, part in how.items()}
        return grouped.rename_columns([names.get(name, name) for name in grouped.column_names])

    def result(self) -> pa.Table | None:
        """Return a row for each group, in the order of the groups, with their columns first; None before any rows."""
        if self._partial is None:
            return None
        partial, columns = self._partial, {}
        for name in self._by:
            columns[name] = partial[f"by {name}"]
        for name, (_, how) in self._measures.items():
            if how == "mean":
                total, count = partial[f"sum {name}"], partial[f"count {name}"]
                count = pc.if_else(pc.equal(count, 0), None, count)
                columns[name] = pc.divide(total.cast(pa.float64()), count.cast(pa.float64()))
            else:
                columns[name] = _narrow(partial[f"{how} {name}"], name)
        table = pa.table(columns)
        return table.sort_by([(name, "ascending") for name in self._by]) if self._by else table


def _wide(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return integers as decimals, whose sums do not wrap around."""
    return values.cast(pa.decimal128(38, 0)) if pa.types.is_integer(values.type) else values


def _narrow(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not (pa.types.is_decimal(values.type) and values.type.scale == 0):
        return values
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        raise _error(f"{name}: the sum does not fit into 64 bits: declare the column as decimal") from None


def _error(message: str) -> DataProcessingException:
    return DataProcessingException(message, error_code="DATA_ERROR", processing_stage="aggregate")
