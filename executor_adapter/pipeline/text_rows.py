"""What every source gives: rows in which each column is text, and the lines that are no rows.

All columns are exactly the text that the source had, and null where it had none. Nested JSON is JSON text. Parts of the
same table may differ in their columns; a column that a part lacks is null in its rows. Types come later, from the
declared schema of the table. DuckDB reads the rows: CSV by itself, and all else as batches of Arrow. Typed values
become text as a person would write them.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import duckdb
import pyarrow as pa

from executor_adapter.pipeline.casts import is_json
from executor_adapter.pipeline.errors import data_error

ROW, REASON = "_row", "_reason"
"""The columns by which the rows of a window are accounted for: the number of a row, and why it is rejected."""
BATCH_ROWS = 50_000
"""Rows of a batch, at most."""
MAX_COLUMNS = 2_000
"""Columns of a table. With more, and in few megabytes of a file, reading takes more memory than a job may have."""
MAX_REJECT_TEXT = 2_000
"""Characters of a rejected line that are kept."""
MAX_VALUE = 60
"""Characters of a value in a reason."""
READ = "read "
"""How the windows of the table of rejects begin that have what was wrong with a delivery, whose name follows."""

_TEXT, _INT = pa.string(), pa.int64()
_ALL = {"step": _TEXT, "delivery": _TEXT, "line": _INT, "row": _INT, "reason": _TEXT, "text": _TEXT, "key": _TEXT}
REJECTED = pa.schema(_ALL)
"""The columns of rejects: the step (`read`, `type`, or one of the table), the delivery (a file, or the URL of a
page), the line there where it begins, null where there are no lines, the number of the row in its delivery or window
(both counted from 1), everything that is wrong, the line as it is or the row as JSON, and the values of its key, by
which later answers have it, or else the text again, of a line after "read "; null of rows that a step has rejected."""


class Reject(NamedTuple):
    """One line of a file that is not a row."""

    line: int
    reason: str
    text: str


OnRejects = Callable[[pa.RecordBatch], None]
"""Takes rejects, with the columns of `REJECTED`, in batches of bounded size."""


def rejects_batch(delivery: str, rejects: Iterable[tuple[int, str, str]]) -> pa.RecordBatch:
    """Return the lines of a delivery that are no rows as a batch with the columns of `REJECTED`."""
    rows = [dict(Reject(*each)._asdict(), step="read", delivery=delivery, key=READ + each[-1]) for each in rejects]
    return pa.RecordBatch.from_pylist(rows, schema=REJECTED)


Query = Callable[[str], str]
"""Makes a query of what stands after FROM, whose columns are called c0, c1 and so on."""


class Text(Protocol):
    """Rows of text with the same columns, as DuckDB reads them."""

    names: tuple[str, ...]
    """The names of the columns."""

    def select(self, connection: duckdb.DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives that has a row for each row of text."""
        ...

    def starts(self) -> Iterator[int | None]:
        """Yield the line in which each row begins, once all were read; None where there are no lines."""
        ...


_OPEN = threading.local()


@contextmanager
def connected(space: Path, threads: int = 1, memory: str = "256MB") -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory that puts into the folder `space` what does not fit.

    In a block of another one of the same thread it is a connection of its own to that database: to make one for each
    small window costs more than its rows.
    """
    outer: duckdb.DuckDBPyConnection | None = getattr(_OPEN, "connection", None)
    config: dict[str, Any] = {"threads": threads, "memory_limit": memory, "autoinstall_known_extensions": False}
    # It would look for tables in Python's variables, and load pandas for that.
    config |= {"python_enable_replacements": False, "temp_directory": str(space)}
    with outer.cursor() if outer else duckdb.connect(config=config) as connection:
        if outer is None:
            connection.execute("SET GLOBAL TimeZone = 'UTC'")
            connection.create_function("is_json", is_json, ["VARCHAR"], "BOOLEAN")
            connection.create_function("shown", shown, ["VARCHAR"], "VARCHAR")
            _OPEN.connection = connection
        try:
            yield connection
        finally:
            _OPEN.connection = outer


def shown(value: Any) -> str:
    """Return a value as reasons show it, cut where it is long: a text in quotes. DuckDB calls it by this name."""
    text = value_text(value)
    text = text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."
    return repr(text) if isinstance(value, str) else text


class TableText:
    """Rows of text that are in memory."""

    def __init__(self, rows: pa.Table) -> None:
        self.names, self._rows = tuple(rows.column_names), rows

    def select(self, connection: duckdb.DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives."""
        connection.register("text", self._rows.rename_columns([f"c{number}" for number in range(len(self.names))]))
        try:
            yield from connection.sql(query("text")).to_arrow_reader(BATCH_ROWS)
        finally:
            connection.unregister("text")

    def starts(self) -> Iterator[None]:
        """Yield None for each row: they are in no lines."""
        return repeat(None)


def together(batches: Iterable[pa.RecordBatch]) -> Iterator[TableText]:
    """Yield the rows of batches, several small ones together; a column that a batch lacks is null in its rows."""
    some, rows, names = list[pa.Table](), 0, set[str]()
    for batch in batches:
        names.update(batch.schema.names)
        check_names(names, "what was read")
        some.append(pa.Table.from_batches([batch]))
        rows += batch.num_rows
        if rows >= BATCH_ROWS:
            yield TableText(pa.concat_tables(some, promote_options="default"))
            some, rows = [], 0
    if some:
        yield TableText(pa.concat_tables(some, promote_options="default"))


def check_names(names: Iterable[str], name: str) -> None:
    """Refuse columns that have the same name, since one would take the place of the other, and very many.

    Raises:
        DataCollectionException: DATA_ERROR.
    """
    found = Counter(names)
    wrong = [f"the column {each!r} is there twice: name each column once" for each, times in found.items() if times > 1]
    if len(found) > MAX_COLUMNS:
        wrong.append(f"it has {len(found):,} columns, and {MAX_COLUMNS:,} are read at most: name those that you need")
    if wrong:
        raise data_error(f"{name}: {wrong[0]}")


def as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with all its columns as text."""
    return pa.RecordBatch.from_arrays([_as_text(column) for column in batch.columns], names=batch.schema.names)


def text_array(values: Iterable[Any]) -> pa.Array:
    """Return Python values as an array of text; None is null."""
    return pa.array([None if each is None else value_text(each) for each in values], pa.string())


def batch_of(rows: Sequence[Mapping[str, Any]], array: Callable[[list[Any]], pa.Array], name: str) -> pa.RecordBatch:
    """Return rows as columns, of each of which `array` makes text; a key that a row lacks is None in it.

    Raises:
        DataCollectionException: DATA_ERROR, see `check_names`; `name` is what is said to have the keys.
    """
    names = dict.fromkeys(key for row in rows for key in row)
    check_names(map(str, names), name)
    columns = [array([row.get(key) for row in rows]) for key in names]
    return pa.RecordBatch.from_arrays(columns, names=[str(key) for key in names])


def _as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _as_text(column.storage)
    if pa.types.is_dictionary(kind):
        return _as_text(column.dictionary_decode())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return text_array(column.to_pylist())
    return column.cast(pa.string())


def value_text(value: Any) -> str:
    """Return a Python value as text: times in ISO 8601, bytes as base64, lists and mappings as JSON."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is int or kind is float:
        # A decimal has no exponent.
        return format(Decimal(text), "f") if "e" in (text := repr(value)) else text
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=value_text)
    return str(value)
