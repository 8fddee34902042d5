"""Steps turn the rows of a window into processed rows: SQL, and functions of whole tables.

DuckDB carries the rows. They have the column `_row`, their number in the window: a step that keeps it is accounted for
row by row, whatever it filters or reorders; one that joins, aggregates or explodes gives rows without it, and is
accounted for as rows in and rows out. A row whose column `_reason` is not null is rejected with that reason.
"""

from __future__ import annotations

import inspect
import json
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.job import nearest
from executor_adapter.pipeline.casts import literal
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.text_rows import REASON, ROW

BUILT_IN = ("check", "deduplicate", "enrich", "function", "sql")
Spec = str | Mapping[str, Any]
"""A step in the configuration: `module:function`, or a mapping of the name of a step to its options."""
MISTAKES = (LookupError, TypeError, ValueError, AttributeError, NameError, ArithmeticError, AssertionError)
"""What a step raises that has a mistake, or that the rows do not suit: the same rows raise it again."""

MAX_REASONS = 10
"""Reasons that `Processed` names."""

_TABLE = re.compile(r"\{table:([^{}]+)\}")
_OPTIONS = {
    "deduplicate": ({"key"}, {"order_by", "keep", "reject"}),
    "enrich": ({"table", "on", "columns"}, {"missing"}),
    "check": ({"schema"}, set()),
    "sql": ({"sql"}, set()),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as the configuration has it, whose options are known to fit."""

    name: str
    kind: str
    options: Mapping[str, Any]
    key: str
    """Where the configuration has it."""

    @property
    def reads(self) -> list[str]:
        """The other tables that it reads, as `tool.table`."""
        if self.kind == "enrich":
            return [self.options["table"]]
        found = _TABLE.findall(self.options["sql"]) if self.kind == "sql" else self.options.get("reads", ())
        return [found] if isinstance(found, str) else list(found)

    @property
    def reference(self) -> str | None:
        """What it imports, as `module:name`."""
        return {"check": self.options.get("schema"), "function": self.options.get("function")}.get(self.kind)


def read_step(spec: Spec, key: str = "steps") -> Step:
    """Return a step of the configuration; `key` is where it stands there. Nothing is imported.

    Raises:
        ConfigurationError: there is no such step, or it has no such option.
    """
    if isinstance(spec, str):
        spec = {"function": spec} if ":" in spec else {spec: {}}
    kind = next((each for each in spec if each in BUILT_IN), None)
    if kind is None:
        wrong = next(iter(spec), "")
        near = nearest(str(wrong), BUILT_IN)
        hint, allowed = f"did you mean {near}? " if near else "", ", ".join(BUILT_IN)
        raise ConfigurationError(f"{key}: {wrong!r} is not a step: {hint}must be one of {allowed}, or module:function")
    if kind == "function":
        batch = spec.get("batch")
        if batch is not None and (type(batch) is not int or batch < 1):
            raise ConfigurationError(f"{key}: batch: {batch!r} is not allowed: must be a number of rows, at least 1")
        return Step(str(spec["function"]), kind, {"reads": (), "batch": None, **spec}, key)
    given = spec[kind]
    if kind in ("check", "sql") and not isinstance(given, Mapping):
        given = {"schema" if kind == "check" else "sql": given}
    if len(spec) > 1 or not isinstance(given, Mapping):
        raise ConfigurationError(f"{key}: {kind}: must be one mapping of options, such as {{{kind}: {{...}}}}")
    required, optional = _OPTIONS[kind]
    options = {str(each): value for each, value in given.items()}
    for name in (*(required - options.keys()), *(options.keys() - required - optional)):
        said, known = "is missing" if name in required else "is not an option", [*sorted(required), *sorted(optional)]
        raise ConfigurationError(f"{key}: {kind}: {name} {said}: the options are {', '.join(known)}")
    _check_options(kind, options, key)
    return Step(kind if kind != "sql" else _name_of_sql(options["sql"]), kind, options, key)


def _check_options(kind: str, options: dict[str, Any], key: str) -> None:
    choices = {"keep": ("first", "last"), "missing": ("keep", "reject", "drop"), "reject": (True, False)}
    for name, allowed in choices.items():
        if name in options and options[name] not in allowed:
            said = ", ".join(str(each).lower() for each in allowed)
            raise ConfigurationError(f"{key}: {kind}: {name}: {options[name]!r} is not allowed: must be one of {said}")
    for name in ("key", "on", "columns"):
        if name in options and not options[name]:
            raise ConfigurationError(f"{key}: {kind}: {name}: must be at least one column")
    table = options.get("table")
    if table is not None and not re.fullmatch(r"[^./]+\.[^./]+", str(table)):
        raise ConfigurationError(f"{key}: {kind}: table: {table!r} is not allowed: must be tool.table")
    if "sql" in options:
        options["sql"] = _read_sql(str(options["sql"]), key)


def _read_sql(text: str, key: str) -> str:
    if not text.endswith(".sql"):
        return text
    try:
        return f"-- {Path(text).name}\n{Path(text).read_text()}"
    except OSError as error:
        raise ConfigurationError(f"{key}: sql: {text}: {error.strerror}: must be the path of a file, or SQL") from None


def _name_of_sql(text: str) -> str:
    first = text.partition("\n")[0]
    return first[3:] if first.startswith("-- ") else "sql"


def fingerprint_of(steps: Sequence[Step], root: Path) -> str:
    """Return what the steps depend on: themselves, their SQL, and the version of each other table that they read."""
    read = {table: other_table(root, table).version() for step in steps for table in step.reads}
    return json.dumps([[[each.kind, each.options] for each in steps], read], default=str, sort_keys=True)


def other_table(root: Path, name: str) -> LakeTable:
    """Return the processed rows of a table that is called `tool.table`."""
    tool, _, table = name.partition(".")
    return LakeTable(root=root, layer="processed", tool=tool, name=table)


@dataclass(slots=True, kw_only=True)
class Processed:
    """What has become of the rows of a window: `given` is the sum of `kept`, `merged`, `rejected` and `dropped`."""

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
    def dropped(self) -> int:
        """Rows that steps left out."""
        return self.drops.total()

    @property
    def reasons(self) -> tuple[tuple[str, int], ...]:
        """The most frequent reasons for which rows were rejected or dropped, with their numbers."""
        return tuple((self.rejections + self.drops).most_common(MAX_REASONS))


class Run:
    """Applies steps to the rows of one window.

    Args:
        database: the connection, which is used for nothing else.
        source: SQL that gives the rows, with `_row`.
        root: the folder of the lake.
        space: a folder for what does not fit into memory.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, source: str, root: Path, space: Path) -> None:
        self._database, self._root, self._space = database, root, space
        self._number = 0
        self.rows = "rows_0"
        """The view that has the rows now."""
        self.account = Processed()
        self.rejects: list[str] = []
        """Queries that give the rejects, with the columns of `REJECTED`."""
        self._make_view("rows_0", source)
        self.account.given = self.account.kept = self._count("rows_0")

    def _make_view(self, name: str, query: str) -> None:
        self._database.execute(f"CREATE TEMP VIEW {name} AS {query}")

    def _count(self, view: str) -> int:
        return int(self._value(f"SELECT count(*) FROM {view}"))

    def _value(self, query: str) -> Any:
        ((found,),) = self._database.execute(query).fetchall()
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
        if step.kind in ("function", "check"):
            self._database.register(view, _called(step, self._relations(step, before)))
            return
        query = {"sql": self._sql, "deduplicate": self._deduplicate, "enrich": self._enrich}[step.kind](step, before)
        if step.kind != "deduplicate":
            file = self._space / f"{view}.parquet"
            # A file spills nothing, and is read as fast as a table.
            self._database.execute(f"COPY ({query}) TO {literal(file)} (FORMAT parquet, COMPRESSION lz4_raw)")
            query = f"FROM read_parquet({literal(file)})"
        self._make_view(view, query)

    def _relations(self, step: Step, before: str) -> Iterator[duckdb.DuckDBPyRelation]:
        """Yield the rows that a function is called with: all of them, or `batch` at a time."""
        batch = step.options.get("batch") or max(1, self.account.kept)
        for start in range(0, max(1, self.account.kept), batch):
            yield self._database.sql(f"FROM {before} LIMIT {batch} OFFSET {start}")

    def _sql(self, step: Step, before: str) -> str:
        text = _TABLE.sub(lambda found: self._other(step, found[1]), step.options["sql"])
        return text.replace("{rows}", before).strip().rstrip(";")

    def _other(self, step: Step, name: str) -> str:
        table = other_table(self._root, name)
        if table.any_file() is None:
            raise _error(step, f"{name} has no processed rows: process that table first, or correct its name")
        files = literal(table.folder / "window=*" / "*.parquet")
        # By their names: while its columns change, some windows have them already.
        return f"read_parquet({files}, hive_partitioning = true, union_by_name = true)"

    def columns(self, source: str) -> dict[str, str]:
        """Return the columns of a view, or of what is read, with their types."""
        found = self._database.execute(f"DESCRIBE FROM {source}").fetchall()
        return {name: kind for name, kind, *_ in found}

    def _deduplicate(self, step: Step, before: str) -> str:
        options = step.options
        keys, order, keep = _names(options["key"]), _names(options.get("order_by", ())), options.get("keep", "last")
        columns = self.columns(before)
        for name in (*keys, *order):
            if name not in columns:
                raise _error(step, f"there is no column {name}: the columns are {_shown(columns)}", "DATA_ERROR")
        highest = keep == "last"
        # A value beats no value, and of equal ones the later row stays, or the earlier one.
        known = "IS NOT NULL" if highest else "IS NULL"
        parts = [part for name in map(quoted, order) for part in (f"{name} {known}", name)]
        packed = ", ".join(f"p{number} := {part}" for number, part in enumerate([*parts, ROW]))
        best = f"{'max' if highest else 'min'}(struct_pack({packed})).p{len(parts)}"
        group = ", ".join(map(quoted, keys))
        winners = f"FROM best_{self._number}"  # The numbers alone are kept, and no copy of the rows.
        self._database.execute(f"CREATE TEMP TABLE best_{self._number} AS SELECT {best} FROM {before} GROUP BY {group}")
        empty = " OR ".join(f"{quoted(name)} IS NULL" for name in keys)
        cases, others = [], "" if options.get("reject", False) else f" WHERE {ROW} IN ({winners})"
        if self._value(f"SELECT count(*) FROM {before} WHERE {empty}"):
            # Nothing tells a row without a value in its key from another one.
            cases.append(f"WHEN {empty} THEN {literal(' or '.join(keys) + ': is empty')}")
            others = others and f"{others} OR {empty}"
        if not others:
            cases.append(f"WHEN {ROW} NOT IN ({winners}) THEN {literal('another row has this ' + ', '.join(keys))}")
        reason = f", CASE {' '.join(cases)} END AS {REASON}" if cases else ""
        return f"SELECT *{reason} FROM {before}{others}"

    def _enrich(self, step: Step, before: str) -> str:
        options, name = step.options, step.options["table"]
        keys, added = _mapping(options["on"]), _mapping(options["columns"])
        source = self._other(step, name)
        here, there = self.columns(before), self.columns(source)
        for column in (*keys.values(), *added):
            if column not in there:
                raise _error(step, f"{name} has no column {column}: it has {_shown(there)}")
        for column, partner in keys.items():
            if column not in here:
                raise _error(step, f"there is no column {column}: the columns are {_shown(here)}", "DATA_ERROR")
            if here[column] != there[partner]:
                said = f"{column} is {here[column]} here and {there[partner]} there: declare the same type in both"
                raise _error(step, f"{said} schemas", "DATA_ERROR")
        taken = next((each for each in added.values() if each in here), None)
        if taken is not None:
            raise _error(step, f"there is a column {taken} already: give the other one a name by a mapping in columns")
        group = ", ".join(quoted(each) for each in keys.values())
        known = " AND ".join(f"{quoted(each)} IS NOT NULL" for each in keys.values())
        twice = self._database.execute(
            f"SELECT {group} FROM {source} WHERE {known} GROUP BY ALL HAVING count(*) > 1 LIMIT 1"
        ).fetchall()
        if twice:
            key = dict(zip(keys, twice[0], strict=True))
            said = f"{name} has several rows with {key}: rows would become more by it: join by more columns"
            raise _error(step, said, "DATA_ERROR")
        on = " AND ".join(f"r.{quoted(mine)} = t.{quoted(theirs)}" for mine, theirs in keys.items())
        columns = ", ".join(f"t.{quoted(theirs)} AS {quoted(mine)}" for theirs, mine in added.items())
        missing, alone = options.get("missing", "keep"), f"t.{quoted(next(iter(keys.values())))} IS NULL"
        reason = f", CASE WHEN {alone} THEN {literal(f'no partner by {_shown(keys)} in {name}')} END AS {REASON}"
        join = f"FROM {before} r {'' if missing == 'drop' else 'LEFT '}JOIN (FROM {source}) t ON {on}"
        return f"SELECT r.*, {columns}{reason if missing == 'reject' else ''} {join}"

    def _accounted(self, step: Step, before: str, after: str) -> str:
        """Account for the rows of a step, and return the view of those that go on."""
        columns = self.columns(after)
        given = self.account.kept
        if ROW not in columns:
            self.account.kept = self._count(after)
            self.account.merged += given - self.account.kept
            view = f"{after}_kept"
            rest = "* EXCLUDE (_reason)" if REASON in columns else "*"
            self._make_view(view, f"SELECT {rest}, row_number() OVER () AS {ROW} FROM {after}")
            return view
        rows = self._count(after)
        is_own = step.kind in ("sql", "function", "check")
        if is_own and self._value(f"SELECT count(DISTINCT {ROW}) FROM {after}") != rows:
            raise _error(step, "returned a row twice: return each row once, or leave out _row where rows become others")
        others = f"SELECT count(*) FROM {after} WHERE {ROW} NOT IN (SELECT {ROW} FROM {before})"
        if is_own and (foreign := self._value(others)):
            said = f"returned {foreign} rows that it was not given: keep _row, or leave it out where rows become others"
            raise _error(step, said)
        if given > rows:
            self.account.drops[f"dropped by {step.name}"] += given - rows
        self.account.kept = rows
        if REASON not in columns:
            return after
        wrong = f"FROM {after} WHERE {REASON} IS NOT NULL"
        for reason, number in self._database.execute(f"SELECT {REASON}, count(*) {wrong} GROUP BY 1").fetchall():
            self.account.rejections[str(reason)] += number
            self.account.kept -= number
        self.rejects.append(
            f"SELECT {literal(step.name)} AS step, CAST(NULL AS VARCHAR) AS delivery, CAST(NULL AS BIGINT) AS line, "
            f"CAST({ROW} AS BIGINT) AS row, CAST({REASON} AS VARCHAR) AS reason, CAST(to_json(b) AS VARCHAR) AS text "
            f"FROM (SELECT {ROW}, {REASON} {wrong}) "
            f"JOIN (SELECT {ROW}, struct_pack({self._packed(before)}) AS b FROM {before}) USING ({ROW})"
        )
        view = f"{after}_kept"
        self._make_view(view, f"SELECT * EXCLUDE ({REASON}) FROM {after} WHERE {REASON} IS NULL")
        return view

    def _packed(self, view: str) -> str:
        return ", ".join(f"{quoted(name)} := {quoted(name)}" for name in self.columns(view) if name != ROW)


def _called(step: Step, batches: Iterator[duckdb.DuckDBPyRelation]) -> Any:
    """Return what a function makes of the rows, as a table of Arrow."""
    function = import_object(step.reference or "", "steps")
    if step.kind == "check":
        from executor_adapter.pipeline.checks import checked_by

        function, kind, options = checked_by(function), "pandas", {}
    else:
        options = {name: value for name, value in step.options.items() if name not in ("function", "reads", "batch")}
        kind = _library_of(function)
    found = [_as_arrow(step, function(_given(relation, kind), **options)) for relation in batches]
    return found[0] if len(found) == 1 else pa.concat_tables(found, promote_options="permissive")


def _library_of(function: Callable[..., Any]) -> str:
    """Return what a function takes: polars, pyarrow, duckdb or, without an annotation, pandas."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # Imported for types alone.
        signature = inspect.signature(function)
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.annotation is first.empty:
        return "pandas"
    kind = first.annotation
    module = kind.partition(".")[0] if isinstance(kind, str) else str(getattr(kind, "__module__", ""))
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


def _as_arrow(step: Step, found: Any) -> pa.Table:
    module = type(found).__module__.partition(".")[0].lstrip("_")
    match module, type(found).__name__:
        case "polars", "LazyFrame":
            return pa.table(found.collect())
        case "pandas", "DataFrame":
            return pa.Table.from_pandas(found, preserve_index=False)
        case ("polars", "DataFrame") | ("pyarrow", "Table") | ("duckdb", _):
            return pa.table(found)
    said = "a DataFrame of pandas or polars, a table of pyarrow, or a relation of DuckDB"
    raise _error(step, f"returned a {type(found).__name__}: return {said}")


@contextmanager
def _explained(step: Step) -> Iterator[None]:
    """Raise what has a mistake in it with the name of the step and the line in its file."""
    try:
        yield
    except (ConfigurationError, DataProcessingException, OSError, duckdb.OutOfMemoryException, duckdb.IOException):
        raise
    except duckdb.Error as error:
        wrong = isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException)
        code = "CONFIGURATION_ERROR" if wrong and step.kind == "sql" else "DATA_ERROR"
        raise _error(step, str(error).partition("\n\n")[0].replace("\n", " "), code) from error
    except MISTAKES as error:
        raise _error(step, f"raised {type(error).__name__}: {error}{_place_of(step, error)}", "DATA_ERROR") from error


def _place_of(step: Step, error: Exception) -> str:
    """Return where in the function's own file it was raised, or nothing where Python does not know."""
    if step.kind != "function":
        return ""
    file = inspect.getsourcefile(inspect.unwrap(import_object(step.name, "steps")))
    own = [each for each in traceback.extract_tb(error.__traceback__) if each.filename == file]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def quoted(name: str) -> str:
    """Return the name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _names(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _mapping(given: Any) -> dict[str, str]:
    return dict(given) if isinstance(given, Mapping) else {name: name for name in _names(given)}


def _shown(names: Any) -> str:
    return ", ".join(each for each in names if each not in (ROW, REASON))


def _error(step: Step, message: str, code: str = "CONFIGURATION_ERROR") -> DataProcessingException:
    return rows_error(f"step {step.name}: {message}", step.name, code)
