"""Tables and queries are received as text in batches, and windows by a cursor never skip a row."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor_adapter.config import Format, SqlTool
from executor_adapter.exceptions import ConfigurationError, DataCollectionException
from executor_adapter.pipeline import ConfiguredTable, Landing, Window, land
from executor_adapter.pipeline.sources.reading import read_rows
from tests.pipeline.databases import POSTGRESQL, database
from tests.waiting import PATIENCE

ALL = Window()


@dataclass
class Shop:
    """A database with the table `orders`."""

    url: str
    engine: sa.Engine
    prefix: str
    root: Path

    def run(self, statement: str, *values: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement.replace("orders", f"{self.prefix}orders")), values or None)

    def tool(self, **fields: Any) -> SqlTool:
        table = {"table": f"{self.prefix}orders"} if "query" not in fields else {}
        described = {"source": "sql", "url": self.url, "batch_rows": 2}
        return SqlTool.model_validate({**described, "tables": {"orders": table | fields}})

    def land(self, window: Window = ALL, **fields: Any) -> Landing:
        table = ConfiguredTable(lake=self.root, tool_name="shop", tool=self.tool(**fields), name="orders")
        return land(table, window)

    def rows(self, window: Window = ALL, **fields: Any) -> list[dict[str, Any]]:
        return rows_of(self.land(window, **fields))


def rows_of(landing: Landing) -> list[dict[str, Any]]:
    return [row for batch in read_rows(landing, Format(), lambda _: None) for row in batch.to_pylist()]


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with database(request.param, tmp_path) as (url, engine, prefix):
        yield Shop(url, engine, prefix, tmp_path / "lake")


def test_a_table_is_received_as_text(shop: Shop) -> None:
    """All rows come in batches, each a file; text is as it was, and null is null."""
    shop.run("CREATE TABLE orders (id INTEGER, zip VARCHAR(9), price NUMERIC(9, 2))")
    shop.run(
        "INSERT INTO orders VALUES (:id, :zip, :price)",
        *({"id": n, "zip": "00501" if n else None, "price": "1.50"} for n in range(5)),
    )
    landing = shop.land()
    found = rows_of(landing)
    assert [(row["id"], row["zip"]) for row in found] == [(str(n), "00501" if n else None) for n in range(5)]
    assert {row["price"] for row in found} == ({"1.50"} if shop.prefix else {"1.50", "1.5"} & {found[0]["price"]})
    assert (landing.rows, len(landing.files)) == (5, 3)


def test_a_query_has_the_bounds_of_the_window(shop: Shop) -> None:
    """Its rows are received, and what it calls them."""
    shop.run("CREATE TABLE orders (id INTEGER, day VARCHAR(10))")
    shop.run("INSERT INTO orders VALUES (1, '2026-01-01'), (2, '2026-01-02'), (3, '2026-01-03')")
    query = f"SELECT id, 'a%' AS note FROM {shop.prefix}orders WHERE day >= :since AND day < :until"
    window = Window(name="d", since="2026-01-02", until="2026-01-03")
    assert shop.rows(window, query=query) == [{"id": "2", "note": "a%"}]


def test_windows_are_bounded_by_the_cursor(shop: Shop) -> None:
    """A window begins with `since` and ends before `until`; null belongs to the window without an end."""
    shop.run("CREATE TABLE orders (id INTEGER, at TIMESTAMP)")
    start = datetime(2026, 1, 1)
    values = [{"id": n, "at": start + timedelta(hours=12 * n)} for n in range(5)]
    orders = sa.text(f"INSERT INTO {shop.prefix}orders VALUES (:id, :at)").bindparams(
        sa.bindparam("at", type_=sa.DateTime)
    )
    with shop.engine.begin() as connection:
        connection.execute(orders, [*values, {"id": 9, "at": None}])
    first = Window(name="a", since="2026-01-01T00:00:00+00:00", until="2026-01-02T00:00:00+00:00")
    landing = shop.land(first, cursor="at")
    assert [row["id"] for row in rows_of(landing)] == ["0", "1"]
    rest = shop.land(Window(name="b", since="2026-01-02"), cursor="at")
    assert sorted(row["id"] for row in rows_of(rest)) == ["2", "3", "4", "9"]
    assert shop.land(Window(name="c", since="2027-01-01", until="2027-01-02"), cursor="at").rows == 0


@pytest.mark.parametrize("query", [None, "SELECT * FROM {}orders WHERE at >= :since"])
def test_a_bound_is_in_the_zone_of_the_cursor(shop: Shop, query: str | None) -> None:
    """Times that name no zone are asked for in the one that the schema declares."""
    shop.run("CREATE TABLE orders (id INTEGER, at TIMESTAMP)")
    shop.run("INSERT INTO orders VALUES (1, '2026-01-05 09:59:00'), (2, '2026-01-05 10:00:00')")
    fields = {"cursor": "at", "schema": {"columns": {"at": {"type": "timestamp", "zone": "America/New_York"}}}}
    fields |= {"query": query.format(shop.prefix)} if query else {}
    assert [row["id"] for row in shop.rows(Window(since="2026-01-05T15:00:00+00:00"), **fields)] == ["2"]


@pytest.mark.parametrize("kind", ["TIMESTAMP", "TEXT"])
@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])
def test_rows_at_the_bound_come_again_however_they_are_written(shop: Shop, kind: str, form: str) -> None:
    """Where times are compared as texts, none with the value of the bound, or a higher one, is lower than the bound."""
    shop.run(f"CREATE TABLE orders (id INTEGER, at {kind})")
    rows = [{"id": n, "at": f"{datetime(2026, 1, 4 + n, 10):{form}}"} for n in range(3)]
    shop.run("INSERT INTO orders VALUES (:id, :at)", *rows, {"id": 3, "at": f"{datetime(2026, 1, 5, 11):{form}}"})
    fields = {"cursor": "at", "schema": {"columns": {"at": {"type": "timestamp", "zone": "UTC"}}}}
    found = shop.rows(Window(since="2026-01-05T10:00:00+00:00"), **fields)
    assert sorted(row["id"] for row in found) == ["1", "2", "3"]


@pytest.mark.parametrize("query", [None, "SELECT day FROM {}orders WHERE day >= :since AND day < :until"])
@pytest.mark.parametrize("kind", ["DATE", "TEXT"])
def test_a_range_of_days_bounds_dates(shop: Shop, kind: str, query: str | None) -> None:
    """It has its first day, and not the one after its last, also where dates are texts."""
    shop.run(f"CREATE TABLE orders (day {kind})")
    shop.run("INSERT INTO orders VALUES ('2025-12-31'), ('2026-01-01'), ('2026-01-31'), ('2026-02-01')")
    month = Window(since="2026-01-01T00:00:00+00:00", until="2026-02-01T00:00:00+00:00")
    fields = {"cursor": "day"} | ({"query": query.format(shop.prefix)} if query else {})
    assert [row["day"] for row in shop.rows(month, **fields)] == ["2026-01-01", "2026-01-31"]


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
def test_a_moment_that_python_does_not_know_is_text(shop: Shop) -> None:
    """PostgreSQL has infinity, years BC and years of five digits: they cost no other row, and no other column."""
    shop.run("CREATE TABLE orders (id INTEGER, day DATE, at TIMESTAMP, ends TIMESTAMPTZ)")
    shop.run("INSERT INTO orders VALUES (1, '0044-03-15 BC', '10000-01-01', 'infinity'), (2, '2026-01-01', NULL, NULL)")
    assert shop.rows() == [
        {"id": "1", "day": "0044-03-15 BC", "at": "10000-01-01 00:00:00", "ends": "infinity"},
        {"id": "2", "day": "2026-01-01", "at": None, "ends": None},
    ]


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
def test_json_is_as_the_database_has_it(shop: Shop) -> None:
    """Numbers of any length, zeros at their end, and a key that is there twice go through no value of Python."""
    texts = {"a": '{"n": 12345678901234567.125, "n": 2.50}', "b": '{"n": 12345678901234567.125, "m": [2.50]}'}
    shop.run("CREATE TABLE orders (a JSON, b JSONB)")
    shop.run("INSERT INTO orders VALUES (CAST(:a AS JSON), CAST(:b AS JSONB))", texts)
    (found,) = shop.rows()
    assert (found["a"], found["b"]) == (texts["a"], '{"m": [2.50], "n": 12345678901234567.125}')


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
def test_json_of_a_database_is_that_of_other_sources(shop: Shop) -> None:
    """Its null is null, a text is that text, and an array of JSON is one."""
    shop.run("CREATE TABLE orders (a JSONB, b JSON, c JSON, d JSONB[])")
    row = """('null', '"one"', 'true', ARRAY[CAST(:d AS JSONB), '2', 'null', '"two"'])"""
    shop.run(f"INSERT INTO orders VALUES {row}", {"d": '{"a": 1}'})
    assert shop.rows() == [{"a": None, "b": "one", "c": "true", "d": '[{"a": 1}, 2, null, "two"]'}]


def test_a_query_may_have_colons(shop: Shop) -> None:
    """They are no parameters, unless they are `:since` or `:until`."""
    shop.run("CREATE TABLE orders (id INTEGER)")
    shop.run("INSERT INTO orders VALUES (1), (2)")
    query = f"SELECT id, '10:30 :now \\:then' AS at FROM {shop.prefix}orders WHERE id >= CAST(:since AS INTEGER)"
    found = shop.rows(Window(since="2", cursor="id"), query=query, cursor="id", key="id", start=0)
    assert found == [{"id": "2", "at": "10:30 :now :then"}]


def test_a_query_compares_its_bound_with_dates(shop: Shop) -> None:
    """The bound has no type of its own, so that a database makes a date of it where it needs one."""
    shop.run("CREATE TABLE orders (day DATE)")
    shop.run("INSERT INTO orders VALUES ('2025-12-31'), ('2026-01-01')")
    query = f"SELECT day FROM {shop.prefix}orders WHERE day >= :since"
    assert shop.rows(Window(since="2026-01-01"), query=query) == [{"day": "2026-01-01"}]


def test_values_of_sqlite_are_received_as_they_are_stored(tmp_path: Path) -> None:
    """A column has values of any type: none is rounded, or taken for another one, and none fails the table."""
    with database("sqlite", tmp_path) as (url, engine, prefix):
        shop = Shop(url, engine, prefix, tmp_path / "lake")
        shop.run("CREATE TABLE orders (price DECIMAL(9, 2), at DATETIME, day DATE, paid BOOLEAN, note JSON, raw BLOB)")
        shop.run(
            "INSERT INTO orders VALUES (1.239, '2026-01-05 10:00:00', '2026-01-05', 1, '{\"a\": 1.10}', x'ff'), "
            "(0.00001, 1767607200, '', 0, '', 'text'), ('n/a', '', 5, 'false', 5, 7), "
            "(NULL, NULL, NULL, NULL, NULL, NULL)"
        )
        found = shop.rows()
    assert [tuple(row.values()) for row in found] == [
        ("1.239", "2026-01-05 10:00:00", "2026-01-05", "true", '{"a": 1.10}', "/w=="),
        ("0.00001", "1767607200", "", "false", "", "text"),
        ("n/a", "", "5", "false", "5", "7"),
        (None,) * 6,
    ]


def test_numbers_are_compared_as_numbers(shop: Shop) -> None:
    """A cursor of numbers is compared as numbers, and not as text."""
    shop.run("CREATE TABLE orders (id NUMERIC(12, 0))")
    shop.run("INSERT INTO orders VALUES (9), (10), (2)")
    landing = shop.land(Window(name="x", since="9"), cursor="id")
    assert sorted(row["id"] for row in rows_of(landing)) == ["10", "9"]


def test_mistakes_are_configuration_errors(shop: Shop) -> None:
    """A missing table, column or bound is named, and nothing is landed."""
    shop.run("CREATE TABLE orders (id INTEGER)")
    for fields, window, said in (
        ({"table": "nothing"}, Window(), "NoSuchTableError: nothing"),
        ({"cursor": "at"}, Window(), "cursor: at is not among the columns id"),
        ({"cursor": "id"}, Window(since="soon"), "'soon' is no bound for a cursor of type INTEGER()"),
        ({"query": "SELECT :since"}, Window(), "asks for :since, which this window does not have"),
        ({"query": "SELECT 1 FROM"}, Window(), ""),
    ):
        with pytest.raises(DataCollectionException) as caught:
            shop.land(window, **fields)
        assert (said in str(caught.value), str(caught.value)) == (True, str(caught.value))
        assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert list(shop.root.rglob("manifest.json")) == []


def test_a_table_is_read_alone(tmp_path: Path) -> None:
    """A table to which one of its keys refers need not be there, nor be read."""
    with database("sqlite", tmp_path) as (url, engine, prefix):
        shop = Shop(url, engine, prefix, tmp_path / "lake")
        shop.run("CREATE TABLE orders (id INTEGER, customer INTEGER REFERENCES customers (id))")
        shop.run("INSERT INTO orders VALUES (1, 2)")
        assert shop.rows() == [{"id": "1", "customer": "2"}]


def test_a_column_that_is_twice_is_a_data_error(shop: Shop) -> None:
    """A query with two columns of one name is refused."""
    shop.run("CREATE TABLE orders (id INTEGER)")
    with pytest.raises(DataCollectionException, match="is there twice") as caught:
        shop.land(query="SELECT 1 AS a, 2 AS a")
    assert caught.value.error_code == "DATA_ERROR"


def test_a_database_is_only_read(shop: Shop) -> None:
    """A statement that writes although it begins like one that reads is refused, and nothing has changed."""
    shop.run("CREATE TABLE orders (id INTEGER)")
    shop.run("INSERT INTO orders VALUES (1)")
    name = f"{shop.prefix}orders"
    writes = f"WITH gone AS (DELETE FROM {name} RETURNING id) SELECT id FROM gone"
    if not shop.prefix:
        writes = f"WITH one AS (SELECT 1 AS id) INSERT INTO {name} SELECT id FROM one RETURNING id"
    with pytest.raises(DataCollectionException):
        shop.land(query=writes)
    query = f"-- what is there\n(SELECT id FROM {name})" if shop.prefix else f"/* all */ SELECT id FROM {name}"
    assert shop.rows(query=query) == [{"id": "1"}]


def test_a_function_that_writes_is_refused(tmp_path: Path) -> None:
    """The transaction is one that only reads, whatever a SELECT calls."""
    with database("postgresql", tmp_path) as (url, engine, prefix):
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SEQUENCE {prefix}numbers"))
        error = land_from(tmp_path, url, tables={"t": {"query": f"SELECT nextval('{prefix}numbers')"}})
    assert "cannot execute nextval() in a read-only transaction" in str(error)


def test_a_file_of_duckdb_is_only_read(tmp_path: Path) -> None:
    """Its rows are received; what writes is refused, and a missing file is not made."""
    file = tmp_path / "shop.duckdb"
    with duckdb.connect(file) as shop:
        shop.execute(
            "CREATE TABLE orders AS SELECT range AS id, TIMESTAMP '2026-01-01' + to_days(range) AS day FROM range(3)"
        )
    url, since = f"duckdb:///{file}", Window(since="2026-01-02")
    query = "SELECT id, day FROM orders WHERE day >= :since ORDER BY id"
    tool = SqlTool.model_validate({"source": "sql", "url": url, "tables": {"t": {"query": query, "cursor": "day"}}})
    before = file.read_bytes()
    landing = land(ConfiguredTable(lake=tmp_path / "lake", tool_name="shop", tool=tool, name="t"), since)
    writes = "WITH one AS (SELECT 1 AS id) INSERT INTO orders SELECT id, NULL FROM one"
    error = land_from(tmp_path, url, tables={"t": {"query": writes}})
    assert rows_of(landing) == [{"id": str(n), "day": f"2026-01-0{n + 1}T00:00:00"} for n in (1, 2)]
    assert "read-only mode" in str(error)
    assert file.read_bytes() == before
    land_from(tmp_path, f"duckdb:///{tmp_path}/none.duckdb", tables={"t": {"query": "SELECT 1"}})
    assert not (tmp_path / "none.duckdb").exists()


def test_sqlite_says_what_is_wrong(tmp_path: Path) -> None:
    """A text that is not UTF-8, a file that is missing and is not made, and a lock have their codes."""
    file = tmp_path / "shop 100%?.db"
    with closing(sqlite3.connect(file)) as shop, shop:
        shop.execute("CREATE TABLE t (a TEXT)")
        shop.execute("INSERT INTO t VALUES (CAST(x'ff41' AS TEXT))")
    place = f"sqlite:///{tmp_path}/shop 100%25%3F.db"
    tables = {"t": {"table": "t"}}
    error = land_from(tmp_path, place, tables=tables)
    assert (error.error_code, "Could not decode to UTF-8" in str(error)) == ("DATA_ERROR", True)
    error = land_from(tmp_path, f"sqlite:///{tmp_path}/none.db", tables=tables)
    assert (error.error_code, (tmp_path / "none.db").exists()) == ("SOURCE_UNAVAILABLE", False)
    with closing(sqlite3.connect(file, isolation_level=None)) as shop:
        shop.execute("BEGIN EXCLUSIVE")
        error = land_from(tmp_path, f"{place}?timeout=0", tables=tables)
    assert (error.error_code, "\n" in str(error)) == ("SOURCE_UNAVAILABLE", False)


def land_from(root: Path, url: str, **fields: Any) -> DataCollectionException:
    described = {"source": "sql", "url": url, "tables": {"t": {"query": "SELECT 1"}}, **fields}
    table = ConfiguredTable(lake=root, tool_name="db", tool=SqlTool.model_validate(described), name="t")
    with pytest.raises(DataCollectionException) as caught:
        land(table, Window())
    return caught.value


def test_a_database_that_is_away_is_a_network_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is retried, a wrong URL is not, and no password is shown."""
    monkeypatch.setenv("DB_PASSWORD", "hush-hush")
    away = {"url": "postgresql://me@127.0.0.1:9/test", "credential": {"env": "DB_PASSWORD"}}
    error = land_from(tmp_path, **away)
    assert (error.error_code, "hush" in str(error)) == ("NETWORK_ERROR", False)
    for url in ("nonsense", "what://x/y", "mysql+nodriver://x/y"):
        assert land_from(tmp_path, url).error_code == "CONFIGURATION_ERROR"


@pytest.mark.parametrize(
    ("sqlstate", "said", "code"),
    [
        ("28P01", 'password authentication failed for user "me"', "CONFIGURATION_ERROR"),
        ("28000", 'no pg_hba.conf entry for host "10.0.0.1", user "me"', "CONFIGURATION_ERROR"),
        ("53300", "sorry, too many clients already", "NETWORK_ERROR"),
        ("57P03", "the database system is starting up", "NETWORK_ERROR"),
    ],
)
def test_a_refused_password_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlstate: str, said: str, code: str
) -> None:
    """What PostgreSQL refuses for good is not retried; a busy server is retried."""
    monkeypatch.setenv("DB_PASSWORD", "hush-hush")
    with refusing_server(sqlstate, said) as port:
        url = f"postgresql://me@127.0.0.1:{port}/shop?sslmode=disable"
        error = land_from(tmp_path, url, credential={"env": "DB_PASSWORD"})
    assert error.error_code == code
    assert said in str(error)
    assert "hush" not in str(error)


@contextmanager
def refusing_server(sqlstate: str, said: str) -> Iterator[int]:
    """Yield the port of a server that answers each start-up message as PostgreSQL does when it refuses.

    https://www.postgresql.org/docs/current/protocol-message-formats.html, ErrorResponse.
    """
    fields = b"".join(kind + text.encode() + b"\0" for kind, text in ((b"S", "FATAL"), (b"V", "FATAL")))
    fields += b"C" + sqlstate.encode() + b"\0M" + said.encode() + b"\0\0"
    answer = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields

    def serve() -> None:
        with suppress(OSError):  # It is closed in the end.
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_user_or_database_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    """A real PostgreSQL says so, and it is not retried."""
    with database("postgresql", tmp_path) as (url, _, _):
        for wrong in (url.replace("postgres@", "nobody-here@"), url.replace("/test", "/no-such-database")):
            error = land_from(tmp_path, wrong)
            assert (error.error_code, "does not exist" in str(error)) == ("CONFIGURATION_ERROR", True)


def test_a_value_that_reads_like_a_refusal_is_a_data_error(tmp_path: Path) -> None:
    """What a database says of the value of a row is not taken for what it says of the user, or of its own name."""
    with database("postgresql", tmp_path) as (url, _, _):
        for value in ("the connection does not exist", "Access denied for user"):
            error = land_from(tmp_path, url, tables={"t": {"query": f"SELECT CAST('{value}' AS DATE)"}})
            assert (error.error_code, value in str(error)) == ("DATA_ERROR", True)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ((1045, "Access denied for user 'me'@'10.0.0.1'"), "CONFIGURATION_ERROR"),
        ((1049, "Unknown database 'shop'"), "CONFIGURATION_ERROR"),
        (("28000", "[28000] [Microsoft] Login failed for user 'me'. (18456)"), "CONFIGURATION_ERROR"),
        ((1366, "Incorrect value: 'Access denied for user' for column 'note' at row 1"), "NETWORK_ERROR"),
        ((2003, "Can't connect to MySQL server on 'shop'"), "NETWORK_ERROR"),
    ],
)
def test_other_drivers_are_known_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: tuple[object, ...], code: str
) -> None:
    """MySQL and SQL Server number their errors, and the numbers tell whether a retry can help."""

    def connect(*_: object, **__: object) -> None:
        raise psycopg.OperationalError(*said)

    monkeypatch.setattr(psycopg, "connect", connect)
    assert land_from(tmp_path, POSTGRESQL).error_code == code


def test_settings_that_contradict_are_refused() -> None:
    """A table or a query, and no password in the URL."""
    base = {"source": "sql", "url": POSTGRESQL}
    for fields, said in (
        ({"tables": {"t": {}}}, "must have one of the keys table and query"),
        ({"tables": {"t": {"query": "DELETE FROM t RETURNING a"}}}, "query must begin with SELECT or WITH"),
        ({"tables": {"t": {"query": "/* SELECT */ DROP TABLE t"}}}, "query must begin with SELECT or WITH"),
        (
            {"url": "postgresql://me:pw@h/d", "tables": {"t": {"table": "t"}}},
            "say in `credential` where the password is",
        ),
    ):
        with pytest.raises(ConfigurationError, match=said) as caught:
            SqlTool(**{**base, **fields})
        assert "pw" not in str(caught.value)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=5))
def test_a_watermark_never_skips_a_row(tmp_path: Path, rounds: list[list[int]]) -> None:
    """Rows that arrive in any order, at or above the last watermark, are all received by the next windows."""
    with database("sqlite", tmp_path) as (url, engine, prefix):
        shop = Shop(url, engine, prefix, tmp_path / "lake")
        shop.run("DROP TABLE IF EXISTS orders")
        shop.run("CREATE TABLE orders (id INTEGER, at INTEGER)")
        watermark: str | None = None
        seen, given_rows = set(), []
        for number, steps in enumerate(rounds):
            for step in steps:
                given_rows.append({"id": len(given_rows), "at": int(watermark or 0) + step})
                shop.run("INSERT INTO orders VALUES (:id, :at)", given_rows[-1])
            landing = shop.land(Window(name=str(number), since=watermark), cursor="at")
            found = rows_of(landing)
            seen |= {int(row["id"]) for row in found}
            watermark = max([*(row["at"] for row in found), watermark or "0"], key=int)
    assert seen == set(range(len(given_rows)))


@pytest.mark.chaos
def test_a_large_table_needs_little_memory(tmp_path: Path) -> None:
    """The rows of a large table are never all in memory: 300,000 take less than 60 MB more than a few."""
    code = (
        "import sys; from pathlib import Path\n"
        "from executor_adapter.config import SqlTool\n"
        "from executor_adapter.pipeline import ConfiguredTable, Window, land\n"
        "query = f'SELECT n, repeat(chr(120), 200) AS x FROM generate_series(1, {sys.argv[2]}) n'\n"
        f"tool = SqlTool(source='sql', url='{POSTGRESQL}', batch_rows=10000, tables={{'t': {{'query': query}}}})\n"
        "table = ConfiguredTable(lake=Path(sys.argv[1]), tool_name='db', tool=tool, name='t')\n"
        "print(land(table, Window()).rows)\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    peaks = []
    for count in (1000, 300_000):
        command = [sys.executable, "-c", code, str(tmp_path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        rows, peak = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak)
    assert (
        peaks[1] - peaks[0] < 60_000
    )  # 300,000 rows of 200 characters are 60 MB by themselves, and far more in Python.
