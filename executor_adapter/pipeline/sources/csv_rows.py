"""Reads CSV as text with DuckDB: quoted line ends, ragged lines and bytes that are not UTF-8 harm their own line alone.

What DuckDB would pass over in silence is found before it reads: names that are twice in the header, a header that may
be data, and line ends of two kinds; and after it: each line of the file is in a row or a reject, or the file fails. The
delimiter and the quote are what the configuration says, or the standard's, and never guessed.
"""

from __future__ import annotations

import codecs
import csv
import re
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple, TextIO

import duckdb
import pyarrow as pa

from executor_adapter.config import Format
from executor_adapter.pipeline.casts import literal
from executor_adapter.pipeline.disk import TEMPORARY
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.sources.arrow_rows import check_names
from executor_adapter.pipeline.sources.unpacking import CHUNK, as_utf8
from executor_adapter.pipeline.text_rows import BATCH_ROWS, MAX_REJECT_TEXT, OnRejects, Query, Reject, rejects_batch

MAX_LINE = 4 << 20
"""Bytes of one line, at most; a longer one is rejected."""

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


class CsvText:
    """The rows of one CSV file."""

    def __init__(
        self, path: Path, name: str, format: Format, encoding: str, on_rejects: OnRejects, added: Mapping[str, str]
    ) -> None:
        self._path, self._name, self._format, self._on_rejects, self._added = path, name, format, on_rejects, added
        if path.stat().st_size == 0:
            raise data_error(f"{name} is empty: it has no header")
        self._dialect = dialect = _dialect(path, name, format)
        self._rejected = array("Q")
        self._row, self._starts = 0, self._starts_of_rows()
        self.names = (*(each for each in dialect.columns if each not in added), *added)
        log("%s: CSV, %s, delimiter %r, quote %r", name, encoding, dialect.delimiter, dialect.quote)

    def select(self, connection: duckdb.DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives that has a row for each row, and pass on the lines that are none.

        Raises:
            DataCollectionException: DATA_ERROR, it is not CSV, or a line is in no row and no reject.
        """
        self._ends = ends = _count_ends(self._path)
        with _with_equal_line_ends(self._path, self._name, self._dialect, ends) as equal:
            try:
                rows = 0
                source = self._with_added(_source(equal, self._dialect, self._format.nulls))
                for batch in connection.sql(query(source)).to_arrow_reader(BATCH_ROWS):
                    rows += batch.num_rows
                    yield batch
                inside = self._report(connection, equal)
                rejects = len(self._rejected)
                _check_lines(connection, equal, self._name, self._dialect, ends, rows, rejects, inside)
                connection.execute("DELETE FROM reject_errors; DELETE FROM reject_scans")
            except duckdb.Error as error:
                raise data_error(f"{self._name} is not CSV: {str(error).partition(chr(10))[0]}") from error

    def _report(self, connection: duckdb.DuckDBPyConnection, path: Path) -> int:
        """Pass on the lines that were no rows, each once, and return how many line ends are in their quoted values."""
        # A quote that is not closed, and a line that is too long, can have swallowed others: those are not theirs.
        swallows = "bool_or(error_type IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM'))"
        # The empty lines before a line are a part of what DuckDB gives for it.
        line = "ltrim(any_value(csv_line), chr(10) || chr(13))"
        found = connection.execute(
            f"SELECT line_byte_position - 1 + length(any_value(csv_line)) - length({line}), string_agg(DISTINCT "
            f"CAST(error_type AS VARCHAR), ','), left({line}, {MAX_REJECT_TEXT}), CASE WHEN NOT {swallows} THEN "
            f"length({line}) - length(replace({line}, chr(10), '')) END "
            "FROM reject_errors GROUP BY line_byte_position ORDER BY line_byte_position"
        )
        inside, lines = 0, _LineNumbers(path)
        while some := found.fetchmany(1_000):
            rejects = [Reject(lines.at(place), _reason(kinds), text or "") for place, kinds, text, _ in some]
            inside += sum(ends or 0 for *_, ends in some)
            self._rejected.extend(each.line for each in rejects)
            self._on_rejects(rejects_batch(self._name, rejects))
        return inside

    def lines_of(self, rows: pa.Array) -> pa.Array:
        """Return the lines in which rows begin, once all were read; rows and calls come in their order."""
        if not self._ends.unix:  # It is one line for all that reads lines, and may be larger than the memory.
            return pa.nulls(len(rows), pa.int64())
        found = []
        for row in rows.to_pylist():
            found.append(next(islice(self._starts, row - self._row - 1, None), None))
            self._row = row
        return pa.array(found, pa.int64())

    def _starts_of_rows(self) -> Iterator[int]:
        rejected, begun, is_header = iter(self._rejected), 0, self._dialect.header
        wrong = next(rejected, 0)
        for number, line, begin in _lines(self._path, self._dialect):
            first, begun = begun or number, begin
            is_empty = len(self._dialect.columns) > 1 and not line.rstrip(b"\r\n")
            if number <= self._dialect.skip or begin or is_empty:
                continue
            while 0 < wrong < first:
                wrong = next(rejected, 0)
            if first != wrong and not is_header:
                yield first
            is_header = False

    def _with_added(self, source: str) -> str:
        if not self._added:
            return source
        own = [f"c{number}" for number, name in enumerate(self._dialect.columns) if name not in self._added]
        columns = [*own, *map(literal, self._added.values())]
        return f"(SELECT {', '.join(f'{each} AS c{number}' for number, each in enumerate(columns))} FROM {source})"


@contextmanager
def read_csv(
    path: Path, name: str, format: Format, on_rejects: OnRejects, added: Mapping[str, str] | None = None
) -> Iterator[CsvText]:
    """Open the CSV file at `path`; `name` is what rejects call it, and `added` columns have one value in all its rows.

    Raises:
        DataCollectionException: DATA_ERROR, it is not CSV; CONFIGURATION_ERROR, a setting is missing.
    """
    with as_utf8(path, format.encoding) as (text, encoding):
        yield CsvText(text, name, format, encoding, on_rejects, added or {})


def _dialect(path: Path, name: str, format: Format) -> Dialect:
    quote = '"' if format.quote is None else format.quote
    delimiter = format.delimiter or ("\t" if name.removesuffix(".gz").endswith(".tsv") else ",")
    first_line = _first_names(path, name, delimiter, quote, format.skip)
    other = next((each for each in ";\t|" if len(first_line) == 1 and each in first_line[0]), None)
    if format.delimiter is None and other is not None:
        raise configuration_error(
            f"{name}: the first line is one value, with {other!r} in it: set delimiter to that, or to {delimiter!r}"
        )
    header = format.header
    if header is None:
        header = not format.columns
        if header and any(_MAY_BE_DATA.fullmatch(each) for each in first_line):
            raise configuration_error(
                f"{name}: the first line may be data: set header to true, or to false with the names in columns"
            )
    columns = format.columns or _names(first_line, name)
    return Dialect(delimiter=delimiter, quote=quote, header=header, columns=columns, skip=format.skip)


def _first_names(path: Path, name: str, delimiter: str, quote: str, skip: int) -> list[str]:
    """Return the values of the first line that is not empty."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = _bounded_lines(file, name, skip)
        if len(delimiter) > 1:
            return next(lines, "").rstrip("\r\n").split(delimiter)
        reader = csv.reader(lines, delimiter=delimiter, quotechar=quote or None)
        try:
            return next((line for line in reader if line), [])
        except csv.Error as error:
            raise data_error(f"{name} is not CSV: {error}") from error


def _bounded_lines(file: TextIO, name: str, skip: int) -> Iterator[str]:
    """Yield the lines after those that are skipped, of which one is the header: it may have line ends in quotes."""
    size = 0
    for number in count(1):
        line = file.readline(MAX_LINE + 1)
        size = len(line) if number <= skip else size + len(line.strip())
        if size > MAX_LINE:
            raise data_error(f"{name}: line {number} {_REASONS['LINE SIZE OVER MAXIMUM']}: correct the file")
        if not line:
            return
        if number > skip:
            yield line


def _names(first_line: list[str], name: str) -> tuple[str, ...]:
    names = tuple(each or f"column{number}" for number, each in enumerate(first_line, 1))
    check_names(names, name)
    return names


def _source(path: Path, dialect: Dialect, nulls: Sequence[str]) -> str:
    """Return the SQL that reads the rows of a file; what is not a row is in `reject_errors` afterwards."""
    # Columns are numbered, because DuckDB takes names that differ in their case alone for the same one.
    columns = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(dialect.columns)))
    options = {
        "columns": f"{{{columns}}}",
        "auto_detect": "false",
        "header": str(dialect.header).lower(),
        "skip": str(dialect.skip),
        "delim": literal(dialect.delimiter),
        "quote": literal(dialect.quote),
        "escape": literal(dialect.quote),
        "nullstr": f"[{', '.join(map(literal, nulls))}]",
        "allow_quoted_nulls": "false",
        "max_line_size": str(MAX_LINE),
        "buffer_size": str(2 * MAX_LINE),
        "store_rejects": "true",
        "rejects_limit": "0",
    }
    source = ", ".join([literal(str(path)), *(f"{key} = {value}" for key, value in options.items())])
    return f"read_csv({source})"


def _check_lines(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    name: str,
    dialect: Dialect,
    ends: _Ends,
    rows: int,
    rejects: int,
    inside: int,
) -> None:
    """Refuse a file of which a line is in no row and no reject: DuckDB passes over what an open quote has swallowed."""
    in_header = 1 + sum(each.count("\n") for each in dialect.columns) if dialect.header else 0
    missing = ends.lines - dialect.skip - in_header - rows - rejects
    if missing == 0:
        return
    # Line ends inside values, and empty lines, are counted only where there may be some.
    columns = [f"c{number}" for number in range(len(dialect.columns))]
    end = "chr(10)" if ends.unix else "chr(13)"
    counts = " + ".join(f"coalesce(length({each}) - length(replace({each}, {end}, '')), 0)" for each in columns)
    source = _source(path, dialect, ("",))
    ((found,),) = connection.execute(f"SELECT coalesce(sum({counts}), 0)::BIGINT FROM {source}").fetchall()
    twice = " OR ".join(f"contains({each}, {end} || {end}) OR contains({each}, chr(10) || chr(13))" for each in columns)
    empty = 0
    for row in connection.execute(f"SELECT {', '.join(columns)} FROM {source} WHERE {twice}").fetchall():
        empty += sum(len(_EMPTY_LINE.findall(value)) for value in row if value is not None)
    longest, blank = _look_through(path, dialect)
    # DuckDB passes over empty lines, where there are several columns.
    passed = blank - empty if len(columns) > 1 else 0
    if missing != found + inside + passed:
        raise data_error(
            f"{name}: {abs(missing - found - inside - passed):,} of {ends.lines:,} lines are in no row: the quote in "
            f"line {longest} opens and does not close: correct the file, or set quote, which may be empty"
        )


_EMPTY_LINE = re.compile(r"(?:\n|\r)(?=\r?\n|\r(?!\n))")


def _look_through(path: Path, dialect: Dialect) -> tuple[int, int]:
    """Return the line in which the longest quoted text begins, and how many lines are empty."""
    longest, length, blank = 0, -1, 0
    for number, line, begin in _lines(path, dialect):
        blank += number > dialect.skip and not line.rstrip(b"\r\n")
        if begin and number - begin > length:
            longest, length = begin, number - begin
    return longest, blank


def _lines(path: Path, dialect: Dialect) -> Iterator[tuple[int, bytes, int]]:
    """Yield each line with its number, and the line in which the quoted text began that goes on after it, else 0."""
    quote, begin = dialect.quote.encode(), 0
    # As DuckDB has it, a quote that is not the first character of a value is a character like others.
    delimiter, each = re.escape(dialect.delimiter.encode()), re.escape(quote)
    opening = re.compile(b"(?:^(?:%b)?|%b)%b" % (codecs.BOM_UTF8, delimiter, each))
    closing = re.compile(b"(?:[^%b]|%b%b)*+%b" % (each, each, each, each)) if quote else opening
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = 0 if quote and quote in line and number > dialect.skip else len(line)
            while found := (closing.match if begin else opening.search)(line, place):
                begin, place = 0 if begin else number, found.end()
            yield number, line, begin


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
def _with_equal_line_ends(path: Path, name: str, dialect: Dialect, ends: _Ends) -> Iterator[Path]:
    r"""Yield the file, or a copy with \n at the end of each line where some end in \n and some in \r\n.

    Line ends inside quotes stay as they are.
    """
    if ends.windows in (0, ends.unix):
        yield path
        return
    log("%s: lines end in two ways", name)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=TEMPORARY) as copy:
        for _, line, begin in _lines(path, dialect):
            copy.write(line if begin else line.removesuffix(b"\r\n").removesuffix(b"\n") + b"\n")
        copy.flush()
        yield Path(copy.name)


class _Ends(NamedTuple):
    """How the lines of a file end."""

    lines: int
    unix: int
    r"""Lines that end in \n, those that end in \r\n included."""
    windows: int
    r"""Lines that end in \r\n."""


def _count_ends(path: Path) -> _Ends:
    unix = windows = old = 0
    last = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            unix += chunk.count(b"\n")
            if b"\r" in chunk or last == b"\r":
                old += chunk.count(b"\r")
                windows += chunk.count(b"\r\n") + (last + chunk[:1] == b"\r\n")
            last = chunk[-1:]
    # Where no line ends in \n, lines end in \r.
    return _Ends((unix or old) + (last not in (b"\n", b"\r", b"")), unix, windows)


def _reason(kinds: str) -> str:
    return "; ".join(_REASONS.get(kind, kind.lower()) for kind in kinds.split(","))
