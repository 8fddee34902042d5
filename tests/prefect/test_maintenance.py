"""The maintenance flow on a real server: old leftovers go, what is new or in use stays."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, get_current_settings, temporary_settings
from pytest_mock import MockerFixture

from executor_adapter.pipeline.flows import maintenance, maintenance_flow, pipeline_flow
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.store import open_store
from tests.cli.conftest import fill, record
from tests.prefect.conftest import Api
from tests.prefect.sample_events import COMPLETED, event
from tests.waiting import PATIENCE, wait_for

DAY = 86_400.0


@pytest.fixture(scope="module")
def prefect_api(server_of_file: str) -> str:
    """Maintenance ends flow runs of others, as soon as they can be ended."""
    return server_of_file


def age(path: Path, days: float) -> Path:
    """Let a file look as if it was last written so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def ended_run(api: Api, flow: str, days: float) -> str:
    """Create a flow run that ended so many days ago, with a task run that is still Running."""
    flow_id = api.post("/flows/", {"name": flow})["id"]
    run: dict[str, Any] = api.post("/flow_runs/", {"flow_id": flow_id, "state": {"type": "COMPLETED"}})
    # The API takes no time of an end, so the database does.
    file = get_current_settings().home / "prefect.db"
    with closing(sqlite3.connect(file, timeout=PATIENCE)) as database, database:
        ended = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S.%f")
        changed = database.execute("UPDATE flow_run SET end_time = ? WHERE id = ?", (ended, run["id"]))
    assert changed.rowcount == 1
    task_run = {"flow_run_id": run["id"], "task_key": "work", "dynamic_key": "0", "name": "work"}
    api.post("/task_runs/", task_run | {"state": {"type": "RUNNING", "name": "Running"}})
    return str(run["id"])


@pytest.mark.usefixtures("quick_sweeps")
def test_the_flow_cleans_up_what_is_old(api: Api, tmp_path: Path, mocker: MockerFixture) -> None:
    """Old jobs, results, unsent states and temporary files go, newer ones stay, and lost task runs become Crashed.

    For the size of what is left it looks at each file once.
    """
    measured = mocker.spy(maintenance, "_size")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"lake": "lake", "store": {"url": "sqlite:///jobs.db"}}))
    store = open_store(f"sqlite:///{tmp_path / 'jobs.db'}")
    fill(store, record("old", age=40 * DAY), record("new", age=DAY))
    old_file = age(tmp_path / "lake" / ".tmp-1.json", 40)
    new_file = age(tmp_path / "lake" / ".tmp-2.json", 1)
    part = age(tmp_path / "lake" / "raw" / "part.parquet", 400)
    dead, other = (OutboxFile(f"http://{name}/api") for name in ("dead", "other"))
    for outbox, days in ((dead, 40), (other, 1)):
        outbox.write([event(COMPLETED, time.time() - days * DAY)], is_held=False)
        outbox.release()
    results = tmp_path / "storage"
    old_result, new_result = age(results / "old", 40), age(results / "folder" / "new", 1)
    old_result.write_bytes(b"123")
    age(old_result, 40)
    new_result.write_bytes(b"12345")
    runs = ended_run(api, "collection", 100), ended_run(api, "mine", 100)

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: results}):
        maintenance_flow(config=str(config))

    assert (store.get("old"), getattr(store.get("new"), "job_id", None)) == (None, "new")
    store.close()
    assert (old_file.exists(), new_file.exists(), part.exists()) == (False, True, True)
    assert (dead.count(), other.count()) == (0, 1)
    assert (old_result.exists(), new_result.exists()) == (False, True)
    assert set(Counter(call.args for call in measured.call_args_list).values()) == {1}
    (run,) = api.post("/flow_runs/filter", {"flows": {"name": {"any_": ["maintenance"]}}})
    wanted = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    wait_for(lambda: any("results: 5 bytes" in log["message"] for log in api.post("/logs/filter", wanted)))
    for run in runs:
        wait_for(lambda run=run: {each["state_name"] for each in api.task_runs(run)} == {"Crashed"})


@pytest.mark.usefixtures("quick_sweeps", "in_threads")
def test_tables_are_kept_as_they_say(prefect_api: str, tmp_path: Path) -> None:
    """Windows older than `keep_days` go, and a later collection does not bring them back."""
    config, folder = tmp_path / "config.yaml", tmp_path / "lake/processed/shop/orders"
    (tmp_path / "orders.csv").write_text("id,day\n1,2024-01-30\n2,2024-02-01\n")
    orders = {"file": "orders.csv", "partition": "day", "period": "month"}

    def configure(**keep: int) -> None:
        shop = {"source": "files", "directory": ".", "tables": {"orders": orders | keep}}
        config.write_text(yaml.safe_dump({"lake": "lake", "tools": {"shop": shop}}))

    configure()
    pipeline_flow(config=str(config))
    assert len(list(folder.iterdir())) == 2
    configure(keep_days=30)
    maintenance_flow(config=str(config))
    pipeline_flow(config=str(config))
    assert list(folder.iterdir()) == []
