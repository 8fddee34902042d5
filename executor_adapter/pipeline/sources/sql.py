"""The source of databases: one statement a window, received in batches, each of which is a Parquet file of text.

A retry starts anew, because only one statement sees the table at one moment.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from datetime import date, datetime
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import exc

from executor_adapter.config import SqlTable, SqlTool, TableSettings, redacted
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.errors import configuration_error
from executor_adapter.pipeline.sources.landing import Landing, Window, land_batches
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import check_names, text_array

_REFUSED = re.compile(
    r"(28|3D)\w{3}$|\(?'?(1044|1045|1049|18456|28000)\b|connection .*("
    "authentication failed|no password supplied|not permitted to log in|no pg_hba.conf entry|does not exist|"
    "permission denied for database)"
)
"""Matches how an error begins for a wrong user, password or name of a database: its SQLSTATE, the numbers of MySQL and
SQL Server, or the first line of what PostgreSQL says where there is no connection yet, for which drivers give no code.
"""

_SQLITE_CODES = {"": "DATA_ERROR", "SQLITE_ERROR": "CONFIGURATION_ERROR"}
"""What SQLite calls operational, by its name: a text that is not UTF-8 has none; the rest, such as a lock, may pass."""


def land_query(table: ConfiguredTable, tool: SqlTool, window: Window) -> Landing:
    """Receive the rows of a table, or of a query, in a window.

    With a `cursor`, rows are those from `since` on and before `until`; those without a value in it belong to the window
    that has no `until`.

    Args:
        table: the table.
        tool: the database.
        window: the window.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, there is no such driver, database, table or column, or the user is
            refused; NETWORK_ERROR, the database does not answer.
    """
    described = tool.tables[table.name]
    asked = [tool.url, described.model_dump(mode="json", exclude=set(TableSettings.model_fields))]
    with _explained(tool), closing(_rows(tool, described, window)) as rows:
        name = described.table or "query"
        return land_batches(table, window, [*asked, window.since, window.until], rows, name)


def _engine(tool: SqlTool) -> sa.Engine:
    url = sa.make_url(tool.url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if tool.credential is not None:
        url = url.set(password=tool.credential.resolve().get_secret_value())
    options: dict[str, Any] = {"poolclass": sa.NullPool}
    match url.get_backend_name():
        case "sqlite" if url.database not in (None, "", ":memory:"):
            file = url.database if url.database.startswith("file:") else f"file:{quote(url.database)}"
            url = url.set(database=file, query={**url.query, "mode": "ro", "uri": "true"})
        case "duckdb":
            options["connect_args"] = {"read_only": True}
        case "postgresql":
            options["execution_options"] = {"postgresql_readonly": True}
    engine = sa.create_engine(url, **options)
    if url.drivername == "postgresql+psycopg":
        sa.event.listen(engine, "connect", _keep_as_written)
    return engine


def _keep_as_written(connection: Any, _: object) -> None:
    """Have JSON as text, and moments that Python does not know, as infinity and years BC: their type rejects a row."""
    import psycopg.types.json

    for name in ("date", "timestamp", "timestamptz", "json[]", "jsonb[]"):
        oid = connection.adapters.types.get_oid(name)
        known = connection.adapters.get_loader(oid, psycopg.pq.Format.TEXT)

        class KnownLoader(psycopg.adapt.Loader):
            def __init__(self, oid: int, context: Any, known: Any = known, is_array: bool = name.endswith("]")) -> None:
                super().__init__(oid, context)
                self._known = known(oid, None if is_array else context)  # Arrays become one JSON, not a list of texts.

            def load(self, data: Any) -> Any:
                try:
                    return self._known.load(data)
                except psycopg.DataError:
                    return bytes(data).decode()

        connection.adapters.register_loader(oid, KnownLoader)

    def load_json(data: Any) -> str | None:
        text = bytes(data).decode()
        return json.loads(text) if text[0] in 'n"' else text  # Neither null nor a text is JSON in other sources.

    psycopg.types.json.set_json_loads(load_json, connection)


def _statement(connection: sa.Connection, described: SqlTable, window: Window) -> sa.Select[Any] | sa.TextClause:
    declared = described.table_schema.columns.get(described.cursor or "") if described.table_schema else None
    zone = declared.zone or "UTC" if declared and declared.kind == "timestamp" else None
    is_sqlite = connection.dialect.name == "sqlite"
    if described.query is not None:
        kind = sa.String() if is_sqlite or zone is None else sa.DateTime(timezone=True)
        names = [name for name in ("since", "until") if f":{name}" in described.query]
        text = re.sub(r"(?<!\\):(?!(since|until)\b)", r"\\:", described.query)  # Others are no parameters.
        return sa.text(text).bindparams(*(_parameter(window, name, kind, zone) for name in names))
    schema, _, name = (described.table or "").rpartition(".")
    # Its columns alone: keys and indexes are not asked for, and other tables are not looked at.
    found = sa.inspect(connection).get_columns(name, schema or None)
    table = sa.table(name, *(sa.column(each["name"], each["type"]) for each in found), schema=schema or None)
    statement = sa.select(*(map(_as_stored, table.c) if is_sqlite else table.c))
    cursor: sa.ColumnElement[Any] | None = table.c.get(described.cursor or "")
    if cursor is None:  # One that is not there is refused with the answer.
        return statement
    if is_sqlite and isinstance(cursor.type, sa.Date | sa.DateTime):  # It compares their texts.
        cursor, zone = sa.type_coerce(cursor, sa.String()), zone or "UTC"
    conditions = [] if window.since is None else [cursor >= _bound(window.since, cursor.type, zone)]
    if window.until is not None:
        return statement.where(*conditions, cursor < _bound(window.until, cursor.type, zone))
    # A row that has no value yet would otherwise be in no window ever.
    return statement.where(sa.or_(cursor.is_(None), *conditions)) if conditions else statement


def _as_stored(column: sa.ColumnElement[Any]) -> sa.Label[Any]:
    """Return a column of SQLite, in which any value may be of another type: SQLAlchemy would round it, or fail."""
    value = sa.type_coerce(column, sa.types.NULLTYPE)
    flag = sa.case({0: "false", 1: "true"}, value=value, else_=value)
    return (flag if isinstance(column.type, sa.Boolean) else value).label(column.name)


def _parameter(window: Window, name: str, kind: sa.types.TypeEngine[Any], zone: str | None) -> sa.BindParameter[Any]:
    if (value := getattr(window, name)) is None:
        raise configuration_error(f"the query asks for :{name}, which this window does not have: set cursor and start")
    # It has no type, since PostgreSQL compares no date with a text.
    return sa.bindparam(name, str(_bound(value, kind, zone)), sa.types.NULLTYPE)


def _bound(text: str, kind: sa.types.TypeEngine[Any], zone: str | None) -> Any:
    """Return the bound of a window as a value of the type of the column that is compared with it.

    Moments are in `zone`, or in UTC. Texts that are declared to be moments have one; others are as the source had them,
    and of a range of days as days are.
    """
    try:
        python_type = kind.python_type
        if python_type is str and zone is None:
            return text.removesuffix("T00:00:00+00:00")
        if python_type not in (str, datetime):
            return date.fromisoformat(text[:10]) if python_type is date else python_type(text)
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(ZoneInfo(zone or "UTC")) if moment.tzinfo else moment
        if python_type is str:  # Not above the texts of its minute or day, in whatever form of ISO 8601 they are.
            return moment.isoformat(" ", "minutes")[:16].removesuffix(" 00:00")
        return moment if getattr(kind, "timezone", False) else moment.replace(tzinfo=None)
    except (ValueError, TypeError, ArithmeticError, NotImplementedError):
        raise configuration_error(f"{text!r} is no bound for a cursor of type {kind!r}") from None


def _rows(tool: SqlTool, described: SqlTable, window: Window) -> Generator[pa.RecordBatch]:
    """Yield batches of text, from a cursor on the server's side."""
    with _engine(tool).connect() as connection:
        statement = _statement(connection, described, window)
        statement = statement.execution_options(stream_results=True, max_row_buffer=tool.batch_rows)
        with connection.execute(statement) as result:
            names = list(result.keys())
            check_names(names, "the query")
            if described.cursor not in (None, *names):
                raise configuration_error(f"cursor: {described.cursor} is not among the columns {', '.join(names)}")
            for rows in result.partitions(tool.batch_rows):
                yield pa.RecordBatch.from_arrays([text_array(each) for each in zip(*rows, strict=True)], names=names)


@contextmanager
def _explained(tool: SqlTool) -> Iterator[None]:
    try:
        yield
    except (exc.SQLAlchemyError, ModuleNotFoundError, OSError, UnicodeError) as error:
        said = redacted(f"{tool.url}: {type(error).__name__}: {error}".partition("\n")[0])
        raise DataCollectionException(said, error_code=_code_of(error)) from None


def _code_of(error: Exception) -> str:
    if isinstance(cause := getattr(error, "orig", None), sqlite3.OperationalError):
        return _SQLITE_CODES.get(getattr(cause, "sqlite_errorname", ""), "SOURCE_UNAVAILABLE")
    wrong = exc.ArgumentError | exc.InvalidRequestError | exc.ProgrammingError | ModuleNotFoundError
    if isinstance(error, wrong) or _REFUSED.match(getattr(cause, "sqlstate", None) or str(cause)):
        return "CONFIGURATION_ERROR"
    is_lost = isinstance(error, exc.OperationalError | exc.InterfaceError | OSError)
    return "NETWORK_ERROR" if is_lost else error_code_of(error)
