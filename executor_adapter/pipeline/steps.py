"""Steps turn the rows of a window into processed rows: SQL, and functions of whole tables.

DuckDB carries the rows. They have the column `_row`, their number in the window: a step that keeps it is accounted for
row by row, whatever it filters or reorders; one that joins, aggregates or explodes gives rows without it, and is
accounted for as rows in and rows out. A row whose column `_reason` has text is rejected with that reason.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
import pyarrow as pa
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.job import did_you_mean
from executor_adapter.pipeline.casts import literal
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.importing import code_of, import_object
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.text_rows import REASON, ROW

Spec = str | Mapping[str, Any]
"""A step in the configuration: `module:function`, or a mapping of the name of a step to its options."""
MISTAKES = (LookupError, TypeError, ValueError, AttributeError, NameError, ArithmeticError, AssertionError)
"""What a step raises that has a mistake, or that the rows do not suit: the same rows raise it again."""

MAX_REASONS = 10
"""Reasons that `Processed` names."""

_TABLE = re.compile(r"\{table:([^{}]+)\}")
_END = re.compile(r";\s*+(--.*+\s*+)*+\Z")


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _as_mapping(given: Any) -> Any:
    return given if isinstance(given, Mapping) else {name: name for name in _as_list(given)}


def _read_sql(text: str) -> str:
    if not text.endswith(".sql"):
        return text
    try:
        return Path(text).read_text()
    except OSError as error:
        raise ValueError(error) from None


Names = Annotated[list[str], BeforeValidator(_as_list)]
Columns = Annotated[dict[str, str], BeforeValidator(_as_mapping), Field(min_length=1)]
"""Names of columns, here and elsewhere."""


class Options(BaseModel):
    """What a step of the configuration says."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(Options):
    """Names a schema of pandera."""

    check: str


class Deduplicate(Options):
    """Says which of the rows with the same key stays."""

    key: Annotated[Names, Field(min_length=1)]
    order_by: Names = []
    keep: Literal["first", "last"] = "last"
    reject: bool = False


class Enrich(Options):
    """Says which columns of another table are added: `on` by those here, `columns` by those there."""

    table: str = Field(pattern=r"^[^./]+\.[^./]+$")
    on: Columns
    columns: Columns


class Function(Options, extra="allow"):
    """Names a function; what it has beside these is given to the function."""

    function: str
    reads: Names = []
    batch: int | None = Field(default=None, ge=1, strict=True)


class Sql(Options):
    """Has a query, in a file or as it stands."""

    sql: Annotated[str, AfterValidator(_read_sql)]


KINDS: dict[str, type[Options]] = {kind.__name__.lower(): kind for kind in (Check, Deduplicate, Enrich, Function, Sql)}


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as the configuration has it, whose options are known to fit."""

    name: str
    options: Any
    key: str
    """Where the configuration has it."""

    @property
    def reads(self) -> list[str]:
        """The other tables that it reads, as `tool.table`."""
        match self.options:
            case Enrich(table=table):
                return [table]
            case Sql(sql=sql):
                return _TABLE.findall(sql)
        return list(getattr(self.options, "reads", ()))

    @property
    def reference(self) -> str | None:
        """What it imports, as `module:name`."""
        return getattr(self.options, "function", None) or getattr(self.options, "check", None)


def read_step(spec: Spec, key: str = "steps") -> Step:
    """Return a step of the configuration; `key` is where it stands there. Nothing is imported.

    Raises:
        ConfigurationError: there is no such step, or it has no such option.
    """
    if isinstance(spec, str):
        spec = {"function": spec} if ":" in spec else {spec: {}}
    kind = next((each for each in spec if each in KINDS), None)
    if kind is None:
        wrong = str(next(iter(spec), ""))
        said = f"{did_you_mean(wrong, KINDS, otherwise='must be one of ')}, or module:function"
        old = "; what was `stage` is the key now, and its options stand below it" if "stage" in spec else ""
        raise ConfigurationError(f"{key}: {wrong!r} is not a step: {said}{old}")
    given = spec[kind] if kind in ("deduplicate", "enrich") and len(spec) == 1 else spec
    try:
        options = KINDS[kind].model_validate(given)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigurationError(f"{key}: {kind}: {said}") from None
    is_file = kind == "sql" and str(spec[kind]).endswith(".sql")
    return Step(Path(spec[kind]).name if is_file else spec[kind] if kind == "function" else kind, options, key)


def fingerprint_of(steps: Sequence[Step], root: Path) -> str:
    """Return what the steps depend on: themselves, their SQL or the file of their function, and what else they read."""
    read = {table: other_table(root, table).version() for step in steps for table in step.reads}
    options = [[each.name, each.options.model_dump()] for each in steps]
    code = [code_of(each.reference, each.key) for each in steps if each.reference]
    return json.dumps([options, code, read], default=str, sort_keys=True)


def other_table(root: Path, name: str) -> LakeTable:
    """Return the processed rows of a table that is called `tool.table`."""
    tool, _, table = name.partition(".")
    return LakeTable(root=root, layer="processed", tool=tool, name=table)


@dataclass(slots=True, kw_only=True)
class Processed:
    """What has become of the rows of a window: `given` is the sum of `kept`, `merged`, `rejected` and all `drops`."""

    status: Literal["processed", "already_processed"] = "processed"
    given: int = 0
    kept: int = 0
    merged: int = 0
    """Rows that went into others by steps whose rows have no `_row`; negative where there are more rows after them."""
    rejections: Counter[str] = field(default_factory=Counter)
    """Rows by the reason for which they were rejected."""
    drops: Counter[str] = field(default_factory=Counter)
    """Rows by the step that left them out."""

    @property
    def rejected(self) -> int:
        """Rows that were rejected."""
        return self.rejections.total()

    @property
    def reasons(self) -> tuple[tuple[str, int], ...]:
        """The most frequent reasons for which rows were rejected or dropped, with their numbers."""
        drops = Counter({f"dropped by {step}": rows for step, rows in self.drops.items()})
        return tuple((self.rejections + drops).most_common(MAX_REASONS))


class Run:
    """Applies steps to the rows of one window.

    Args:
        database: the connection, which is used for nothing else.
        source: SQL that gives the rows, with `_row`.
        rows: how many they are.
        delivery: SQL of the delivery that the row `_row` is of.
        root: the folder of the lake.
        space: a folder for what does not fit into memory.
    """

    def __init__(
        self, database: duckdb.DuckDBPyConnection, source: str, rows: int, delivery: str, root: Path, space: Path
    ) -> None:
        self._database, self._delivery, self._root, self._space = database, delivery, root, space
        self._number = 0
        self.rows = "rows_0"
        """The view that has the rows now."""
        self.account = Processed(given=rows, kept=rows)
        self.rejects: list[str] = []
        """Queries that give the rejects, with the columns of `REJECTED`."""
        self._make_view("rows_0", source)

    def _make_view(self, name: str, query: str) -> None:
        self._database.execute(f"CREATE TEMP VIEW {name} AS {query}")

    def _row(self, query: str) -> tuple[Any, ...]:
        (found,) = self._database.execute(query).fetchall()
        return found

    def apply(self, step: Step) -> None:
        """Apply a step, and account for its rows.

        Raises:
            DataProcessingException: CONFIGURATION_ERROR, it gives rows that it was not given, or one twice, or its SQL
                is wrong; DATA_ERROR, it raises one of `MISTAKES`, or the rows do not suit it.
        """
        before, self._number = self.rows, self._number + 1
        after = f"rows_{self._number}"
        with _explained(step):
            self._put(after, step, before)
        self.rows = self._accounted(step, before, after)

    def _put(self, view: str, step: Step, before: str) -> None:
        """Make the view of what a step gives."""
        match step.options:
            case Function() | Check():
                self._database.register(view, _called(step, self._relations(step, before)))
                return
            case Deduplicate():
                query = self._deduplicate(step.options, before)
            case _:
                query = self._enrich(step, before) if isinstance(step.options, Enrich) else self._sql(step, before)
                file = self._space / f"{view}.parquet"
                # A file spills nothing, and is read as fast as a table.
                self._database.execute(f"COPY ({query}) TO {literal(file)} (FORMAT parquet, COMPRESSION lz4_raw)")
                query = f"FROM read_parquet({literal(file)})"
        self._make_view(view, query)

    def _relations(self, step: Step, before: str) -> Iterator[duckdb.DuckDBPyRelation]:
        """Yield the rows that a function is called with: all of them, or `batch` at a time."""
        batch = getattr(step.options, "batch", None) or max(1, self.account.kept)
        for start in range(0, max(1, self.account.kept), batch):
            yield self._database.sql(f"FROM {before} LIMIT {batch} OFFSET {start}")

    def _sql(self, step: Step, before: str) -> str:
        text = _TABLE.sub(lambda found: self._other(step, found[1]), step.options.sql)
        # It may end with a comment, before which nothing can close.
        query = _END.sub("", text.replace("{rows}", before)) + "\n"
        large = [quoted(name) for name, kind in self.columns(f"({query})").items() if kind.endswith("HUGEINT")]
        # Parquet has no integers of 128 bits, such as sums, and DuckDB would round them to floats.
        exact = ", ".join(f"CAST({name} AS DECIMAL(38, 0)) AS {name}" for name in large)
        return f"SELECT * REPLACE ({exact}) FROM ({query})" if large else query

    def _other(self, step: Step, name: str) -> str:
        table = other_table(self._root, name)
        if table.any_file() is None:
            raise _error(step, f"{name} has no processed rows: process that table first, or correct its name")
        files = literal(table.folder / "window=*" / "*.parquet")
        # By their names: while its columns change, some windows have them already.
        return f"read_parquet({files}, hive_partitioning = true, union_by_name = true)"

    def columns(self, source: str) -> dict[str, str]:
        """Return the columns of a view, or of what is read, with their types."""
        found = self._database.sql(f"FROM {source}")
        return dict(zip(found.columns, map(str, found.types), strict=True))

    def _deduplicate(self, options: Deduplicate, before: str) -> str:
        """Return the query: that of the rows as they are, where each of them has a key of its own."""
        lost, keys = f"lost_{self._number}", ", ".join(map(quoted, options.key))
        # Nothing tells a row without a value in its key from another one.
        empty = " OR ".join(f"{quoted(name)} IS NULL" for name in options.key)
        # A value beats no value, and of equal ones the later row stays, or the earlier one.
        way = "DESC" if options.keep == "last" else "ASC"
        order = ", ".join(f"{name} {way} NULLS LAST" for name in [*map(quoted, options.order_by), ROW])
        # The numbers alone are kept, and no copy of the rows, whose order a join of several threads would lose.
        self._database.execute(
            f"CREATE TEMP TABLE {lost} AS SELECT {ROW}, {empty} AS is_empty FROM {before} "
            f"QUALIFY {empty} OR row_number() OVER (PARTITION BY {keys} ORDER BY {order}) > 1"
        )
        rows, rejected = self._row(f"SELECT count(*), count_if(is_empty OR {options.reject}) FROM {lost}")
        if not rejected:
            return f"FROM {before} ANTI JOIN {lost} USING ({ROW}) ORDER BY {ROW}" if rows else f"FROM {before}"
        said = [f"{' or '.join(options.key)}: is empty", f"another row has this {', '.join(options.key)}"]
        reason = f"CASE {lost}.is_empty WHEN true THEN {literal(said[0])} WHEN false THEN {literal(said[1])} END"
        kept = f"USING ({ROW})" + ("" if options.reject else f" WHERE {lost}.is_empty IS DISTINCT FROM false")
        return f"SELECT {before}.*, {reason} AS {REASON} FROM {before} LEFT JOIN {lost} {kept} ORDER BY {ROW}"

    def _enrich(self, step: Step, before: str) -> str:
        options, source = step.options, self._other(step, step.options.table)
        here, there = self.columns(before), self.columns(source)
        for mine, theirs in options.on.items():
            kinds = here.get(mine, ""), there.get(theirs, "")
            if all(kinds) and len({*kinds}) == 2 and "VARCHAR" in kinds:
                raise _error(step, f"{mine} is {kinds[0]}, and {theirs} there {kinds[1]}: declare one type")
        known = {name.casefold() for name in here}
        for mine in options.columns.values():
            if mine.casefold() in known:
                raise _error(step, f"the rows have a column {mine}: give it another name, columns: {{name: new name}}")
        on = " AND ".join(f"r.{quoted(mine)} = t.{quoted(theirs)}" for mine, theirs in options.on.items())
        columns = ", ".join(f"t.{quoted(theirs)} AS {quoted(mine)}" for theirs, mine in options.columns.items())
        return f"SELECT r.*, {columns} FROM {before} r LEFT JOIN (FROM {source}) t ON {on} ORDER BY r.{ROW}"

    def _accounted(self, step: Step, before: str, after: str) -> str:
        """Account for the rows of a step, and return the view of those that go on."""
        columns, given, view = self.columns(after), self.account.kept, f"{after}_kept"
        if ROW not in columns and REASON in columns:
            raise _error(step, f"gives {REASON} without {ROW}, so that no row can be rejected: keep {ROW}")
        (rows,) = self._row(f"SELECT count(*) FROM {after}")
        self.account.kept = rows
        if ROW not in columns:
            self.account.merged += given - rows
            self._delivery = "CAST(NULL AS VARCHAR)"
            self._make_view(view, f"SELECT *, row_number() OVER () AS {ROW} FROM {after}")
            return view
        known = f"SELECT count(DISTINCT {ROW}) FROM {after} SEMI JOIN {before} USING ({ROW})"
        if not isinstance(step.options, Deduplicate) and self._row(known) != (rows,):
            said = "returned a row twice, or one that it was not given: leave out _row where rows become others"
            if isinstance(step.options, Enrich):
                names = ", ".join(step.options.on.values())
                said = f"{step.options.table} has several rows with the same {names}: add deduplicate to its steps"
            raise _error(step, said)
        if given > rows:
            self.account.drops[step.name] += given - rows
        if REASON not in columns:
            return after
        if columns[REASON] == "BOOLEAN":
            raise _error(step, f"gives {REASON} as true or false: give the reason as text, null where there is none")
        wrong = f"FROM {after} WHERE CAST({REASON} AS VARCHAR) <> ''"
        for reason, number in self._database.execute(f"SELECT {REASON}, count(*) {wrong} GROUP BY 1").fetchall():
            self.account.rejections[str(reason)] += number
            self.account.kept -= number
        packed = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in self.columns(before) if name != ROW)
        self.rejects.append(
            f"SELECT {literal(step.name)} AS step, {self._delivery} AS delivery, CAST(NULL AS BIGINT) AS line, "
            f"CAST({ROW} AS BIGINT) AS row, CAST({REASON} AS VARCHAR) AS reason, CAST(to_json(b) AS VARCHAR) AS text, "
            f"CAST(NULL AS VARCHAR) AS key FROM (SELECT {ROW}, {REASON} {wrong}) "
            f"JOIN (SELECT {ROW}, struct_pack({packed}) AS b FROM {before}) USING ({ROW})"
        )
        self._make_view(
            view, f"SELECT * EXCLUDE ({REASON}) FROM {after} WHERE coalesce(CAST({REASON} AS VARCHAR), '') = ''"
        )
        return view


def _called(step: Step, batches: Iterator[duckdb.DuckDBPyRelation]) -> Any:
    """Return what a function makes of the rows, as a table of Arrow."""
    function = import_object(step.reference or "", "steps")
    if isinstance(step.options, Check):
        from executor_adapter.pipeline.checks import checked_by

        function, kind = checked_by(function), "pandas"
    else:
        kind = _library_of(function)
    options = step.options.model_extra or {}
    found = [_as_arrow(function(_given(relation, kind), **options)) for relation in batches]
    return found[0] if len(found) == 1 else pa.concat_tables(found, promote_options="permissive")


def _library_of(function: Callable[..., Any]) -> str:
    """Return what a function takes: polars, pyarrow, duckdb or, without an annotation, pandas."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # Imported for types alone.
        signature = inspect.signature(function)
    first = next(iter(signature.parameters.values()), None)
    kind = getattr(first, "annotation", "")
    module = kind if isinstance(kind, str) else str(getattr(kind, "__module__", ""))
    names = {"pl": "polars", "polars": "polars", "pa": "pyarrow", "pyarrow": "pyarrow", "duckdb": "duckdb"}
    return names.get(module.partition(".")[0].lstrip("_"), "pandas")


def _given(relation: duckdb.DuckDBPyRelation, library: str) -> Any:
    match library:
        case "duckdb":
            return relation
        case "polars":
            return relation.pl()
        case "pyarrow":
            return relation.to_arrow_table()
    import pandas as pd

    return relation.to_arrow_table().to_pandas(types_mapper=pd.ArrowDtype)


def _as_arrow(found: Any) -> pa.Table:
    if type(found).__module__.startswith("pandas."):
        return pa.Table.from_pandas(found, preserve_index=False)
    if not isinstance(found, Mapping) and not hasattr(found, "__arrow_c_stream__"):
        raise TypeError(f"it returned {type(found).__name__}: return a table, of a LazyFrame its collect()")
    return pa.table(found)


@contextmanager
def _explained(step: Step) -> Iterator[None]:
    """Raise what has a mistake in it with the name of the step and the line in its file."""
    try:
        yield
    except (ConfigurationError, DataProcessingException, OSError, duckdb.OutOfMemoryException, duckdb.IOException):
        raise
    except duckdb.Error as error:
        wrong = isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException)
        code = "CONFIGURATION_ERROR" if wrong else "DATA_ERROR"
        raise _error(step, str(error).partition("\n\n")[0].replace("\n", " "), code) from error
    except MISTAKES as error:
        raise _error(step, f"raised {type(error).__name__}: {error}", "DATA_ERROR") from error


def quoted(name: str) -> str:
    """Return the name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _error(step: Step, message: str, code: str = "CONFIGURATION_ERROR") -> DataProcessingException:
    return rows_error(f"step {step.name}: {message}", step.name, code)
