"""Reads CSV as text with DuckDB: quoted line ends, ragged lines and bytes that are not UTF-8 harm their own line alone.

What DuckDB would pass over in silence is found before it reads: names that are twice in the header, a header that may
be data, and line ends of two kinds; and after it: each line of the file is in a row or a reject, or the file fails. The
delimiter and the quote are what the configuration says, or the standard's, and never guessed.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import duckdb
import pyarrow as pa

from executor_adapter.config import Format
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.casts import literal
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.sources.unpacking import CHUNK, temporary
from executor_adapter.pipeline.text_rows import (
    BATCH_ROWS,
    MAX_REJECT_TEXT,
    OnRejects,
    Query,
    check_names,
    rejects_batch,
)

MAX_LINE = 4 << 20
"""Bytes of one line, or of a row whose quotes hold line ends, at most: a file with a longer one fails.

DuckDB would pass over it in silence, reject it, or blame the row before, depending on where it is in what is read at
a time.
"""

_MAY_BE_DATA = re.compile(r"[-+]?\d[-+\d.,:/TZ ]*")
"""Matches numbers and dates, which are no names of columns."""
_REASONS = {
    "TOO MANY COLUMNS": "has more values than there are columns",
    "MISSING COLUMNS": "has fewer values than there are columns",
    "INVALID ENCODING": "has bytes that are not UTF-8: set encoding",
    "UNQUOTED VALUE": "has a quote that is not closed, or text after one",
}


class Dialect(NamedTuple):
    """How the lines of one CSV file are read."""

    delimiter: str
    quote: str
    header: bool
    columns: tuple[str, ...]


class CsvText:
    """The rows of one CSV file in UTF-8.

    Args:
        path: the file.
        name: what rejects call it.
        format: how it is read.
        encoding: what it was encoded in, for the log.
        on_rejects: takes what is not a row.
        added: columns that have one value in all rows.

    Raises:
        DataCollectionException: DATA_ERROR, it is not CSV; CONFIGURATION_ERROR, a setting is missing.
    """

    def __init__(
        self, path: Path, name: str, format: Format, encoding: str, on_rejects: OnRejects, added: Mapping[str, str]
    ) -> None:
        self._path, self._name, self._on_rejects, self._added = path, name, on_rejects, added
        if path.stat().st_size == 0:
            raise data_error(f"{name} is empty: it has no header")
        self._count, self._end, self._is_mixed = _count_lines(path, name)
        self._dialect, self._nulls = _dialect(path, name, format, self._end), format.nulls
        self._rejected = array("Q")
        self.names = (*(each for each in self._dialect.columns if each not in added), *added)
        log("%s: CSV, %s, delimiter %r, quote %r", name, encoding, self._dialect.delimiter, self._dialect.quote)

    def select(self, connection: duckdb.DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives that has a row for each row, and pass on the lines that are none.

        Raises:
            DataCollectionException: DATA_ERROR, it is not CSV, or a line is in no row and no reject.
        """
        with self._with_equal_line_ends() as equal:
            try:
                rows, source = 0, self._with_added(_source(equal, self._dialect, self._nulls))
                for batch in connection.sql(query(source)).to_arrow_reader(BATCH_ROWS):
                    rows += batch.num_rows
                    yield batch
                if rows + self._dialect.header != self._count:
                    self._check_lines(rows, self._report(connection, equal))
            except duckdb.Error as error:
                reason = str(error).partition("\n")[0]
                strays = (number for number, line, _ in self._lines() if "\r" in line.rstrip("\r\n"))
                # Of one that ends no line DuckDB says no more than that it cannot go on.
                if isinstance(error, duckdb.InvalidInputException) and (stray := next(strays, 0)):
                    reason = f"line {stray} has a carriage return in it: quote the value"
                raise data_error(f"{self._name} is not CSV: {reason}") from error

    def _report(self, connection: duckdb.DuckDBPyConnection, path: Path) -> int:
        """Pass on the lines that were no rows, each once, and return how many others their quotes have swallowed."""
        # The empty lines before a line are a part of what DuckDB gives for it.
        line = "ltrim(any_value(csv_line), chr(10) || chr(13))"
        swallowed = f"rtrim({line}, chr(10) || chr(13))"
        found = connection.execute(
            f"SELECT line_byte_position - 1 + length(any_value(csv_line)) - length({line}), string_agg(DISTINCT "
            f"CAST(error_type AS VARCHAR), ','), left({line}, {MAX_REJECT_TEXT}), CASE WHEN bool_or(error_type = "
            f"'UNQUOTED VALUE') THEN length({swallowed}) - length(replace({swallowed}, {literal(self._end)}, '')) END "
            "FROM reject_errors GROUP BY line_byte_position ORDER BY line_byte_position"
        )
        number, lost = 1, 0
        with path.open("rb") as file:
            while some := found.fetchmany(1_000):
                rejects = []
                for place, kinds, text, others in some:
                    # DuckDB counts rows, which may hold line ends.
                    number += _count_ends(file, place - file.tell(), self._end.encode())
                    lost += others or 0
                    rejects.append((number, _reason(kinds), text or ""))
                self._rejected.extend(line for line, *_ in rejects)
                self._on_rejects(rejects_batch(self._name, rejects))
        connection.execute("DELETE FROM reject_errors; DELETE FROM reject_scans")
        return lost

    def _check_lines(self, rows: int, swallowed: int) -> None:
        """Refuse a file of which a line is in no row and no reject: DuckDB passes over what an open quote swallows."""
        missing = self._count - self._dialect.header - rows - len(self._rejected)
        if missing == swallowed == 0:
            return
        # Lines that go on in quotes, and empty ones, are counted only where there may be some.
        longest = (0, 0)
        for first, last, empty, closes in self._records():
            missing -= last - first if closes and first < last else empty
            longest = max(longest, (last - first, -first))
        if lost := max(abs(missing), swallowed):
            raise data_error(
                f"{self._name}: {lost:,} of {self._count:,} lines are in no row: the quote in line {-longest[1]} opens "
                "and does not close: correct the file, or set quote, which may be empty"
            )

    def starts(self) -> Iterator[int]:
        """Yield the line in which each row begins, once all were read."""
        rejected, is_header = iter(self._rejected), self._dialect.header
        wrong = next(rejected, 0)
        for first, last, empty, closes in self._records():
            if not closes or (first == last and empty):
                continue
            while 0 < wrong < first:
                wrong = next(rejected, 0)
            if first != wrong and not is_header:
                yield first
            is_header = False

    def _records(self) -> Iterator[tuple[int, int, int, bool]]:
        """Yield the first and last line of each record, how many of these are empty, and whether its quote closes.

        DuckDB passes over empty lines, where there are several columns.

        Raises:
            DataCollectionException: DATA_ERROR, a record is longer than `MAX_LINE`.
        """
        first = number = empty = begin = size = 0
        is_wide = len(self._dialect.columns) > 1
        for number, line, begin in self._lines():
            first, empty = first or number, empty + (is_wide and not line.rstrip("\r\n"))
            size += len(line)
            if not begin:
                if size > MAX_LINE + 2:  # with its end
                    raise _too_long(self._name, f"the row in line {first}")
                yield first, number, empty, True
                first = empty = size = 0
        if begin:
            yield begin, number, empty, False

    def _lines(self) -> Iterator[tuple[int, str, int]]:
        """Yield each line with its number, and the line in which the quoted text began that goes on after it, else 0.

        A character is a byte.
        """
        delimiter, quote = (each.encode().decode("latin-1") for each in (self._dialect.delimiter, self._dialect.quote))
        begin, each = 0, re.escape(quote)
        # As DuckDB has it, a quote that is not the first character of a value is a character like others.
        opening = re.compile(f"(?:^(?:{codecs.BOM_UTF8.decode('latin-1')})?|{re.escape(delimiter)}){each}")
        closing = re.compile(f"(?:[^{each}]|{each}{each})*+{each}") if quote else opening
        with self._path.open(encoding="latin-1", newline=self._end) as file:
            for number, line in enumerate(file, 1):
                place = 0 if quote and quote in line else len(line)
                while found := (closing.match if begin else opening.search)(line, place):
                    begin, place = 0 if begin else number, found.end()
                yield number, line, begin

    @contextmanager
    def _with_equal_line_ends(self) -> Iterator[Path]:
        r"""Yield the file, or a copy with \n at the end of each line where some end in \n and some in \r\n.

        Line ends inside quotes stay as they are.
        """
        if not self._is_mixed:
            yield self._path
            return
        log("%s: lines end in two ways", self._name)
        with temporary(self._path) as copy:
            for _, line, begin in self._lines():
                copy.write((line if begin else line.removesuffix("\n").removesuffix("\r") + "\n").encode("latin-1"))
            copy.flush()
            yield Path(copy.name)

    def _with_added(self, source: str) -> str:
        if not self._added:
            return source
        own = [f"c{number}" for number, name in enumerate(self._dialect.columns) if name not in self._added]
        columns = [*own, *map(literal, self._added.values())]
        return f"(SELECT {', '.join(f'{each} AS c{number}' for number, each in enumerate(columns))} FROM {source})"


def _dialect(path: Path, name: str, format: Format, end: str) -> Dialect:
    quote = '"' if format.quote is None else format.quote
    # The answer of an API is called by its URL.
    is_tsv = name.partition("?")[0].lower().removesuffix(".gz").endswith(".tsv")
    delimiter = format.delimiter or ("\t" if is_tsv else ",")
    first_line = _first_names(path, name, delimiter, quote, end)
    header = format.header
    if header is None:
        header = not format.columns
        if header and any(_MAY_BE_DATA.fullmatch(each) for each in first_line):
            raise configuration_error(
                f"{name}: the first line may be data: set header to true, or to false with the names in columns"
            )
    columns = format.columns or tuple(each or f"column{number}" for number, each in enumerate(first_line, 1))
    check_names(columns, name)
    return Dialect(delimiter, quote, header, columns)


def _first_names(path: Path, name: str, delimiter: str, quote: str, end: str) -> list[str]:
    """Return the values of the first line that is not empty."""
    with path.open(encoding="utf-8-sig", errors="replace", newline=end) as file:
        start = io.StringIO(file.read(MAX_LINE), newline=end)
        reader = csv.reader(start, delimiter=delimiter, quotechar=quote or None)
        try:
            return next((line for line in reader if line), [])
        except csv.Error as error:
            raise data_error(f"{name} is not CSV: {error}") from error


def _too_long(name: str, what: str) -> DataCollectionException:
    return data_error(f"{name}: {what} is longer than {MAX_LINE:,} bytes: correct the file, or set quote")


def _source(path: Path, dialect: Dialect, nulls: Sequence[str]) -> str:
    """Return the SQL that reads the rows of a file; what is not a row is in `reject_errors` afterwards."""
    # Columns are numbered, because DuckDB takes names that differ in their case alone for the same one.
    columns = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(dialect.columns)))
    options = {
        "columns": f"{{{columns}}}",
        "auto_detect": "false",
        "header": str(dialect.header).lower(),
        "delim": literal(dialect.delimiter),
        "quote": literal(dialect.quote),
        "escape": literal(dialect.quote),
        "nullstr": f"[{', '.join(map(literal, dict.fromkeys(('', *nulls))))}]",
        "allow_quoted_nulls": "false",
        "max_line_size": str(MAX_LINE + CHUNK),  # Longer ones do not come here.
        "buffer_size": str(2 * (MAX_LINE + CHUNK)),
        "store_rejects": "true",
        "rejects_limit": "0",
    }
    source = ", ".join([literal(str(path)), *(f"{key} = {value}" for key, value in options.items())])
    return f"read_csv({source})"


def _count_lines(path: Path, name: str) -> tuple[int, str, bool]:
    r"""Return how many lines a file has, how they end, and whether some end in \n and some in \r\n.

    Raises:
        DataCollectionException: DATA_ERROR, a line is longer than `MAX_LINE`.
    """
    unix = windows = old = size = 0
    last = mark = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            number, unix = max(unix, old) + 1, unix + chunk.count(b"\n")
            if b"\r" in chunk or last == b"\r":
                old += chunk.count(b"\r")
                windows += chunk.count(b"\r\n") + (last + chunk[:1] == b"\r\n")
            # Where no line ends in \n, lines end in \r.
            mark, last = b"\n" if unix else b"\r", chunk[-1:]
            first = chunk.find(mark)
            if size + (len(chunk) if first < 0 else first) > MAX_LINE + 1:  # with a \r
                raise _too_long(name, f"line {number}")
            size = size + len(chunk) if first < 0 else len(chunk) - chunk.rfind(mark) - 1
    return (unix or old) + (last != mark), mark.decode(), windows not in (0, unix)


def _count_ends(file: BinaryIO, size: int, end: bytes) -> int:
    found = 0
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        found, size = found + chunk.count(end), size - len(chunk)
    return found


def _reason(kinds: str) -> str:
    return "; ".join(_REASONS.get(kind, kind.lower()) for kind in kinds.split(","))
