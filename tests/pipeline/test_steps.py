"""Steps are given whole windows and conserve rows: each goes on, is rejected or dropped, or becomes part of another."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_adapter import Job, JobExecutor
from executor_adapter.config import FilesTool, load_config
from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline import ConfiguredTable, configured_tables
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.lake.stored import ROW_GROUP
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.processing import process_window
from executor_adapter.pipeline.steps import MAX_REASONS, Processed, Spec, read_step
from executor_adapter.pipeline.text_rows import REJECTED
from tests.pipeline.lakes import write
from tests.waiting import PATIENCE

OWN = "tests.pipeline.own_steps"
COLUMNS = pa.schema([("id", pa.int64()), ("city", pa.string()), ("price", pa.float64())])
ORDERS = [
    {"id": 1, "city": "Rome", "price": 9.5},
    {"id": 0, "city": "Nowhere", "price": 5000.0},
    {"id": 3, "city": None, "price": 150.0},
    {"id": 1, "city": "Oslo", "price": 20.0},
    {"id": 5, "city": "Oslo", "price": None},
]


def orders(root: Path, **settings: Any) -> ConfiguredTable:
    table = {"file": "orders.csv"} | settings
    tool = FilesTool.model_validate({"source": "files", "directory": root, "tables": {"orders": table}})
    return ConfiguredTable(lake=root, tool_name="shop", tool=tool, name="orders")


def tables(root: Path) -> dict[str, LakeTable]:
    return dict(zip(("raw", "processed", "rejects"), orders(root).layers, strict=True))


def process(root: Path, steps: list[Spec], rows: list[dict[str, Any]] = ORDERS, **settings: Any) -> Processed:
    table = orders(root, steps=steps, **settings)
    if table.raw.find("w") is None:
        write(table.raw, "w", pa.Table.from_pylist(rows, schema=COLUMNS))
    return process_window(table, "w")


def apply(root: Path, *steps: Spec) -> list[dict[str, Any]]:
    """Return what the steps make of the orders."""
    process(root, list(steps))
    return tables(root)["processed"].read("w").to_pylist()


def test_pandas_is_imported_where_a_step_asks_for_it_alone(tmp_path: Path) -> None:
    """It takes half a second, and a process that applies steps of SQL has no use for it."""
    table = orders(tmp_path, steps=[{"sql": "FROM {rows} WHERE id > 0"}, {"deduplicate": {"key": "id"}}])
    write(table.raw, "w", pa.Table.from_pylist(ORDERS, schema=COLUMNS))
    (tmp_path / "table").write_bytes(pickle.dumps(table))
    code = (
        "import pickle, sys; from executor_adapter.pipeline import process_window; "
        "print(process_window(pickle.load(open(sys.argv[1], 'rb')), 'w').kept, 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "table")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.split() == ["3", "False"]


def rejected(root: Path) -> list[dict[str, Any]]:
    """The rejects of the window, which is only there where it has some."""
    table = tables(root)["rejects"]
    return table.read("w").to_pylist() if table.find("w") else []


def ids(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["id"] for row in rows]


def reasons(root: Path) -> dict[int, str]:
    return {row["row"]: row["reason"] for row in rejected(root)}


# --- one step ---


def test_check_rejects_with_every_reason(tmp_path: Path) -> None:
    """The rows that fail are rejected, each with all that is wrong; the others have the types of the schema."""
    assert ids(apply(tmp_path, {"check": f"{OWN}:ORDERS"})) == [1, 3, 1]
    assert reasons(tmp_path) == {
        2: "is sent nowhere; id: 0 is not positive; price: 5000.0 is too much",
        5: "price: is empty",
    }


def test_columns_that_a_check_does_not_name_stay(tmp_path: Path) -> None:
    """As pandera has it: they stay, and a strict schema refuses them."""
    assert [set(row) for row in apply(tmp_path, {"check": f"{OWN}:SOME"})] == [{"id", "city", "price"}] * 4
    with pytest.raises(DataProcessingException, match=r"check: .*column_in_schema"):
        apply(tmp_path, {"check": f"{OWN}:STRICT"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("1 AS id, 'x' AS city", "check: .*column_in_dataframe: price"),
        ("2.5::DOUBLE AS id, 'x' AS city, 1.0::DOUBLE AS price", "id: .* cannot become Int64"),
        ("'x' AS id, 'x' AS city, 1.0::DOUBLE AS price", "id: .* cannot become Int64"),
        (f"1 AS id, 'x' AS city, {2**53 + 1}::BIGINT AS price", "price: .* cannot become Float64: Integer value"),
        (f"1 AS id, 'x' AS city, {2**53 + 1}.5::DECIMAL(20, 2) AS price", "Float64: a value would change"),
    ],
)
def test_a_check_changes_no_value(tmp_path: Path, columns: str, message: str) -> None:
    """Rows whose types are not those of the schema are an error, and never rounded."""
    with pytest.raises(DataProcessingException, match=message) as caught:
        apply(tmp_path, {"sql": f"SELECT {columns}, _row FROM {{rows}} LIMIT 1"}, {"check": f"{OWN}:ORDERS"})
    assert caught.value.error_code == "DATA_ERROR"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [(0, 5000.0), (3, 150.0), (1, 20.0), (5, None)]),
        ({"keep": "first"}, [(1, 9.5), (0, 5000.0), (3, 150.0), (5, None)]),
        ({"order_by": "price", "keep": "first"}, [(1, 9.5), (0, 5000.0), (3, 150.0), (5, None)]),
        ({"key": "city", "order_by": "price"}, [(1, 9.5), (0, 5000.0), (1, 20.0)]),
        ({"key": "city", "order_by": "price", "keep": "first"}, [(1, 9.5), (0, 5000.0), (1, 20.0)]),
    ],
)
def test_of_rows_with_the_same_key_one_stays(tmp_path: Path, options: dict[str, Any], kept: list[Any]) -> None:
    """The last row stays, or the one with the highest or lowest value; a value beats none."""
    rows = apply(tmp_path, {"deduplicate": {"key": "id", **options}})
    assert sorted(((row["id"], row["price"]) for row in rows), key=str) == sorted(kept, key=str)
    done = process(tmp_path, [{"deduplicate": {"key": "id", "reject": True, **options}}])
    found = [reason for reason in reasons(tmp_path).values() if reason != "city: is empty"]
    assert found == [f"another row has this {options.get('key', 'id')}"]
    assert done.given == done.kept + done.rejected


@pytest.mark.parametrize("options", [{"key": "city"}, {"key": "city", "reject": True}, {"key": ["id", "city"]}])
def test_rows_without_a_value_in_the_key_are_rejected(tmp_path: Path, options: dict[str, Any]) -> None:
    """Nothing tells two rows without a value in their key apart: none of them stays or goes without a word."""
    rows = [*ORDERS, {"id": 8, "city": None, "price": 7.0}]
    done = process(tmp_path, [{"deduplicate": {**options, "order_by": "id"}}], rows)
    reason = "id or city: is empty" if "id" in options["key"] else "city: is empty"
    assert [each["row"] for each in rejected(tmp_path) if each["reason"] == reason] == [3, 6]
    assert done.given == done.kept + done.rejected + done.drops.total()
    assert {each["city"] for each in tables(tmp_path)["processed"].read("w").to_pylist()} == {"Rome", "Nowhere", "Oslo"}


@pytest.mark.parametrize("reject", [False, True])
def test_a_deduplication_keeps_columns_of_any_name(tmp_path: Path, reject: bool) -> None:
    """A column may be called as one that the step uses itself."""
    renamed = {"sql": "SELECT id, city AS is_empty, _row FROM {rows}"}
    rows = apply(tmp_path, renamed, {"deduplicate": {"key": "is_empty", "reject": reject}})
    assert [tuple(row.items()) for row in rows] == [
        (("id", 1), ("is_empty", "Rome")),
        (("id", 0), ("is_empty", "Nowhere")),
        (("id", 5), ("is_empty", "Oslo")),
    ]


@pytest.mark.parametrize("reject", [False, True])
def test_rows_keep_their_order_and_each_is_in_one_batch(tmp_path: Path, reject: bool) -> None:
    """Several threads join the rows of a large window: a function that is called for parts of it gets each row once."""
    names = LakeTable(root=tmp_path, layer="processed", tool="shop", name="names")
    write(names, "w", pa.table({"id": range(100), "name": [f"name {each}" for each in range(100)]}))
    number = 2 * ROW_GROUP
    rows = pa.table({"id": [each % (number - 100) for each in range(number)]})
    steps: list[Spec] = [
        {"deduplicate": {"key": "id", "keep": "first", "reject": reject}},
        {"enrich": {"table": "shop.names", "on": "id", "columns": "name"}},
        {"function": f"{OWN}:same", "batch": 150_000},
    ]
    table = orders(tmp_path, steps=steps)
    write(table.raw, "w", rows)
    assert process_window(table, "w").kept == number - 100
    assert table.processed.read("w")["id"].to_pylist() == list(range(number - 100))


def test_enrich_joins_columns_of_another_table(tmp_path: Path) -> None:
    """They come by the key, null where there is no partner; a null has none, and no row becomes two."""
    cities = LakeTable(root=tmp_path, layer="processed", tool="shop", name="cities")
    rows: list[dict[str, Any]] = [{"name": "Rome", "country": "IT"}, {"name": None, "country": "??"}]
    write(cities, "w", pa.Table.from_pylist(rows))
    spec = {"table": "shop.cities", "on": {"city": "name"}, "columns": {"country": "land"}}
    found = apply(tmp_path, {"enrich": spec})
    assert sorted(row["land"] or "-" for row in found) == ["-", "-", "-", "-", "IT"]
    for change, message in (
        ({"on": {"id": "name"}}, "id is BIGINT, and name there VARCHAR: declare one type"),
        ({"on": {"city": "town"}}, 'does not have a column named "town"'),
        ({"columns": {"country": "City"}}, "the rows have a column City: give it another name"),
        ({"table": "shop.towns"}, "shop.towns has no processed rows: process that table first"),
    ):
        with pytest.raises(DataProcessingException, match=message):
            apply(tmp_path, {"enrich": spec | change})
    write(cities, "v", pa.Table.from_pylist(rows))
    with pytest.raises(DataProcessingException, match="cities has several rows with the same name"):
        apply(tmp_path, {"enrich": spec})


def test_a_change_of_a_table_that_is_read_makes_its_readers_anew(tmp_path: Path) -> None:
    """The version of what a step reads is known: a window is processed again when the other table has changed."""
    cities = LakeTable(root=tmp_path, layer="processed", tool="shop", name="cities")
    steps: list[Spec] = [
        {"enrich": {"table": "shop.cities", "on": {"city": "name"}, "columns": "country"}},
        {"sql": "SELECT r.*, (SELECT count(*) FROM {table:shop.cities}) AS cities FROM {rows} r"},
    ]
    for country in ("IT", "Italia"):
        write(cities, "w", pa.table({"name": ["Rome"], "country": [country]}), fingerprint=country)
        assert process(tmp_path, steps).status == "processed"
        assert process(tmp_path, steps).status == "already_processed"
        rome = next(row for row in tables(tmp_path)["processed"].read("w").to_pylist() if row["city"] == "Rome")
        assert (rome["country"], rome["cities"]) == (country, 1)


def test_a_change_of_a_functions_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are processed again by another code of a rule, or of a schema, as they are by other SQL."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "own_rule.py"
    for limit in (100, 10):
        file.write_text(f"import pandas as pd\ndef cheap(rows: pd.DataFrame):\n    return rows[rows.price < {limit}]\n")
        sys.modules.pop("own_rule", None)
        importlib.invalidate_caches()
        done = process(tmp_path, ["own_rule:cheap"])
        assert (done.status, done.kept) == ("processed", 2 if limit == 100 else 1)
        assert process(tmp_path, ["own_rule:cheap"]).status == "already_processed"


def test_a_function_says_which_tables_it_reads(tmp_path: Path) -> None:
    """With `reads` it is called again when one of them has changed; the function is not given it."""
    cities = LakeTable(root=tmp_path, layer="processed", tool="shop", name="cities")
    steps: list[Spec] = [{"function": f"{OWN}:count_rows", "reads": "shop.cities"}]
    for name in ("Rome", "Oslo"):
        write(cities, "w", pa.table({"name": [name]}), fingerprint=name)
        assert process(tmp_path, steps).status == "processed"
        assert process(tmp_path, steps).status == "already_processed"
    assert orders(tmp_path, steps=steps).reads == {"shop.cities"}


def test_sql_is_a_step(tmp_path: Path) -> None:
    """It selects from {rows}, rejects by `_reason`, comes from a file or stands in the configuration."""
    file = tmp_path / "clean.sql"
    file.write_text(
        "SELECT * REPLACE (upper(city) AS city), CASE WHEN id = 0 THEN 'id is 0' END AS _reason FROM {rows}\n"
        "WHERE price IS NOT NULL;\n"
    )
    assert [row["city"] for row in apply(tmp_path, {"sql": str(file)})] == ["ROME", None, "OSLO"]
    assert reasons(tmp_path) == {2: "id is 0"}
    file.write_text("SELECT * FROM {rows}")
    assert process(tmp_path, [{"sql": str(file)}]).kept == 5


@pytest.mark.parametrize(
    ("sql", "code", "message"),
    [
        ("SELECT nothing FROM {rows}", "CONFIGURATION_ERROR", '"nothing" not found'),
        ("SELEC 1", "CONFIGURATION_ERROR", "syntax error"),
        ("SELECT id, 'no' AS _reason FROM {rows}", "CONFIGURATION_ERROR", "step sql: gives _reason without _row"),
        ("SELECT CAST(city AS INTEGER) AS x, _row FROM {rows}", "DATA_ERROR", "Could not convert string 'Rome'"),
    ],
)
def test_wrong_sql_is_told_in_one_line(tmp_path: Path, sql: str, code: str, message: str) -> None:
    """With the name of the step; it is not retried."""
    with pytest.raises(DataProcessingException, match=message) as caught:
        apply(tmp_path, {"sql": sql})
    assert (caught.value.error_code, "\n" in str(caught.value)) == (code, False)


@pytest.mark.parametrize("end", [";", " ;\n", " -- all", "; -- all of them\n-- of the window\n", "-- all;"])
def test_sql_may_end_with_a_comment(tmp_path: Path, end: str) -> None:
    """As files of SQL do."""
    assert len(apply(tmp_path, {"sql": f"FROM {{rows}}{end}"})) == 5


def test_a_sum_of_integers_is_exact(tmp_path: Path) -> None:
    """DuckDB sums them in 128 bits, which Parquet does not have."""
    sums = f"SELECT sum(id) + {2**53 + 1}::BIGINT AS n, sum(price) AS price FROM {{rows}} WHERE id = 1"
    assert apply(tmp_path, {"sql": sums}) == [{"n": 2**53 + 3, "price": 29.5}]


# --- steps of one's own ---


def test_a_step_gets_the_whole_window(tmp_path: Path) -> None:
    """All rows at once, however many: a sort is one of all, and so is what counts them."""
    rows = [{"id": number % 1500, "city": "x", "price": float(-number)} for number in range(3000)]
    done = process(tmp_path, [f"{OWN}:sort_and_number", f"{OWN}:count_rows"], rows)
    assert done.kept == 3000
    found = tables(tmp_path)["processed"].read("w")
    assert found["rank"].to_pylist() == list(range(1, 3001))
    assert set(found["size"].to_pylist()) == {3000}
    assert process(tmp_path, [{"function": f"{OWN}:count_rows", "batch": 1000}]).kept == 3000
    assert set(tables(tmp_path)["processed"].read("w")["size"].to_pylist()) == {1000}


def test_each_step_has_its_own_number_in_the_account(tmp_path: Path) -> None:
    """Also where several are of one kind, or one function."""
    done = process(
        tmp_path, [{"sql": "FROM {rows} WHERE id <> 0"}, f"{OWN}:keep_cheap", {"sql": "FROM {rows} LIMIT 1"}]
    )
    assert done.drops == {"sql": 1, f"{OWN}:keep_cheap": 2, "sql 2": 1}


@pytest.mark.parametrize("name", ["with_pyarrow", "with_duckdb"])
def test_a_step_is_given_what_its_annotation_says(tmp_path: Path, name: str) -> None:
    """DataFrames of polars, tables of pyarrow and relations of DuckDB; without an annotation, pandas.

    It may return columns by their names too.
    """
    assert ids(apply(tmp_path, f"{OWN}:{name}")) == [0, 3, 1]
    assert process(tmp_path, [f"{OWN}:{name}", f"{OWN}:with_polars", f"{OWN}:with_columns"]).drops.total() == 2


def test_options_are_given_by_name(tmp_path: Path) -> None:
    """What a function leaves out is dropped by it; what has a `_reason` is rejected with it."""
    done = process(tmp_path, [f"{OWN}:keep_cheap"])
    assert done.reasons == ((f"dropped by {OWN}:keep_cheap", 3),)
    assert ids(apply(tmp_path, {"function": f"{OWN}:below", "column": "price", "limit": 100})) == [1, 1, 5]
    assert reasons(tmp_path) == dict.fromkeys((2, 3), "price is not below 100")


def test_a_reason_is_text_and_an_empty_one_is_none(tmp_path: Path) -> None:
    """As numpy's `where` gives it; true and false say no reason, and are refused."""
    reason = "CASE WHEN id = 0 THEN 'is zero' ELSE '' END AS _reason"
    assert 0 not in ids(apply(tmp_path, {"sql": f"SELECT *, {reason} FROM {{rows}}"}))
    assert set(reasons(tmp_path).values()) == {"is zero"}
    with pytest.raises(DataProcessingException, match="gives _reason as true or false: give the reason as text"):
        apply(tmp_path, {"sql": "SELECT *, id = 0 AS _reason FROM {rows}"})


def test_rows_that_become_others_are_rows_in_and_rows_out(tmp_path: Path) -> None:
    """A step without `_row` in what it returns, as one that sums, is accounted for by its number of rows."""
    done = process(tmp_path, [f"{OWN}:keep_cheap", f"{OWN}:sums_by_city"])
    assert (done.given, done.kept, done.drops.total(), done.merged) == (5, 2, 3, 0)
    done = process(tmp_path, [{"sql": "SELECT count(*) AS n FROM {rows}"}, {"sql": "FROM {rows} WHERE n > 9"}])
    assert (done.given, done.kept, done.drops.total(), done.merged) == (5, 0, 1, 4)
    done = process(tmp_path, [{"sql": "SELECT id, unnest(range(3)) AS n FROM {rows}"}])
    assert (done.given, done.kept, done.drops.total(), done.merged) == (5, 15, 0, -10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("renumber", "or one that it was not given: leave out _row"),
        ("double", "returned a row twice"),
    ],
)
def test_a_step_that_loses_count_is_told(tmp_path: Path, name: str, message: str) -> None:
    """Rows that appear or double without a word are an error that is not retried."""
    with pytest.raises(DataProcessingException, match=message) as caught:
        apply(tmp_path, f"{OWN}:{name}")
    assert caught.value.error_code == "CONFIGURATION_ERROR"


def test_a_mistake_in_a_step_is_not_retried(tmp_path: Path) -> None:
    """What a step raises is told with its name; only what may pass, such as a connection, is retried."""
    with pytest.raises(DataProcessingException) as caught:
        apply(tmp_path, f"{OWN}:misspell")
    assert caught.value.error_code == "DATA_ERROR"
    assert str(caught.value) == f"step {OWN}:misspell: raised KeyError: 'prise'"
    for name in ("return_number", "return_nothing", "return_a_plan"):
        with pytest.raises(
            DataProcessingException, match=rf"{name}: raised TypeError: it returned \w+: return a table"
        ):
            apply(tmp_path, f"{OWN}:{name}")
    with pytest.raises(ConnectionError, match="cut off"):
        apply(tmp_path, f"{OWN}:fail")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deduplicat", "'deduplicat' is not a step: did you mean deduplicate"),
        ({"deduplicate": {"key": []}}, "deduplicate: key: Value should have at least 1 item"),
        ({"deduplicate": {"keys": "id"}}, "deduplicate: key: Field required; keys: Extra inputs are not permitted"),
        ({"deduplicate": {"key": "id", "keep": "newest"}}, "keep: Input should be 'first' or 'last'"),
        ({"enrich": {"table": "processed/a/b", "on": "a", "columns": "b"}}, "enrich: table: String should match"),
        ({"sql": "nothing.sql"}, "No such file or directory: 'nothing.sql'"),
    ],
)
def test_an_unknown_step_is_refused(spec: Spec, message: str) -> None:
    """The message has the nearest name, or what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        read_step(spec)


def test_on_of_yaml_is_understood(tmp_path: Path) -> None:
    """The configuration has the key `on` as it is written, and not as true."""
    enrich = "{enrich: {table: a.b, on: city, columns: x}}"
    tools = f"{{shop: {{source: files, directory: ., tables: {{orders: {{file: a.csv, steps: [{enrich}]}}}}}}}}"
    (tmp_path / "config.yaml").write_text(f"tools: {tools}")
    (table,) = configured_tables(load_config(tmp_path / "config.yaml"), "shop")
    assert table.read_steps[0].options.on == {"city": "city"}


# --- windows ---

STEPS: list[Spec] = [
    {"check": f"{OWN}:ORDERS"},
    {"deduplicate": {"key": "id", "keep": "first"}},
    {"sql": "SELECT * REPLACE (upper(city) AS city) FROM {rows}"},
    f"{OWN}:keep_cheap",
]


def test_a_window_is_processed(tmp_path: Path) -> None:
    """Rows and rejects are in the lake; each row is accounted for."""
    lake = tables(tmp_path)
    done = process(tmp_path, STEPS)
    assert (done.status, done.given, done.kept, done.rejected, done.drops.total()) == ("processed", 5, 1, 2, 2)
    assert lake["processed"].read("w").to_pylist() == [{"id": 1, "city": "ROME", "price": 9.5}]
    rejects = lake["rejects"].read("w")
    assert rejects.schema == REJECTED
    found = {row["row"]: (row["step"], json.loads(row["text"])) for row in rejects.to_pylist()}
    assert found == {2: ("check", ORDERS[1]), 5: ("check", ORDERS[4])}


def test_a_window_is_processed_once(tmp_path: Path) -> None:
    """It is processed again when its rows or the steps change, and not otherwise."""
    assert process(tmp_path, STEPS).status == "processed"
    assert process(tmp_path, STEPS).status == "already_processed"
    assert process(tmp_path, STEPS[1:]).status == "processed"
    raw = tables(tmp_path)["raw"]
    write(raw, "w", raw.read("w").slice(1), fingerprint="v2")
    assert process(tmp_path, STEPS[1:]).given == 4


def test_other_types_of_a_steps_output_make_new_windows(tmp_path: Path) -> None:
    """What is made of rows can be made again: a column may become text, and is no error."""
    assert apply(tmp_path, {"sql": "SELECT 1 AS n, _row FROM {rows}"})[0] == {"n": 1}
    assert apply(tmp_path, {"sql": "SELECT 'x' AS n, _row FROM {rows}"})[0] == {"n": "x"}


def test_an_empty_window_has_the_columns(tmp_path: Path) -> None:
    """A window without rows gives windows without rows."""
    done = process(tmp_path, STEPS, rows=[])
    assert (done.given, done.kept) == (0, 0)
    assert tables(tmp_path)["processed"].read("w").column_names == ["id", "city", "price"]


def test_a_column_without_values_is_written(tmp_path: Path) -> None:
    """A column that a step adds may have no value at all."""
    assert [row["note"] for row in apply(tmp_path, f"{OWN}:none_of_it")] == [None] * 5


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither rows nor rejects are there after an error."""
    process(tmp_path, STEPS)
    before = tables(tmp_path)["processed"].find("w")
    with pytest.raises(DataProcessingException):
        process(tmp_path, [*STEPS, f"{OWN}:double"])
    assert tables(tmp_path)["processed"].find("w") == before
    assert list((tmp_path / ".writing").iterdir()) == []


def test_windows_are_processed_in_the_process_pool(tmp_path: Path) -> None:
    """Everything that a job is given, and what it returns, goes to a worker process and back."""
    table = orders(tmp_path, steps=STEPS)
    write(table.raw, "w", pa.Table.from_pylist(ORDERS, schema=COLUMNS))
    with JobExecutor(1) as executor:
        job = Job(function=process_window, args=(table, "w"), pool="process")
        done = executor.run(job)
    assert (done.given, done.kept, done.rejected, done.drops.total()) == (5, 1, 2, 2)


# --- properties ---

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(-1, 6),
            "city": st.sampled_from(["Rome", "rome ", "Nowhere", "", None]),
            "price": st.none() | st.floats(0, 1500, allow_nan=False),
        }
    ),
    max_size=25,
)


@given(rows=ROWS, order=st.permutations(STEPS))
@settings(max_examples=12)
def test_rows_are_conserved(rows: list[dict[str, Any]], order: list[Spec]) -> None:
    """Of any rows, through the steps in any order, each row goes on, is rejected or dropped once."""
    with TemporaryDirectory() as folder:
        done = process(Path(folder), order, rows)
        assert done.given == len(rows) == done.kept + done.rejected + done.drops.total()
        lake = tables(Path(folder))
        assert lake["processed"].read("w").num_rows == done.kept
        assert len(rejected(Path(folder))) == done.rejected
        numbered = sum(number for _, number in done.reasons)
        rest = done.rejected + done.drops.total() - numbered
        assert rest == 0 or (rest > 0 and len(done.reasons) == MAX_REASONS)
        numbers = Counter(row["row"] for row in rejected(Path(folder)))
        assert set(numbers.values()) <= {1}


@pytest.mark.parametrize("batch", [0, -1, 2.5, "100", True])
def test_a_batch_that_is_no_number_of_rows_is_refused(batch: Any) -> None:
    """It is refused when the configuration is read, and not in a job."""
    with pytest.raises(ConfigurationError, match=r"tools\.steps: function: batch: Input should be"):
        read_step({"function": "my_rules:price", "batch": batch}, "tools.steps")


def test_a_window_is_processed_where_files_have_one_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may know no hard links, and the system refuses them for files of other users."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert process(tmp_path, []).kept == len(ORDERS)


@pytest.mark.parametrize("reference", ["json", "json.dumps", "json:", ":dumps", "json:nothing"])
def test_a_reference_is_a_module_and_what_is_in_it(reference: str) -> None:
    """Nothing else is taken for one, such as a module alone."""
    with pytest.raises(ConfigurationError, match=r"cannot be imported.*must be module:name"):
        import_object(reference, "steps")


def test_what_a_module_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is right, and a package that its module imports is what is missing."""
    (tmp_path / "needy_rules.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"No module named 'no_such_package': install it$"):
        import_object("needy_rules:check", "steps")
