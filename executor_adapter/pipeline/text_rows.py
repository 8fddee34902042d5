"""What every source gives: rows in which each column is text, and the lines that are no rows.

A batch of rows is a `pyarrow.RecordBatch` whose columns are all strings: exactly the text that the source had, and null
where it had none. Nested JSON is JSON text. Batches of the same table may differ in their columns; a column that a
batch lacks is null in its rows. Types come later, from the declared schema of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa

ROW, REASON = "_row", "_reason"
"""The columns by which the rows of a window are accounted for: the number of a row, and why it is rejected."""
BATCH_ROWS = 50_000
"""Rows of a batch, at most."""

REJECTS = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
"""The columns of rejects: where they were, the line there (counted from 1), what is wrong, and the line as it is.

`file` is the source file or the URL of the page; in an archive, followed by the name of the file in it.
"""


class Reject(NamedTuple):
    """One line of a file that is not a row."""

    line: int
    reason: str
    text: str


OnRejects = Callable[[pa.RecordBatch], None]
"""Takes rejects, with the columns of `REJECTS`, in batches of bounded size."""


def rejects_batch(file: str, rejects: Iterable[Reject]) -> pa.RecordBatch:
    """Return the rejects of a file as a batch with the columns of `REJECTS`."""
    return pa.RecordBatch.from_pylist([{"file": file, **each._asdict()} for each in rejects], schema=REJECTS)
