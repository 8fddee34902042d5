"""The demo's own flows on a real server: they collect and process tables of files, and are Failed where a job is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import State
from pytest_mock import MockerFixture

from executor_adapter.config import load_config
from executor_adapter.pipeline import select_tables
from executor_adapter.pipeline.flows import run_pipeline
from flows.collection import collection_flow
from flows.processing import processing_flow
from tests.prefect.conftest import Api
from tests.waiting import wait_for


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The path of a configuration with customers, and with orders that get the names of their customers."""
    (tmp_path / "orders.csv").write_text("id,customer,price\n1,a,5\n2,b,much\n3,b,7\n")
    (tmp_path / "customers.csv").write_text("customer,name\na,Ada\nb,Bob\n")
    orders = {
        "file": "orders.csv",
        "schema": {"columns": {"id": "integer", "customer": "text", "price": "integer"}},
        "steps": [{"enrich": {"table": "shop.customers", "on": "customer", "columns": ["name"]}}],
    }
    tables = {"orders": orders, "customers": {"file": "customers.csv"}}
    shop = {"source": "files", "directory": ".", "tables": tables}
    settings = {"lake": "lake", "job": {"retry_attempts": 0}, "tools": {"shop": shop}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "config.yaml")


def task_runs(api: Api, state: State[Any]) -> list[tuple[str, str]]:
    """Return the names and states of the task runs of the flow run that has ended so."""
    found = api.task_runs(str(state.state_details.flow_run_id))
    return sorted((run["name"], run["state_name"]) for run in found)


def log(api: Api, state: State[Any]) -> list[str]:
    """Return what the flow itself has logged."""
    body = {"logs": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}, "sort": "TIMESTAMP_ASC"}
    return [each["message"] for each in api.post("/logs/filter", body) if each["task_run_id"] is None]


def test_rows_are_collected_and_processed_once(prefect_api: str, api: Api, config: str) -> None:
    """Each window is a job: first those of tables that others read. A second run finds nothing to do, and says so."""
    collected = collection_flow(config=config, return_state=True)
    processed = processing_flow(config=config, return_state=True)
    assert (collected.name, processed.name) == ("Completed", "Completed")
    names = ("collect shop/customers customers.csv", "collect shop/orders orders.csv")
    assert task_runs(api, collected) == [
        *((name, "Completed") for name in names),
        ("find shop/customers", "Completed"),
        ("find shop/orders", "Completed"),
    ]
    assert task_runs(api, processed) == [
        ("process shop/customers all", "Completed"),
        ("process shop/orders all", "Completed"),
    ]
    _, orders = select_tables(load_config(config))
    assert orders.processed.read("all").to_pylist() == [
        {"id": 1, "customer": "a", "price": 5, "name": "Ada"},
        {"id": 3, "customer": "b", "price": 7, "name": "Bob"},
    ]
    wait_for(lambda: "5 new rows in 2 tables" in log(api, collected))
    wait_for(lambda: "shop.orders: 3 collected = 2 processed + 1 rejected" in log(api, processed))
    collected = collection_flow(config=config, return_state=True)
    processed = processing_flow(config=config, return_state=True)
    assert (collected.name, processed.name) == ("Completed", "Completed")
    wait_for(lambda: "0 new rows in 2 tables" in log(api, collected))
    assert task_runs(api, processed) == []


@pytest.mark.usefixtures("in_threads")
def test_a_failed_job_fails_the_flow_run(prefect_api: str, api: Api, config: str) -> None:
    """The others are done, and the message says why; the rows that could not be processed fail the run too."""
    Path(config).with_name("customers.csv").unlink()
    collected = collection_flow(config=config, return_state=True)
    assert collected.name == "Failed"
    assert "SOURCE_UNAVAILABLE" in (collected.message or "")
    assert ("collect shop/orders orders.csv", "Completed") in task_runs(api, collected)
    processed = processing_flow(config=config, return_state=True)
    assert processed.name == "Failed"
    assert "shop.customers has no processed rows" in (processed.message or "")
    assert "shop.orders: 3 collected = 0 processed + 1 rejected + 2 not processed" in (processed.message or "")


@pytest.mark.usefixtures("prefect_api")
def test_a_lake_that_cannot_be_read_is_said_in_one_line(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], mocker: MockerFixture
) -> None:
    """Trouble with the disk ends the pipeline with a line that says what to do, and without a traceback."""
    mocker.patch.dict("os.environ")  # The command sets variables, for a program of its own.
    (tmp_path / "lake").touch()
    assert run_pipeline(config) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("Not a directory")
