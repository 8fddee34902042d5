"""Each window is collected once, each partition is processed once, and no row is lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from executor_adapter.config import FilesTool, FileTable, RestResource, RestTool
from executor_adapter.exceptions import DataProcessingException
from tasks import lake, landing, refining, row_balance, rules, summary
from tests.api_server import Answer, as_json, serving

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 18, tzinfo=UTC)
NEXT_DAY = datetime(2026, 1, 3, 12, tzinfo=UTC)

AIRPORTS = "faa,name,lat,lon,alt,tz,dst,tzone\n" + "".join(
    f"A{number:02},Somewhere,40.5,{lon},10,-5,A,America/New_York\n" for number, lon in enumerate([-75, 75, -80, -90])
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def tool(tmp_path: Path) -> FilesTool:
    """A tool with a file of four airports, one of them in Asia."""
    (tmp_path / "airports.csv").write_text(AIRPORTS)
    table = FileTable(file="airports.csv", schema="airports")
    return FilesTool(source="files", directory=tmp_path, tables={"airports": table})


def collect(tool: FilesTool, root: Path) -> dict[str, Any]:
    return landing.collect_window("map", tool, "airports", "all", root)


def raw(root: Path) -> lake.Partition:
    return lake.Partition(lake=root, layer="raw", tool="map", table="airports", window="all")


# --- collection ---


def test_a_window_is_collected_once(tool: FilesTool, root: Path) -> None:
    """A complete window is not collected again."""
    assert collect(tool, root) == {"records_collected": 4, "status": "success", "rows": 4}
    assert collect(tool, root) == {"records_collected": 0, "status": "already_collected", "rows": 4}


def test_a_changed_file_is_collected_again(tool: FilesTool, root: Path) -> None:
    """A window is collected again when the content of its file changes."""
    collect(tool, root)
    assert tool.directory is not None
    (tool.directory / "airports.csv").write_text(AIRPORTS.rsplit("A03")[0])
    assert collect(tool, root) == {"records_collected": 3, "status": "success", "rows": 3}


class FakeApi:
    """A server of finished runs with two states each."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, path: str, body: Any) -> Answer:
        if path.startswith("/states"):
            run = path.rpartition("=")[2]
            return as_json([{"id": f"{run} {name}", "type": name} for name in ("RUNNING", "COMPLETED")])
        rows = self.runs.get(body["day"][:10], [])
        return as_json(rows[body["offset"] : body["offset"] + body["limit"]])


def history(url: str, **options: Any) -> RestTool:
    runs = RestResource(path="/runs", method="POST", body={"day": "{since}"})
    states = RestResource(path="/states", params={"run": "{id}"}, for_each="runs")
    return RestTool(source="rest", url=url, resources={"runs": runs, "states": states}, **options)


def collect_api(url: str, table: str, root: Path, now: datetime, **options: Any) -> dict[str, Any]:
    return landing.collect_resource("history", history(url, **options), table, root, {}, now)


def test_new_objects_are_added_to_an_unfinished_day(root: Path) -> None:
    """A day that is not over gets its new objects and keeps the old ones."""
    api = FakeApi()
    with serving(api) as (url, _):
        assert collect_api(url, "runs", root, NOON) == {"records_collected": 0, "status": "success", "rows": 0}
        api.runs["2026-01-02"] = [{"id": "a"}]
        assert collect_api(url, "runs", root, NOON) == {"records_collected": 1, "status": "success", "rows": 1}
        api.runs["2026-01-02"] = [{"id": "a"}, {"id": "b", "note": "a new field"}]
        assert collect_api(url, "runs", root, LATER) == {"records_collected": 1, "status": "success", "rows": 2}
        again = collect_api(url, "runs", root, LATER)
    assert again == {"records_collected": 0, "status": "already_collected", "rows": 2}
    partition = lake.Partition(lake=root, layer="raw", tool="history", table="runs", window="2026-01-02")
    assert lake.read(partition).to_pylist() == [{"id": "a", "note": None}, {"id": "b", "note": "a new field"}]


def test_the_newer_version_of_an_object_is_kept(root: Path) -> None:
    """An object that is collected twice is kept once, in its newer version."""
    api = FakeApi()
    with serving(api) as (url, _):
        api.runs["2026-01-02"] = [{"id": "a", "state": "FAILED"}]
        collect_api(url, "runs", root, NOON)
        api.runs["2026-01-02"] = [{"id": "a", "state": "COMPLETED"}]
        assert collect_api(url, "runs", root, LATER)["records_collected"] == 0
    partition = lake.Partition(lake=root, layer="raw", tool="history", table="runs", window="2026-01-02")
    assert lake.read(partition).to_pylist() == [{"id": "a", "state": "COMPLETED"}]


def test_a_finished_day_is_requested_once(root: Path) -> None:
    """A day is requested once after it is over, then never again."""
    api = FakeApi()
    api.runs["2026-01-02"] = [{"id": "a"}]
    with serving(api) as (url, requests):
        collect_api(url, "runs", root, NOON, days=0)
        collect_api(url, "runs", root, NEXT_DAY, days=1)
        requests.clear()
        collect_api(url, "runs", root, NEXT_DAY, days=1)
        assert [body["day"][:10] for _, body in requests] == ["2026-01-03"]


def test_states_are_requested_for_new_runs_only(root: Path) -> None:
    """States are requested only for runs whose states are not collected yet."""
    api = FakeApi()
    with serving(api) as (url, requests):
        api.runs["2026-01-02"] = [{"id": "a"}]
        assert collect_api(url, "states", root, NOON)["records_collected"] == 2
        api.runs["2026-01-02"] = [{"id": "a"}, {"id": "b"}]
        requests.clear()
        assert collect_api(url, "states", root, LATER) == {"records_collected": 2, "status": "success", "rows": 4}
        assert [path for path, _ in requests if path.startswith("/states")] == ["/states?run=b"]


def test_a_failing_api_keeps_collected_rows(root: Path) -> None:
    """A failed request leaves the collected rows of the day unchanged."""
    api = FakeApi()
    api.runs["2026-01-02"] = [{"id": "a"}]
    with serving(api) as (url, _):
        collect_api(url, "runs", root, NOON)
    with serving(lambda path, body: (500, {}, b"")) as (url, _):
        with pytest.raises(Exception, match="answered 500"):
            collect_api(url, "runs", root, LATER)
    partition = lake.Partition(lake=root, layer="raw", tool="history", table="runs", window="2026-01-02")
    assert lake.read(partition).to_pylist() == [{"id": "a"}]


# --- processing ---


def test_a_partition_is_processed_once(tool: FilesTool, root: Path) -> None:
    """A processed partition is not processed again."""
    collect(tool, root)
    done = refining.process_partition(raw(root), "airports", 1000)
    assert done == {"records_processed": 3, "status": "success", "rows": 3, "rejected": 1}
    again = refining.process_partition(raw(root), "airports", 1000)
    assert again == {"records_processed": 0, "status": "already_processed", "rows": 3, "rejected": 1}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
def test_the_batch_size_does_not_change_the_result(tool: FilesTool, root: Path, batch_size: int) -> None:
    """Any batch size gives the same kept rows, rejects and aggregates."""
    collect(tool, root)
    refining.process_partition(raw(root), "airports", batch_size)
    assert lake.read(raw(root).in_layer("processed"))["faa"].to_pylist() == ["A00", "A02", "A03"]
    assert lake.read(raw(root).in_layer("rejects"))["row"].to_pylist() == [1]
    assert lake.read(raw(root).in_layer("aggregates")).to_pylist() == [{"tz": -5, "airports": 3, "alt_max": 10}]


def test_a_reject_has_its_row_number_and_reason(tool: FilesTool, root: Path) -> None:
    """A reject carries the number of its row and the reason."""
    collect(tool, root)
    refining.process_partition(raw(root), "airports", 1000)
    (reject,) = lake.read(raw(root).in_layer("rejects")).to_pylist()
    assert (reject["row"], reject["faa"], reject["lon"]) == (1, "A01", 75)
    assert reject["reason"] == "lon: 75.0 is not a longitude of the United States"


def test_without_rules_every_row_passes_unchanged(tool: FilesTool, root: Path) -> None:
    """Without rules every row is kept unchanged and only counted."""
    collect(tool, root)
    assert refining.process_partition(raw(root), None, 3)["rows"] == 4
    assert lake.read(raw(root).in_layer("processed")).equals(lake.read(raw(root)))
    assert lake.read(raw(root).in_layer("aggregates")).to_pylist() == [{"rows": 4}]


def test_newer_rules_process_a_partition_again(tool: FilesTool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition is processed again after the version of the rules rises."""
    collect(tool, root)
    refining.process_partition(raw(root), "airports", 1000)
    monkeypatch.setattr(rules, "VERSION", rules.VERSION + 1)
    assert refining.process_partition(raw(root), "airports", 1000)["status"] == "success"


@pytest.mark.parametrize("rows", [pa.table({}), pa.table({"id": pa.array([], pa.string())})])
def test_an_empty_partition_is_processed(root: Path, rows: pa.Table) -> None:
    """A partition without rows and columns is processed; missing columns are an error."""
    with lake.writing(raw(root), fingerprint="v1") as writer:
        writer.add(rows)
    if rows.column_names:
        with pytest.raises(DataProcessingException, match="missing columns: faa"):
            refining.process_partition(raw(root), "airports", 10)
    else:
        assert refining.process_partition(raw(root), "airports", 10)["rows"] == 0


def test_a_missing_partition_is_a_data_error(root: Path) -> None:
    """Processing a missing partition raises DATA_ERROR."""
    with pytest.raises(DataProcessingException, match="is not a complete partition") as caught:
        refining.process_partition(raw(root), "airports", 10)
    assert caught.value.error_code == "DATA_ERROR"


def test_lost_rows_are_an_error_with_the_counts(tool: FilesTool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost rows raise an error with the counts, and nothing counts as processed."""
    collect(tool, root)
    known = rules.load("airports")
    losing = rules.Rules(
        schema=known.schema,
        key=known.key,
        normalise=lambda rows: rows.iloc[1:],
        group_by=known.group_by,
        measures=known.measures,
    )
    monkeypatch.setattr(rules, "load", lambda name: losing)
    with pytest.raises(DataProcessingException, match="4 rows were read, but 2 processed and 1 rejected") as caught:
        refining.process_partition(raw(root), "airports", 1000)
    assert caught.value.error_code == "PROCESSING_ERROR"
    assert lake.find_manifest(raw(root).in_layer("processed")) is None
    assert lake.find_manifest(raw(root).in_layer("rejects")) is None


# --- row balance ---


def test_the_balance_counts_rows_in_the_files(tool: FilesTool, root: Path) -> None:
    """The balance of a tool counts the rows in its files, before and after processing."""
    collect(tool, root)
    schemas: dict[str, str | None] = {"airports": "airports"}
    before = row_balance.balance(root, "map", schemas)
    assert (before.holds, str(before)) == (
        True,
        "map: 4 collected = 0 processed + 0 rejected + 4 not processed",
    )
    refining.process_partition(raw(root), "airports", 1000)
    assert str(row_balance.balance(root, "map", schemas)) == "map: 4 collected = 3 processed + 1 rejected"


def test_the_balance_shows_a_loss(tool: FilesTool, root: Path) -> None:
    """The balance does not hold when a file of rejects was deleted."""
    collect(tool, root)
    refining.process_partition(raw(root), "airports", 1000)
    raw(root).in_layer("rejects").parquet.unlink()
    balance = row_balance.balance(root, "map", {"airports": "airports"})
    assert not balance.holds
    assert str(balance) == "map: 4 collected ≠ 3 processed + 0 rejected"


def test_rows_collected_again_are_unprocessed(tool: FilesTool, root: Path) -> None:
    """Rows that were collected again count as unprocessed."""
    collect(tool, root)
    refining.process_partition(raw(root), "airports", 1000)
    assert tool.directory is not None
    (tool.directory / "airports.csv").write_text(AIRPORTS.rsplit("A03")[0])
    collect(tool, root)
    assert row_balance.balance(root, "map", {"airports": "airports"}).unprocessed == 3


# --- summary ---


def write_raw(root: Path, table: str, rows: pa.Table) -> lake.Partition:
    partition = lake.Partition(lake=root, layer="raw", tool="t", table=table, window="all")
    with lake.writing(partition, fingerprint="v1") as writer:
        writer.add(rows)
    return partition


def test_a_run_history_is_summarised(root: Path, run_rows: Callable[..., pa.Table]) -> None:
    """The summary of a run history counts runs, successes, retries and durations."""
    partition = write_raw(root, "task_runs", run_rows(("COMPLETED", 1.0, 1), ("COMPLETED", 2.0, 2), ("FAILED", 6.0, 1)))
    refining.process_partition(partition, "task_runs", 2)
    summarised = summary.summarise(root, "t", {"task_runs": "task_runs", "other": None})
    assert summarised == {
        "records_processed": 2,
        "lines": [
            "task runs: 3 finished, 66.7% of them succeeded, 1 were retried, 3.00 s on average, 6.00 s the longest"
        ],
        "png": None,
    }


def test_the_summary_of_no_rows_says_so(root: Path) -> None:
    """A table without processed rows is summarised as such."""
    assert summary.summarise(root, "t", {"flights": "flights"}) == {
        "records_processed": 0,
        "lines": ["flights: no rows yet"],
        "png": None,
    }


@pytest.fixture
def run_rows() -> Callable[..., pa.Table]:
    def make(*runs: tuple[str, float, int]) -> pa.Table:
        return pa.table(
            {
                "id": [str(number) for number in range(len(runs))],
                "name": ["n"] * len(runs),
                "flow_run_id": pa.array([None] * len(runs), pa.string()),
                "task_key": ["k"] * len(runs),
                "state_type": [state for state, _, _ in runs],
                "state_name": [state.title() for state, _, _ in runs],
                "run_count": [count for _, _, count in runs],
                "start_time": ["2026-01-02T10:00:00Z"] * len(runs),
                "end_time": ["2026-01-02T10:00:09Z"] * len(runs),
                "total_run_time": [seconds for _, seconds, _ in runs],
                "tags": ["[]"] * len(runs),
            }
        )

    return make
