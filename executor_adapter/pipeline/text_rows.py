"""What every source gives: rows in which each column is text, and the lines that are no rows.

All columns are exactly the text that the source had, and null where it had none. Nested JSON is JSON text. Parts of the
same table may differ in their columns; a column that a part lacks is null in its rows. Types come later, from the
declared schema of the table. DuckDB reads the rows: CSV by itself, and all else as batches of Arrow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import duckdb
import pyarrow as pa

from executor_adapter.pipeline.casts import is_json

ROW, REASON = "_row", "_reason"
"""The columns by which the rows of a window are accounted for: the number of a row, and why it is rejected."""
BATCH_ROWS = 50_000
"""Rows of a batch, at most."""
MAX_REJECT_TEXT = 2_000
"""Characters of a rejected line that are kept."""

READ = "read "
"""How the windows of the table of rejects begin that have what was wrong with a delivery, whose name follows."""

_TEXT, _INT = pa.string(), pa.int64()
REJECTED = pa.schema({"step": _TEXT, "delivery": _TEXT, "line": _INT, "row": _INT, "reason": _TEXT, "text": _TEXT})
"""The columns of rejects: the step (`read`, `type`, or one of the table), the delivery (a file, also inside an archive,
or the URL of a page), the line there where it begins, null where there are no lines, the number of the row in its
delivery or window (both counted from 1), everything that is wrong, and the line as it is or the row as JSON."""


class Reject(NamedTuple):
    """One line of a file that is not a row."""

    line: int
    reason: str
    text: str


OnRejects = Callable[[pa.RecordBatch], None]
"""Takes rejects, with the columns of `REJECTED`, in batches of bounded size."""


def rejects_batch(delivery: str, rejects: Iterable[Reject]) -> pa.RecordBatch:
    """Return the lines of a delivery that are no rows as a batch with the columns of `REJECTED`."""
    rows = [{"step": "read", "delivery": delivery, **each._asdict()} for each in rejects]
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

    def lines_of(self, rows: pa.Array) -> pa.Array:
        """Return the lines in which rows begin, null where it has none; rows are counted from 1, and come in order."""
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
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        if outer is None:
            connection.create_function("is_json", is_json, ["VARCHAR"], "BOOLEAN")
            _OPEN.connection = connection
        try:
            yield connection
        finally:
            _OPEN.connection = outer


class BatchText:
    """Rows of text in batches with the same columns."""

    def __init__(self, names: tuple[str, ...], batches: Iterable[pa.RecordBatch]) -> None:
        self.names, self._batches = names, batches
        self._error: BaseException | None = None

    def select(self, connection: duckdb.DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives; what the source raises meanwhile is raised as it is."""
        schema = pa.schema([(f"c{number}", pa.string()) for number in range(len(self.names))])
        connection.register("text", pa.RecordBatchReader.from_batches(schema, self._numbered(schema)))
        try:
            yield from connection.sql(query("text")).to_arrow_reader(BATCH_ROWS)
        except Exception as error:
            raise (self._error or error) from None
        finally:
            connection.unregister("text")

    def lines_of(self, rows: pa.Array) -> pa.Array:
        """Return nulls: its rows are in no lines."""
        return pa.nulls(len(rows), pa.int64())

    def _numbered(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        except BaseException as error:
            self._error = error
            raise


def in_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[BatchText]:
    """Yield the rows of batches, those together that have the same columns."""
    for names, some in groupby(_widened(batches), lambda each: tuple(each.schema.names)):
        yield BatchText(names, some)


def _widened(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches with all columns that have come so far: so the columns change once for each new one alone."""
    known: dict[str, None] = {}
    for batch in batches:
        known |= dict.fromkeys(batch.schema.names)
        nothing = pa.nulls(batch.num_rows, pa.string())
        columns = [batch[name] if name in batch.schema.names else nothing for name in known]
        yield pa.RecordBatch.from_arrays(columns, names=list(known))
