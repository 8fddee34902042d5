"""Stages conserve rows: each one goes on, is rejected or dropped with a reason, in whatever batches they come."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_adapter import Job, JobExecutor
from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.stages.aggregate import Aggregate
from executor_adapter.pipeline.stages.base import NamedStage, StageOutput
from executor_adapter.pipeline.stages.loading import Spec, load_stage, stage_names
from executor_adapter.pipeline.stages.normalise import snake_case
from executor_adapter.pipeline.stages.run import MAX_LOGGED_REASONS, STAGE_REJECTS, Processed, process_window
from tests.pipeline.lakes import write

OWN = "tests.pipeline.own_stages"
ORDERS = [
    {"id": 1, "city": "Rome", "price": 9.5},
    {"id": 0, "city": "Nowhere", "price": 5000.0},
    {"id": 3, "city": None, "price": 150.0},
    {"id": 1, "city": "Oslo", "price": 20.0},
    {"id": 5, "city": "Oslo", "price": None},
]


def frame(rows: list[dict[str, Any]], first: int = 1) -> pd.DataFrame:
    typed = pa.Table.from_pylist(rows).to_pandas(types_mapper=pd.ArrowDtype)
    return typed.set_axis(pd.RangeIndex(first, first + len(rows)))


def apply(spec: Spec, rows: list[dict[str, Any]] = ORDERS) -> StageOutput:
    return load_stage(spec)(frame(rows))


def tables(root: Path) -> dict[str, LakeTable]:
    layers = ("raw", "processed", "rejects", "aggregates")
    return {layer: LakeTable(root=root, layer=layer, tool="shop", name="orders") for layer in layers}


def process(root: Path, stages: list[Spec], rows: list[dict[str, Any]] = ORDERS, **given: Any) -> Processed:
    lake = tables(root)
    if lake["raw"].find("w") is None:
        columns = pa.schema([("id", pa.int64()), ("city", pa.string()), ("price", pa.float64())])
        write(lake["raw"], "w", pa.Table.from_pylist(rows, schema=columns))
    return process_window(lake["raw"], "w", stages=stages, target=lake["processed"], rejects=lake["rejects"], **given)


# --- one stage ---


def test_validate_rejects_with_every_reason() -> None:
    """The rows that fail are rejected, each with all that is wrong; the others have the types of the schema."""
    output = apply({"stage": "validate", "schema": f"{OWN}:ORDERS"})
    assert output.rejected.to_dict() == {
        2: "is sent nowhere; id: 0 is not positive; price: 5000.0 is too much",
        5: "price: is empty",
    }
    assert output.rows["id"].tolist() == [1, 3, 1]
    assert str(output.rows.dtypes["id"]) == "Int64"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "city": "x"}], "validate: missing columns: price: the columns are id, city"),
        ([{"id": 2.5, "city": "x", "price": 1.0}], "id: .* cannot become Int64"),
        ([{"id": "x", "city": "x", "price": 1.0}], "id: .* cannot become Int64"),
        ([{"id": 1, "city": "x", "price": 2**53 + 1}], "price: Float64 cannot hold"),
    ],
)
def test_validate_changes_no_value(rows: list[dict[str, Any]], message: str) -> None:
    """Rows whose types are not those of the schema are an error, and never rounded."""
    with pytest.raises(DataProcessingException, match=message) as caught:
        apply({"stage": "validate", "schema": f"{OWN}:ORDERS"}, rows)
    assert caught.value.error_code == "DATA_ERROR"


def test_normalise_brings_names_texts_and_zones_into_one_form() -> None:
    """Names, spaces, case, empty texts and zones; the number of rows stays."""
    noon = datetime(2013, 7, 1, 12, tzinfo=UTC)
    rows = [{"Customer Name": "  Ann  Lee ", "VATNumber": "de 1", "x": "", "sentAt": noon, "old": 1}]
    options: dict[str, Any] = {
        "names": "snake_case",
        "rename": {"x": "note"},
        "strip": ["customer_name"],
        "case": {"vat_number": "upper", "customer_name": "lower"},
        "empty_is_null": ["note"],
        "zones": {"sent_at": "America/New_York"},
        "drop": ["old"],
    }
    found = apply({"stage": "normalise", **options}, rows).rows
    assert list(found.columns) == ["customer_name", "vat_number", "note", "sent_at"]
    assert found["customer_name"].tolist() == ["ann lee"]
    assert found["vat_number"].tolist() == ["DE 1"]
    assert found["note"].isna().all()
    assert str(found["sent_at"].iloc[0]) == "2013-07-01 08:00:00-04:00"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"a": "b", "b": "c"}}, "'b' is an old and a new name"),
        ({"names": "snake_case", "rename": {"a": "B"}}, "'B' is not in snake case: write 'b'"),
        ({"case": {"a": "title"}}, "'title' is not allowed: must be one of lower, upper, casefold"),
        ({"zones": {"a": "Berlin"}}, "'Berlin' is not the name of a zone"),
        ({"cases": {}}, "unexpected keyword argument 'cases': its options are names, rename"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    """A mistake in the options is an error of the configuration, before any row is read."""
    with pytest.raises(ConfigurationError, match=message):
        load_stage({"stage": "normalise", **options})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"stage": "normalise", "strip": ["id"]}, "id is int64.* and not text"),
        (
            {"stage": "normalise", "case": {"town": "lower"}},
            "normalise: there is no column town: the columns are id, city",
        ),
        ({"stage": "normalise", "rename": {"city": "id"}}, "two columns would be called 'id'"),
        ({"stage": "normalise", "zones": {"city": "UTC"}}, "city is string.* and not a moment"),
        ({"stage": "deduplicate", "key": "number"}, "deduplicate: there is no column number"),
    ],
)
def test_columns_that_do_not_fit_are_data_errors(spec: Spec, message: str) -> None:
    """They are named, and not retried."""
    with pytest.raises(DataProcessingException, match=message) as caught:
        apply(spec)
    assert caught.value.error_code == "DATA_ERROR"


@pytest.mark.parametrize("reject", [False, True])
def test_deduplicate_lets_each_key_pass_once_in_all_batches(reject: bool) -> None:
    """The first row goes on, the others are dropped or rejected, also in later batches; nulls are equal."""
    stage = load_stage({"stage": "deduplicate", "key": ["id"], "reject": reject})
    rows: list[dict[str, Any]] = [{"id": 1}, {"id": None}, {"id": 1}, {"id": 2}]
    first, second = stage(frame(rows)), stage(frame(rows, first=5))
    assert (list(first.rows.index), len(second.rows)) == ([1, 2, 4], 0)
    reasons = first.rejected if reject else first.dropped
    assert reasons.to_dict() == {3: "another row has this id"}
    stage = load_stage({"stage": "deduplicate", "key": ["id"], "reject": reject})
    batches = [frame([{"id": 1}, {"id": None}]), frame([{"id": 2}, {"id": None}], first=3), frame([{"id": 1}], first=5)]
    assert [list(stage(each).rows.index) for each in batches] == [[1, 2], [3], []]


def test_enrich_joins_columns_of_another_table(tmp_path: Path) -> None:
    """They come by the key, null where there is no partner; a null has none, and no row becomes two."""
    cities = LakeTable(root=tmp_path, layer="processed", tool="shop", name="cities")
    rows: list[dict[str, Any]] = [{"name": "Rome", "country": "IT"}, {"name": None, "country": "??"}]
    write(cities, "w", pa.Table.from_pylist(rows))
    spec = {"stage": "enrich", "table": "processed/shop/cities", "on": {"city": "name"}, "columns": {"country": "land"}}
    output = load_stage(spec, tmp_path)(frame(ORDERS))
    assert output.rows["land"].fillna("-").tolist() == ["IT", "-", "-", "-", "-"]
    assert list(output.rows.index) == [1, 2, 3, 4, 5]
    rejecting = load_stage(spec | {"missing": "reject"}, tmp_path)(frame(ORDERS))
    assert (list(rejecting.rows.index), set(rejecting.rejected)) == ([1], {"no partner by city in cities"})
    with pytest.raises(DataProcessingException, match="there is a column price already"):
        load_stage(spec | {"columns": {"country": "price"}}, tmp_path)(frame(ORDERS))
    with pytest.raises(DataProcessingException, match="id is int64 here and string there"):
        load_stage(spec | {"on": {"id": "name"}}, tmp_path)(frame(ORDERS))
    with pytest.raises(DataProcessingException, match="has no column town: it has name, country, window"):
        load_stage(spec | {"on": {"city": "town"}}, tmp_path)(frame(ORDERS))
    write(cities, "v", pa.Table.from_pylist(rows))
    with pytest.raises(DataProcessingException, match="has several rows with"):
        load_stage(spec, tmp_path)(frame(ORDERS))


# --- stages of one's own ---


def test_a_function_is_a_stage() -> None:
    """What it leaves out is counted as dropped by it; with options, a function returns the stage."""
    output = apply(f"{OWN}:keep_cheap")
    assert output.rows["id"].tolist() == [1, 1]
    assert set(output.dropped) == {f"dropped by {OWN}:keep_cheap"}
    output = apply({"stage": f"{OWN}:with_limit", "column": "price", "limit": 100})
    assert output.rejected.to_dict() == dict.fromkeys((2, 3), "price is not below 100")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lose_index", "returned 1 rows that it was not given: keep the index"),
        ("double", "returned a row twice"),
        ("lose_silently", "returned 1 of 5 rows: say of the others why"),
        ("return_number", "returned a int: return a DataFrame"),
    ],
)
def test_a_stage_that_loses_count_is_told(name: str, message: str) -> None:
    """Rows that appear, double or disappear without a word are an error that is not retried."""
    with pytest.raises(DataProcessingException, match=message) as caught:
        apply(f"{OWN}:{name}")
    assert caught.value.error_code == "CONFIGURATION_ERROR"


def test_a_mistake_in_a_stage_is_not_retried() -> None:
    """What a stage raises is told with its name and line; only what may pass, such as a connection, is retried."""
    with pytest.raises(DataProcessingException) as caught:
        apply(f"{OWN}:misspell")
    assert caught.value.error_code == "DATA_ERROR"
    assert re.fullmatch(
        rf"stage {OWN}:misspell raised KeyError: 'prise' \(.*/own_stages\.py, line \d+\)", str(caught.value)
    )
    assert isinstance(caught.value.__cause__, KeyError)
    for failure in (ConnectionError("cut off"), ConfigurationError("x: wrong"), RuntimeError("unknown")):

        def fail(rows: pd.DataFrame, failure: Exception = failure) -> pd.DataFrame:
            raise failure

        with pytest.raises(type(failure)) as raised:
            NamedStage("fail", fail)(pd.DataFrame({"id": [1]}))
        assert raised.value is failure


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("validat", "'validat' is not allowed: did you mean validate. must be one of deduplicate, enrich"),
        (f"{OWN}:nothing", "cannot be imported: AttributeError"),
        ("no_such_module:x", "cannot be imported: ModuleNotFoundError"),
        ({"name": "validate"}, "must be a name, or a mapping with the key stage"),
        ({"stage": "deduplicate", "key": []}, "must be at least one column"),
        ({"stage": "enrich", "table": "x", "on": "a", "columns": "b", "missing": "skip"}, "'skip' is not allowed"),
    ],
)
def test_an_unknown_stage_is_refused(spec: Spec, message: str) -> None:
    """The message has the nearest name, or why it cannot be imported."""
    with pytest.raises(ConfigurationError, match=message):
        load_stage(spec)


def test_installed_packages_offer_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group names a function that takes the options."""
    info = tmp_path / "shop_stages-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-stages\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[executor_adapter.stages]\nlimit = {OWN}:with_limit\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "limit" in stage_names()
    assert len(apply({"stage": "limit", "column": "price", "limit": 10}).rejected) == 3


# --- windows ---

STAGES: list[Spec] = [
    {"stage": "validate", "schema": f"{OWN}:ORDERS"},
    {"stage": "deduplicate", "key": "id"},
    {"stage": "normalise", "case": {"city": "upper"}},
    f"{OWN}:keep_cheap",
]


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_a_window_is_processed(tmp_path: Path, batch_size: int) -> None:
    """Rows, rejects and measures are in the lake, whatever the size of the batches; each row is accounted for."""
    lake = tables(tmp_path)
    aggregate = Aggregate(by=["city"], measures={"orders": ("id", "count"), "mean": ("price", "mean")})
    given_to = {"aggregate": aggregate, "aggregates": lake["aggregates"], "batch_size": batch_size}
    done = process(tmp_path, STAGES, **given_to)
    assert (done.status, done.given, done.kept, done.rejected, done.dropped) == ("processed", 5, 1, 2, 2)
    assert lake["processed"].read("w").to_pylist() == [{"id": 1, "city": "ROME", "price": 9.5}]
    rejects = lake["rejects"].read("w")
    assert rejects.schema == STAGE_REJECTS
    found = {row["row"]: (row["stage"], json.loads(row["text"])) for row in rejects.to_pylist()}
    assert found == {2: ("validate", ORDERS[1]), 5: ("validate", ORDERS[4])}
    assert lake["aggregates"].read("w").to_pylist() == [{"city": "ROME", "orders": 1, "mean": 9.5}]
    assert dict(done.reasons)["another row has this id"] == 1


def test_a_window_is_processed_once(tmp_path: Path) -> None:
    """It is processed again when its rows, the stages or their version change, and not otherwise."""
    assert process(tmp_path, STAGES).status == "processed"
    assert process(tmp_path, STAGES).status == "already_processed"
    assert process(tmp_path, STAGES, version="2").status == "processed"
    assert process(tmp_path, STAGES[1:]).status == "processed"
    raw = tables(tmp_path)["raw"]
    write(raw, "w", raw.read("w").slice(1), fingerprint="v2")
    assert process(tmp_path, STAGES[1:]).given == 4


def test_an_empty_window_has_the_columns(tmp_path: Path) -> None:
    """A window without rows gives windows without rows."""
    done = process(tmp_path, STAGES, rows=[])
    assert (done.given, done.kept) == (0, 0)
    assert tables(tmp_path)["processed"].read("w").column_names == ["id", "city", "price"]


def test_a_column_without_values_in_one_batch_has_its_type(tmp_path: Path) -> None:
    """What a stage adds is text in all batches, also in one where it is empty."""
    process(tmp_path, [f"{OWN}:note_nothing"], batch_size=2)
    assert tables(tmp_path)["processed"].read("w")["note"].to_pylist() == [None, None, "x", "x", "x"]


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither rows nor rejects are there after an error."""
    process(tmp_path, STAGES)
    before = tables(tmp_path)["processed"].find("w")
    with pytest.raises(DataProcessingException):
        process(tmp_path, [*STAGES, f"{OWN}:double"])
    assert tables(tmp_path)["processed"].find("w") == before
    assert list((tmp_path / ".writing").iterdir()) == []


def test_windows_are_processed_in_the_process_pool(tmp_path: Path) -> None:
    """Everything that a job is given, and what it returns, goes to a worker process and back."""
    lake = tables(tmp_path)
    columns = pa.schema([("id", pa.int64()), ("city", pa.string()), ("price", pa.float64())])
    write(lake["raw"], "w", pa.Table.from_pylist(ORDERS, schema=columns))
    arguments = {"stages": STAGES, "target": lake["processed"], "rejects": lake["rejects"]}
    with JobExecutor(1) as executor:
        job = Job(function=process_window, args=(lake["raw"], "w"), kwargs=arguments, pool="process")
        done = executor.run(job)
    assert (done.given, done.kept, done.rejected, done.dropped) == (5, 1, 2, 2)


# --- measures ---


def test_measures_are_exact_and_skip_what_has_no_value() -> None:
    """A group without values has no minimum and no mean; a sum does not wrap around."""
    measures: Any = {name: ("n", name) for name in ("count", "sum", "min", "max", "mean")}
    aggregate = Aggregate(by="g", measures=measures)
    aggregate.add(pa.table({"g": ["a", "b", None], "n": pa.array([1, None, 4])}))
    aggregate.add(pa.table({"g": ["a", "b"], "n": pa.array([2, None])}))
    found = aggregate.result()
    assert found is not None
    nothing = {"count": 0, "sum": None, "min": None, "max": None, "mean": None}
    assert found.to_pylist() == [
        {"g": "a", "count": 2, "sum": 3, "min": 1, "max": 2, "mean": 1.5},
        {"g": "b"} | nothing,
        {"g": None, "count": 1, "sum": 4, "min": 4, "max": 4, "mean": 4.0},
    ]
    aggregate = Aggregate(measures={"total": ("n", "sum")})
    aggregate.add(pa.table({"n": [2**63 - 1, 1]}))
    with pytest.raises(DataProcessingException, match="total: the sum does not fit into 64 bits"):
        aggregate.result()


@pytest.mark.parametrize(
    ("by", "measures", "message"),
    [
        ((), {}, "must have at least one entry"),
        ((), {"x": ("n", "median")}, "'median' is not allowed: must be one of count, sum"),
        (("x",), {"x": ("n", "sum")}, "x is a column of the group"),
    ],
)
def test_wrong_measures_are_refused(by: Any, measures: Any, message: str) -> None:
    """They are errors of the configuration."""
    with pytest.raises(ConfigurationError, match=message):
        Aggregate(by=by, measures=measures)


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


@given(rows=ROWS, batch_size=st.integers(1, 9), order=st.permutations(STAGES))
@settings(max_examples=12, deadline=None)
def test_rows_are_conserved(rows: list[dict[str, Any]], batch_size: int, order: list[Spec]) -> None:
    """Of any rows, in any batches, through the stages in any order, each row goes on, is rejected or dropped once."""
    with TemporaryDirectory() as folder:
        done = process(Path(folder), order, rows, batch_size=batch_size)
        assert done.given == len(rows) == done.kept + done.rejected + done.dropped
        lake = tables(Path(folder))
        assert lake["processed"].read("w").num_rows == done.kept
        assert lake["rejects"].read("w").num_rows == done.rejected
        numbered = sum(number for _, number in done.reasons)
        rest = done.rejected + done.dropped - numbered
        assert rest == 0 or (rest > 0 and len(done.reasons) == MAX_LOGGED_REASONS)
        numbers = Counter(row["row"] for row in lake["rejects"].read("w").to_pylist())
        assert set(numbers.values()) <= {1}


PIECES = st.sampled_from(["  ", " ", "\t", "A", "aB", "_", "1", "ß", "\u0345", "\u0301"])
TEXTS = st.lists(PIECES, max_size=5).map("".join) | st.text(max_size=8)
"""Texts of any kind, half of them made of what normalisation changes."""


@given(texts=st.lists(st.none() | TEXTS, min_size=1, max_size=5), names=st.lists(TEXTS, max_size=10))
@settings(max_examples=60, deadline=None)
def test_normalisation_is_idempotent(texts: list[str | None], names: list[str]) -> None:
    """Done twice it is the same as done once, for any text."""
    for case in ("lower", "upper", "casefold"):
        spec = {
            "stage": "normalise",
            "names": "snake_case",
            "strip": ["a"],
            "case": {"a": case},
            "empty_is_null": ["a"],
        }
        stage = load_stage(spec)
        rows = pd.DataFrame({"A ": pd.array(texts, dtype=pd.ArrowDtype(pa.string()))})
        once = stage(rows).rows
        assert stage(once).rows.equals(once)
    for name in names:
        assert snake_case(snake_case(name)) == snake_case(name)


@given(numbers=st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(-(10**9), 10**9)), max_size=20))
@settings(max_examples=40, deadline=None)
def test_measures_of_batches_are_those_of_all_rows(numbers: list[tuple[str, int | None]]) -> None:
    """Whatever the batches, the measures are the same."""
    rows = pa.table({"g": [group for group, _ in numbers], "n": pa.array([n for _, n in numbers], pa.int64())})
    rows = rows.set_column(0, "g", rows["g"].cast(pa.string()))
    measures: Any = {name: ("n", name) for name in ("count", "sum", "min", "max", "mean")}
    results = []
    for size in (1, 3, 100):
        aggregate = Aggregate(by="g", measures=measures)
        for start in range(0, max(1, rows.num_rows), size):
            aggregate.add(rows.slice(start, size))
        found = aggregate.result()
        assert found is not None
        results.append(found.to_pylist())
    assert results[0] == results[1] == results[2]
    for row in results[0]:
        values = [n for group, n in numbers if group == row["g"] and n is not None]
        assert (row["count"], row["sum"]) == (len(values), sum(values) if values else None)


def test_a_stage_is_named_in_its_errors() -> None:
    """Whoever wrote it finds it."""
    with pytest.raises(DataProcessingException, match="stage mine returned"):
        NamedStage("mine", lambda rows: rows.head(0).reset_index(drop=True).reindex([0]))(frame(ORDERS))
