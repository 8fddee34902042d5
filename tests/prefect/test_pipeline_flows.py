"""The flows of a pipeline on a real server: backfill, partial success, assets, and what the server records."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from prefect import State
from pytest_mock import MockerFixture

from executor_adapter.cli import main
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline import configured_tables, select_tables
from executor_adapter.pipeline.flows import (
    JobsFailedError,
    Summary,
    collection_flow,
    pipeline_flow,
    processing_flow,
)
from tests.api_server import Answer, as_json, serving
from tests.prefect.conftest import Api
from tests.waiting import wait_for

STEP = {"deduplicate": {"key": "id"}}

pytestmark = pytest.mark.usefixtures("in_threads")


def no_february(rows: pa.Table) -> pa.Table:
    if "2024-02-01" in rows["day"].to_pylist():
        raise DataProcessingException("February is not known", error_code="DATA_ERROR")
    return rows


def blocked_until(path: str) -> list[dict[str, str]]:
    wait_for(Path(path).exists)
    return [{"id": "1"}]


def names_of(api: Api, state: State[Any]) -> list[str]:
    """Return the names of the task runs of the flow run that has ended so."""
    return [run["name"] for run in api.task_runs(str(state.state_details.flow_run_id))]


def configure(folder: Path, tools: dict[str, Any]) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"lake": "lake", "job": {"retry_attempts": 0}, "tools": tools}))
    return str(file)


def files(folder: Path, **table: Any) -> dict[str, Any]:
    (folder / "orders.csv").write_text("id,day\n1,2024-01-30\n2,2024-02-01\n")
    described = {"file": "orders.csv", "steps": [STEP], "partition": "day", "period": "month"} | table
    return {"source": "files", "directory": str(folder), "tables": {"orders": described}}


def test_new_rows_are_materialisations_of_assets(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """A table with new rows is an asset whose event names its origin; without new rows there is no event."""
    config = configure(tmp_path, {"market": files(tmp_path)})

    def events() -> dict[str, list[str]]:
        wanted = {"filter": {"event": {"name": ["prefect.asset.materialization.succeeded"]}}}
        found = api.post("/events/filter", wanted)["events"]
        return {
            each["resource"]["prefect.resource.id"]: [
                one["prefect.resource.id"] for one in each["related"] if one["prefect.resource.role"] == "asset"
            ]
            for each in found
        }

    pipeline_flow(config=config)
    expected = {
        "lake://raw/market/orders": ["source://market/orders"],
        "lake://processed/market/orders": ["lake://raw/market/orders"],
    }
    wait_for(lambda: {key: value for key, value in events().items() if "/market/" in key} == expected)
    names = names_of(api, pipeline_flow(config=config, return_state=True))
    assert "collect market/orders orders.csv" in names
    assert not any(name.startswith("process") for name in names)
    assert not any(name.startswith("materialise") for name in names)


def test_a_run_shows_how_its_tables_are(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """The UI has what `pipeline status` says, of each table that can be read."""
    tool = files(tmp_path)
    tool["tables"]["other"] = {"file": "orders.csv"}
    config = configure(tmp_path, {"seen": tool})
    pipeline_flow(config=config)
    (tmp_path / "lake/raw/seen/other/window=all/rows.parquet").write_bytes(b"x")
    state = pipeline_flow(config=config, return_state=True)
    wanted = {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}, "key": {"any_": ["pipeline-tables"]}}
    (found,) = api.post("/artifacts/filter", {"artifacts": wanted})
    ((table, rows, windows),) = ((each["table"], each["rows"], each["windows"]) for each in json.loads(found["data"]))
    assert (table, rows, windows) == ("seen.orders", 2, 2)


def test_small_windows_are_one_job(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """Small files are collected by one job, and small windows processed by one."""
    for day in range(1, 4):
        (tmp_path / f"{day}.csv").write_text(f"id,day\n{day},2024-01-{day:02}\n")
    table = {"file": "*.csv", "steps": [STEP], "partition": "day", "period": "day"}
    done = pipeline_flow(config=configure(tmp_path, {"small": files(tmp_path, **table)}), return_state=True)
    names = {name for name in names_of(api, done) if name.startswith(("collect", "process"))}
    collected, processed = "1.csv to orders.csv (4)", "2024-01-01 to 2024-02-01 (5)"
    assert names == {f"collect small/orders {collected}", f"process small/orders {processed}"}


def test_a_broken_window_of_several_gets_a_job_of_its_own(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """What its job did with the other windows is reported, processed and an asset; it alone is a failed job."""
    (tmp_path / "broken.csv").write_text("id,id\n1,2\n")
    step = {"function": f"{__name__}:no_february"}
    table = {"file": "*.csv", "steps": [step], "partition": "day", "period": "day"}
    (tmp_path / "more.csv").write_text("id,day\n3,2024-01-31\n4,2024-03-01\n")
    failed = ("collect part orders broken.csv: DATA_ERROR", "process part orders 2024-02-01: DATA_ERROR")
    with pytest.raises(JobsFailedError, match=f"2 of [0-9]+ jobs failed: {'; '.join(failed)}$"):
        pipeline_flow(config=configure(tmp_path, {"part": files(tmp_path, **table)}))

    def new_rows() -> dict[str, int]:
        wanted = {"filter": {"event": {"name": ["prefect.asset.materialization.succeeded"]}}}
        found = api.post("/events/filter", wanted)["events"]
        rows = {each["resource"]["prefect.resource.id"]: each["payload"].get("rows") for each in found}
        return {key: count for key, count in rows.items() if "/part/" in key}

    expected = {"lake://raw/part/orders": 4, "lake://processed/part/orders": 3}
    wait_for(lambda: new_rows() == expected)


def test_a_range_is_collected_again(prefect_api: str, tmp_path: Path) -> None:
    """`since` and `until` ask an API for the days of a range, also for those that are known."""
    asked: list[str] = []

    def respond(path: str, body: Any) -> Answer:
        asked.append(path.rpartition("=")[2][:10])
        return as_json([{"id": "a"}])

    with serving(respond) as (url, _):
        resource = {"path": "/runs", "params": {"day": "{since}"}}
        config = configure(
            tmp_path, {"api": {"source": "rest", "url": url, "days": 0, "resources": {"runs": resource}}}
        )
        for _ in range(2):
            collection_flow(since=date(2024, 1, 1), until=date(2024, 1, 4), config=config)
    assert sorted(asked) == sorted(["2024-01-01", "2024-01-02", "2024-01-03"] * 2)
    with pytest.raises(ConfigurationError, match="until: 2024-01-01 is not after since"):
        collection_flow(since=date(2024, 1, 1), until=date(2024, 1, 1), config=config)


def test_no_table_waits_for_the_source_of_another(prefect_api: str, tmp_path: Path) -> None:
    """A table is processed when its own deliveries are in, and after the tables that its steps read."""
    processed = tmp_path / "lake/processed/quick/orders/window=2024-01/rows.parquet"
    slow = {"function": f"{__name__}:blocked_until", "arguments": {"path": str(processed)}}
    reader = {
        "file": "orders.csv",
        "steps": [{"sql": "SELECT {rows}.* FROM {rows} JOIN {table:quick.orders} USING (id)"}],
    }
    quick = files(tmp_path)
    quick["tables"] = {"readers": reader, **quick["tables"]}
    config = configure(tmp_path, {"slow": {"source": "function", "tables": {"rows": slow}}, "quick": quick})
    pipeline_flow(config=config)
    for table in ("slow/rows", "quick/readers"):
        assert (tmp_path / f"lake/processed/{table}/window=all/rows.parquet").exists()


def test_an_operator_makes_a_table_again(prefect_api: str, tmp_path: Path, mocker: MockerFixture) -> None:
    """One window is processed again, files are collected for a range of days alone, and a new type is applied."""
    mocker.patch.dict(os.environ)  # The commands set Prefect's settings for all of their process.
    config = configure(tmp_path, {"shop": files(tmp_path)})
    pipeline_flow(config=config)
    raw, processed = (tmp_path / f"lake/{layer}/shop/orders" for layer in ("raw", "processed"))

    def versions(folder: Path) -> dict[str, int]:
        return {file.parent.name[7:]: file.stat().st_ino for file in folder.glob("*/rows.parquet")}

    def order(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["pipeline", *words, "--config", config])
        return int(ended.value.code or 0)

    before = versions(processed)
    assert order("reprocess", "shop.orders", "--window", "2024-01") == 0
    assert {name for name, version in versions(processed).items() if version != before[name]} == {"2024-01"}
    shutil.rmtree(raw)
    assert order("backfill", "shop.orders", "--since", "2024-02-01", "--until", "2024-03-01") == 0
    assert versions(raw).keys() == {"2024-02"}
    configure(tmp_path, {"shop": files(tmp_path, schema={"columns": {"id": "integer", "day": "date"}})})
    assert order("rebuild", "shop") == 0
    (table,) = select_tables(load_config(config))
    assert sorted(str(table.processed.schema()).splitlines()) == ["day: date32[day]", "id: int64"]
    assert versions(processed).keys() == {"2024-01", "2024-02"}


def test_a_table_that_cannot_be_made_anew_stops_no_other(
    prefect_api: str, tmp_path: Path, mocker: MockerFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rebuild says in one line what stands in the way of a table, and makes the next ones; its exit code is 1."""
    mocker.patch.dict(os.environ)  # The command sets Prefect's settings for all of its process.
    tool = files(tmp_path, file="*.csv")
    tool["tables"]["whole"] = {"file": "orders.csv", "key": "id"}
    config = configure(tmp_path, {"shop": tool})
    pipeline_flow(config=config)
    (tmp_path / "more.csv").write_text("id,day\n3,2024-02-02\n")
    with pytest.raises(JobsFailedError):
        pipeline_flow(config=config)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", "rebuild", "shop", "--config", config])
    shown = capsys.readouterr()
    assert ended.value.code == 1
    (line,) = (each for each in shown.err.splitlines() if "window 2024-02 has rows of" in each)
    assert line.endswith(": set key, or leave out partition")
    assert "shop.whole: made anew, landings: 1, rows: 2, rejected: 0" in shown.out
    assert (tmp_path / "lake/processed/shop/whole/window=all/rows.parquet").exists()


def tables_given(tables: dict[str, Any]) -> Summary:
    return Summary(lines=[f"of {', '.join(sorted(tables))}"])


def test_a_summary_is_of_all_tables_whichever_are_processed(
    prefect_api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is given those too that are left as they are. A window that no table has is refused before any work."""
    tool = files(tmp_path) | {"summary": f"{__name__}:tables_given"}
    tool["tables"]["copies"] = tool["tables"]["orders"]
    config = configure(tmp_path, {"shop": tool})
    pipeline_flow(config=config)
    capsys.readouterr()
    processing_flow(tools=["shop.copies"], again=True, window="2024-01", config=config)
    assert "of copies, orders" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="window: '2023-01' is in none of these tables"):
        processing_flow(tools=["shop.copies"], again=True, window="2023-01", config=config)


def test_a_flow_that_only_collects_says_what_did_not_fit(
    prefect_api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that processes says what its steps reject."""
    config = configure(tmp_path, {"shop": files(tmp_path, schema={"columns": {"id": "integer", "day": "date"}})})
    (tmp_path / "orders.csv").write_text("id,day\n1,never\n2,2024-01-30\n")
    collection_flow(config=config)
    assert "rejected: 1 row of shop.orders: day: 'never' is not a date" in capsys.readouterr().out
    processing_flow(config=config)
    assert "rejected: 1 row" not in capsys.readouterr().out


def test_windows_that_wait_are_not_lost(prefect_api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where one window is processed, others may have new rows, as of another run: they are said, and no failure."""
    config = configure(tmp_path, {"shop": files(tmp_path)})
    collection_flow(config=config)
    capsys.readouterr()
    processing_flow(again=True, window="2024-01", config=config)
    assert "shop: 2 collected = 1 processed + 0 rejected + 1 not processed" in capsys.readouterr().out


def test_a_run_says_what_is_new_in_it(
    prefect_api: str, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that came again, perhaps with other values, and new rejects; rejects of earlier runs are counted alone."""
    schema = {"columns": {"id": "integer", "day": "date"}}
    config = configure(tmp_path, {"again": files(tmp_path, file="*.csv", key="id", schema=schema, partition="id")})
    (tmp_path / "1.csv").write_text("id,day\n3,never\n")

    def run(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text)
        capsys.readouterr()
        pipeline_flow(config=config)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("again:", "rejected:"))]

    said = ["again: 3 new rows (orders 1.csv to orders.csv (2))", "again: 3 collected = 2 processed + 1 rejected"]
    assert run("orders.csv", "id,day\n1,2024-01-30\n2,2024-02-01\n") == [
        *said,
        "rejected: 1 row of again.orders: day: 'never' is not a date as 2013-01-31",
    ]
    assert run("orders.csv", "id,day\n1,2024-01-31\n2,2024-02-01\n") == [
        "again: 0 new rows, 2 came again; 3 were there before",
        said[1],
    ]

    def events() -> int:
        wanted = {"filter": {"event": {"name": ["prefect.asset.materialization.succeeded"]}}}
        found = api.post("/events/filter", wanted)["events"]
        return sum(each["resource"]["prefect.resource.id"] == "lake://raw/again/orders" for each in found)

    wait_for(lambda: events() == 2)


def test_a_late_table_is_an_event(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """A table that was given no rows for longer than it says raises an event, on which an automation can act."""
    config = configure(tmp_path, {"inbox": files(tmp_path, expect="daily")})
    (table,) = configured_tables(load_config(config), "inbox")
    with table.raw.writing("2024-01", fingerprint="old", collected_at=datetime(2024, 2, 1, tzinfo=UTC)) as writer:
        writer.add(pa.table({"id": ["1"], "day": ["2024-01-30"]}))
    (tmp_path / "orders.csv").unlink()
    with pytest.raises(JobsFailedError, match="SOURCE_UNAVAILABLE"):
        collection_flow(config=config)

    def late() -> list[str]:
        found = api.post("/events/filter", {"filter": {"event": {"name": ["executor-adapter.table.late"]}}})["events"]
        return [each["resource"]["prefect.resource.name"] for each in found]

    wait_for(lambda: late() == ["inbox.orders"])


def test_a_failed_tool_leaves_the_others_whole(prefect_api: str, tmp_path: Path) -> None:
    """What other jobs did is kept when one fails; the next run does what is missing."""
    shop, other = files(tmp_path), files(tmp_path, file="missing.csv")
    config = configure(tmp_path, {"shop": shop, "other": other})
    with pytest.raises(JobsFailedError, match="1 of 4 jobs failed: find other orders: SOURCE_UNAVAILABLE"):
        pipeline_flow(config=config)
    assert (tmp_path / "lake/processed/shop/orders/window=2024-01/rows.parquet").exists()
    (tmp_path / "missing.csv").write_text("id,day\n1,2024-01-30\n")
    pipeline_flow(config=config)
    assert (tmp_path / "lake/processed/other/orders/window=2024-01/rows.parquet").exists()


def test_a_damaged_file_stops_no_other_table(prefect_api: str, tmp_path: Path) -> None:
    """It is a failure of the run, which processes the other tables, is reported, and names the file."""
    tool = files(tmp_path)
    tool["tables"]["whole"] = {"file": "orders.csv"}
    config = configure(tmp_path, {"shop": tool})
    collection_flow(config=config)
    file = tmp_path / "lake/raw/shop/orders/window=2024-01/rows.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(JobsFailedError, match=f"^{file} is damaged"):
        processing_flow(config=config)
    assert (tmp_path / "lake/processed/shop/whole/window=all/rows.parquet").exists()


@pytest.mark.nightly
def test_the_progress_of_a_run_ends_at_100(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """A flow that only collects, and one whose tools have no summary, end with a progress of 100 percent."""
    config = configure(tmp_path, {"shop": files(tmp_path)})
    for flow in (collection_flow, pipeline_flow):
        ended = flow(config=config, return_state=True)
        wanted = {"flow_run_id": {"any_": [str(ended.state_details.flow_run_id)]}, "type": {"any_": ["progress"]}}
        (progress,) = api.post("/artifacts/filter", {"artifacts": wanted})
        assert progress["data"] == 100
