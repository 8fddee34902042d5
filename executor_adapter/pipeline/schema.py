"""Casts rows of text to the declared types of a table. A value that does not fit rejects its row, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.config import Column, TableSchema
from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.parsing import parse

CAST_REJECTS = pa.schema(
    [
        ("row", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
        ("text", pa.string()),
    ]
)
"""The columns of rejected rows: the number of the row among those that were cast (counted from 1), the first column
that is wrong, its value (cut where it is long), everything that is wrong, and the whole row as JSON."""

MAX_VALUE = 60
"""Characters of a value in a reason."""


class Cast(NamedTuple):
    """What a batch of text gives: typed rows, and rejects with the columns of `CAST_REJECTS`."""

    rows: pa.RecordBatch
    rejects: pa.RecordBatch


class Caster:
    """Casts the batches of one window, one after another.

    Every row of a batch is in its result exactly once. Rows keep their order. Without a schema all columns stay text.
    """

    def __init__(self, schema: TableSchema | None) -> None:
        # Without a schema no column is declared, and all stay text; a schema in the configuration has at least one.
        self._schema = schema or TableSchema.model_construct(columns={}, undeclared="text")
        self._seen = set[str]()
        self.rows = 0
        """Rows that were cast or rejected."""
        self.rejected = 0
        """Rows that were rejected."""

    def cast(self, batch: pa.RecordBatch) -> Cast:
        """Return the rows with their declared types, and the rejects.

        A declared column that the batch lacks is null. Columns that are not declared come last.

        Raises:
            DataProcessingException: DATA_ERROR, a column is there twice, or is not declared and refused.
        """
        names = self._check_names(batch.schema.names)
        reasons = _Reasons(batch)
        columns = {name: self._cast_column(batch, name, reasons) for name in self._schema.columns}
        columns |= {name: batch[name] for name in names}
        rows = reasons.good_of(pa.RecordBatch.from_pydict(columns))
        rejects = reasons.rejects(first=self.rows + 1)
        self.rows += batch.num_rows
        self.rejected += rejects.num_rows
        return Cast(rows, rejects)

    def finish(self) -> None:
        """Check that the window had every declared column, where it had a row.

        Raises:
            DataProcessingException: DATA_ERROR, a declared column was in no batch and is not optional.
        """
        declared = {name for name, column in self._schema.columns.items() if not column.optional}
        missing = sorted(declared - self._seen)
        if missing and self.rows:
            raise _error(
                f"missing columns: {', '.join(missing)}: correct their names in the schema, or set optional: true; "
                f"the columns are {', '.join(sorted(self._seen))}"
            )

    def _check_names(self, names: list[str]) -> list[str]:
        """Return the columns that are kept without being declared."""
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise _error(f"the column {twice[0]!r} is there twice: give each its own name at the source")
        others = [name for name in names if name not in self._schema.columns]
        if others and self._schema.undeclared == "refuse":
            raise _error(f"the column {others[0]!r} is not declared: add it to the schema, or set undeclared: text")
        new = sorted(set(others) - self._seen)
        if new and self._schema.columns:
            done = "left out" if self._schema.undeclared == "drop" else "kept as text"
            log("columns that are not declared are %s: %s", done, ", ".join(new))
        self._seen |= set(names)
        return [] if self._schema.undeclared == "drop" else others

    def _cast_column(self, batch: pa.RecordBatch, name: str, reasons: _Reasons) -> pa.Array:
        column = self._schema.columns[name]
        if name not in batch.schema.names:
            texts = pa.nulls(batch.num_rows, pa.string())
        elif column.kind == "text":
            texts = _without_null_words(batch[name], column)
        else:
            found = batch[name].dictionary_encode()
            texts = pa.DictionaryArray.from_arrays(found.indices, _without_null_words(found.dictionary, column))
        if not column.nullable:
            reasons.add(name, texts, pc.is_valid(texts), "is empty")
        values, right, reason = parse(texts, column)
        reasons.add(name, texts, right, reason)
        return values


def shortened(text: str | None) -> str:
    """Return a text as code for a message, cut where it is long."""
    if text is None:
        return "null"
    return repr(text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}...")


class _Reasons:
    """Collects what is wrong with the rows of a batch."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._found: dict[int, list[tuple[str, str | None, str]]] = {}

    def add(self, column: str, texts: pa.Array, right: pa.Array, reason: str) -> None:
        """Note the rows whose value is not right."""
        if pc.all(right).as_py() in (True, None):
            return
        for row in pc.indices_nonzero(pc.invert(right)).to_pylist():
            self._found.setdefault(row, []).append((column, texts[row].as_py(), reason))

    def good_of(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of which nothing was noted."""
        if not self._found:
            return rows
        places = pa.array(range(rows.num_rows), pa.int64())
        return rows.filter(pc.invert(pc.is_in(places, pa.array(sorted(self._found), pa.int64()))))

    def rejects(self, first: int) -> pa.RecordBatch:
        """Return a reject for each other row; `first` is the number of the batch's first row."""
        found = []
        for row, wrong in sorted(self._found.items()):
            column, value, _ = wrong[0]
            reasons = [
                f"{name}: {reason}" if text is None else f"{name}: {shortened(text)} {reason}"
                for name, text, reason in wrong
            ]
            whole = self._batch.slice(row, 1).to_pylist()[0]
            found.append(
                {
                    "row": first + row,
                    "column": column,
                    "value": None if value is None else shortened(value)[1:-1],
                    "reason": "; ".join(reasons),
                    "text": json.dumps(whole, ensure_ascii=False),
                }
            )
        return pa.RecordBatch.from_pylist(found, schema=CAST_REJECTS)


def _without_null_words(texts: pa.Array, column: Column) -> pa.Array:
    if column.strip:
        texts = pc.utf8_trim_whitespace(texts)
    if not column.nulls:
        return texts
    is_word = pc.is_in(texts, pa.array(column.nulls, pa.string()))
    return pc.if_else(is_word, pa.scalar(None, pa.string()), texts)


def _error(message: str) -> DataProcessingException:
    return DataProcessingException(message, error_code="DATA_ERROR", processing_stage="schema")
