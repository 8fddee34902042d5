"""Reads CSV as text with DuckDB: quoted line ends, ragged lines and bytes that are not UTF-8 harm their own line alone.

What DuckDB would pass over in silence is found before it reads: names that are twice in the header, a header that may
be data, and line ends of two kinds.
"""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from executor_adapter.config import Format
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import TEMPORARY
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.sources.arrow_rows import check_names
from executor_adapter.pipeline.sources.unpacking import CHUNK, as_utf8
from executor_adapter.pipeline.text_rows import BATCH_ROWS, OnRejects, Reject, rejects_batch

MAX_REJECT_TEXT = 2_000
"""Characters of a rejected line that are kept."""
MAX_LINE = 4 << 20
"""Bytes of one line, at most; a longer one is rejected."""
SAMPLE = 2_000
"""Lines by which the delimiter and the quote are found out."""

_MAY_BE_DATA = re.compile(r"[-+]?\d[-+\d.,:/TZ ]*")
"""Matches numbers and dates, which are no names of columns."""
_REASONS = {
    "TOO MANY COLUMNS": "has more values than there are columns",
    "MISSING COLUMNS": "has fewer values than there are columns",
    "INVALID ENCODING": "has bytes that are not UTF-8: set encoding",
    "UNQUOTED VALUE": "has a quote that is not closed, or text after one",
    "LINE SIZE OVER MAXIMUM": f"is longer than {MAX_LINE:,} bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How the lines of one CSV file are read."""

    delimiter: str
    quote: str
    header: bool
    columns: tuple[str, ...]
    skip: int


def read_csv(path: Path, name: str, format: Format, on_rejects: OnRejects) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the CSV file at `path` as text; `name` is what rejects call it.

    Raises:
        DataCollectionException: DATA_ERROR, it is not CSV; CONFIGURATION_ERROR, a setting is missing.
    """
    with as_utf8(path, format.encoding) as (text, encoding), _connection(path.parent) as connection:
        if text.stat().st_size == 0:
            raise _data_error(f"{name} is empty: it has no header")
        dialect = _dialect(connection, text, name, format)
        log("%s: CSV, %s, delimiter %r, quote %r", name, encoding, dialect.delimiter, dialect.quote)
        with _with_equal_line_ends(text, name, dialect) as equal:
            try:
                yield from _read(connection, equal, dialect, format)
                _report(connection, equal, name, on_rejects)
            except duckdb.Error as error:
                raise _data_error(f"{name} is not CSV: {_first_line(error)}") from error


@contextmanager
def _connection(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    # One thread keeps the order of the rows; jobs run side by side instead.
    config: dict[str, Any] = {"threads": 1, "memory_limit": "256MB", "autoinstall_known_extensions": False}
    with duckdb.connect(config=config | {"temp_directory": str(folder / f"{TEMPORARY}duckdb")}) as connection:
        yield connection


def _dialect(connection: duckdb.DuckDBPyConnection, path: Path, name: str, format: Format) -> Dialect:
    delimiter, quote = format.delimiter, '"' if format.quote is None else format.quote
    if delimiter is None:
        delimiter, quote = _sniffed(connection, path, name, format)
    first_line = _first_names(path, name, delimiter, quote, format.skip)
    header = format.header
    if header is None:
        header = not format.columns
        if header and any(_MAY_BE_DATA.fullmatch(each) for each in first_line):
            raise DataCollectionException(
                f"{name}: the first line may be data: set header to true, or to false with the names in columns",
                error_code="CONFIGURATION_ERROR",
            )
    columns = format.columns or _names(first_line, name)
    return Dialect(delimiter=delimiter, quote=quote, header=header, columns=columns, skip=format.skip)


def _sniffed(connection: duckdb.DuckDBPyConnection, path: Path, name: str, format: Format) -> tuple[str, str]:
    given = {"quote": format.quote, "skip": format.skip or None, "sample_size": SAMPLE}
    options = "".join(f", {key} = {_literal(value)}" for key, value in given.items() if value is not None)
    # The rows may break the standard here: those are found when they are read.
    query = f"FROM sniff_csv({_literal(str(path))}, ignore_errors = true, strict_mode = false{options})"
    try:
        ((delimiter, quote),) = connection.execute(f"SELECT Delimiter, Quote {query}").fetchall()
    except duckdb.Error as error:
        raise DataCollectionException(
            f"{name}: cannot find out how it is written: set delimiter: {_first_line(error)}",
            error_code="CONFIGURATION_ERROR",
        ) from error
    return delimiter, '"' if quote in {"", "(empty)"} else quote


def _first_names(path: Path, name: str, delimiter: str, quote: str, skip: int) -> list[str]:
    """Return the values of the first line that is not empty."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for _ in range(skip):
            file.readline()
        if len(delimiter) > 1:
            return file.readline().rstrip("\r\n").split(delimiter)
        reader = csv.reader(file, delimiter=delimiter, quotechar=quote or None)
        try:
            return next((line for line in reader if line), [])
        except csv.Error as error:
            raise _data_error(f"{name} is not CSV: {error}") from error


def _names(first_line: list[str], name: str) -> tuple[str, ...]:
    names = tuple(each or f"column{number}" for number, each in enumerate(first_line, 1))
    check_names(names, name)
    return names


def _read(
    connection: duckdb.DuckDBPyConnection, path: Path, dialect: Dialect, format: Format
) -> Iterator[pa.RecordBatch]:
    # Columns are numbered, because DuckDB takes names that differ in their case alone for the same one.
    columns = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(dialect.columns)))
    options = {
        "columns": f"{{{columns}}}",
        "auto_detect": "false",
        "header": str(dialect.header).lower(),
        "skip": str(dialect.skip),
        "delim": _literal(dialect.delimiter),
        "quote": _literal(dialect.quote),
        "escape": _literal(dialect.quote),
        "nullstr": f"[{', '.join(map(_literal, format.nulls))}]",
        "allow_quoted_nulls": "false",
        "max_line_size": str(MAX_LINE),
        "buffer_size": str(2 * MAX_LINE),
        "store_rejects": "true",
        "rejects_limit": "0",
    }
    source = ", ".join([_literal(str(path)), *(f"{key} = {value}" for key, value in options.items())])
    for batch in connection.sql(f"FROM read_csv({source})").to_arrow_reader(BATCH_ROWS):
        yield pa.RecordBatch.from_arrays(batch.columns, names=list(dialect.columns))


def _report(connection: duckdb.DuckDBPyConnection, path: Path, name: str, on_rejects: OnRejects) -> None:
    """Pass on the lines that were no rows, each once, with its number in the file."""
    found = connection.execute(
        "SELECT line_byte_position - 1, string_agg(DISTINCT CAST(error_type AS VARCHAR), ','), "
        f"left(any_value(csv_line), {MAX_REJECT_TEXT}) FROM reject_errors "
        "GROUP BY line_byte_position ORDER BY line_byte_position"
    )
    lines = _LineNumbers(path)
    while some := found.fetchmany(1_000):
        on_rejects(
            rejects_batch(
                name, (Reject(lines.at(position), _reason(kinds), text or "") for position, kinds, text in some)
            )
        )


class _LineNumbers:
    """Counts the lines of a file up to positions that only grow: DuckDB counts rows, which may hold line ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line, self._position = 1, 0

    def at(self, position: int) -> int:
        with self._path.open("rb") as file:
            file.seek(self._position)
            while self._position < position and (chunk := file.read(min(CHUNK, position - self._position))):
                self._line += chunk.count(b"\n")
                self._position += len(chunk)
        return self._line


@contextmanager
def _with_equal_line_ends(path: Path, name: str, dialect: Dialect) -> Iterator[Path]:
    r"""Yield the file, or a copy with \n at the end of each line where some end in \n and some in \r\n.

    Line ends inside quotes stay as they are.
    """
    all_ends, windows_ends = _count_ends(path)
    if windows_ends in (0, all_ends):
        yield path
        return
    log("%s: lines end in two ways", name)
    with path.open("rb") as source, tempfile.NamedTemporaryFile(dir=path.parent, prefix=TEMPORARY) as copy:
        quoted = False
        quote = dialect.quote.encode()
        for line in source:
            quoted ^= bool(quote) and line.count(quote) % 2 == 1
            copy.write(line if quoted else line.removesuffix(b"\r\n").removesuffix(b"\n") + b"\n")
        copy.flush()
        yield Path(copy.name)


def _count_ends(path: Path) -> tuple[int, int]:
    r"""Return how many lines end in \n, and how many of these in \r\n."""
    total, windows, last = 0, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += chunk.count(b"\n")
            if b"\r" in chunk or last == b"\r":
                windows += chunk.count(b"\r\n") + (last + chunk[:1] == b"\r\n")
            last = chunk[-1:]
    return total, windows


def _reason(kinds: str) -> str:
    return "; ".join(_REASONS.get(kind, kind.lower()) for kind in kinds.split(","))


def _literal(value: object) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _data_error(message: str) -> DataCollectionException:
    return DataCollectionException(message, error_code="DATA_ERROR")
