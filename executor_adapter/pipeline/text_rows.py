"""What every source gives: rows in which each column is text, and the lines that are no rows.

All columns are exactly the text that the source had, and null where it had none. Nested JSON is JSON text. Parts of the
same table may differ in their columns; a column that a part lacks is null in its rows. Types come later, from the
declared schema of the table. DuckDB reads the rows: CSV by itself, and all else as batches of Arrow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import duckdb
import pyarrow as pa

from executor_adapter.pipeline.casts import is_json

ROW, REASON = "_row", "_reason"
"""The columns by which the rows of a window are accounted for: the number of a row, and why it is rejected."""
BATCH_ROWS = 50_000
"""Rows of a batch, at most."""

READ = "read "
"""How the windows of the table of rejects begin that have what was wrong with a delivery, whose name follows."""

_TEXT, _INT = pa.string(), pa.int64()
REJECTED = pa.schema({"step": _TEXT, "delivery": _TEXT, "line": _INT, "row": _INT, "reason": _TEXT, "text": _TEXT})
"""The columns of rejects: the step (`read`, `type`, or one of the table), the delivery (a file, also inside an archive,
or the URL of a page), the line there, or the number of the row in its delivery or window (both counted from 1),
everything that is wrong, and the line as it is or the row as JSON."""


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
    """Rows of text in batches whose columns are among those of the first one."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        first = next(batches)
        self.names = tuple(first.schema.names)
        self._waiting: Iterable[pa.RecordBatch] = [first]
        self._schema = pa.schema([(f"c{number}", pa.string()) for number in range(len(self.names))])
        self._error: BaseException | None = None

    def select(self, connection: duckdb.DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives; what the source raises meanwhile is raised as it is."""
        connection.register("text", pa.RecordBatchReader.from_batches(self._schema, self._numbered()))
        try:
            yield from connection.sql(query("text")).to_arrow_reader(BATCH_ROWS)
        except Exception as error:
            raise (self._error or error) from None
        finally:
            connection.unregister("text")

    def next(self) -> BatchText | None:
        """Return the rows after these, which have other columns; None where there are none."""
        return BatchText(chain(self._waiting, self._batches)) if self._waiting else None

    def _numbered(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in chain(self._waiting, self._batches):
                names = batch.schema.names
                if not set(names) <= set(self.names):
                    self._waiting = [batch]
                    return
                columns = [batch[each] if each in names else pa.nulls(len(batch), pa.string()) for each in self.names]
                yield pa.RecordBatch.from_arrays(columns, schema=self._schema)
            self._waiting = ()
        except BaseException as error:
            self._error = error
            raise


def in_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[BatchText]:
    """Yield the rows of batches, those together whose columns are among those of the first of them."""
    given = iter(batches)
    first = next(given, None)
    text = None if first is None else BatchText(chain([first], given))
    while text is not None:
        yield text
        text = text.next()
