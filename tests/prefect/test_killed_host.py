"""Tests that nothing stays Running when the process of a flow is killed, and that nothing else is changed.

The maintenance flow sweeps too, and cleans up what is old; so its tests are here, with the server that this needs.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    get_current_settings,
    temporary_settings,
)
from pytest_mock import MockerFixture

from executor_adapter.cli import main
from executor_adapter.job import uuid7
from executor_adapter.pipeline.flows import maintenance_flow, pipeline_flow
from executor_adapter.prefect.crashes import sweep as sweeping
from executor_adapter.prefect.crashes.fate import Death
from executor_adapter.prefect.crashes.records import Records
from executor_adapter.prefect.crashes.reporter import main as main_of_reporter
from executor_adapter.prefect.crashes.reporter import report
from executor_adapter.prefect.crashes.sweep import Closing, Start, find_earlier_runs
from executor_adapter.prefect.mirror.events import iso
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.server import ServerApi, server_name
from executor_adapter.store import open_store
from tests.cli.conftest import fill, record
from tests.prefect.conftest import Api
from tests.prefect.sample_events import COMPLETED, event
from tests.prefect.server_proxy import answering
from tests.servers import ROOT, free_port
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("quick_sweeps")


@pytest.fixture(scope="module")
def prefect_api(server_of_file: str) -> str:
    """A sweep ends flow runs of others, as soon as they can be ended."""
    return server_of_file


def test_the_task_runs_of_a_killed_flow_are_crashed(prefect_api: str, api: Api, tmp_path: Path) -> None:
    """After a SIGKILL flow runs and live task runs become Crashed, however the jobs ran; those that ended stay so."""
    file = tmp_path / "ids"

    def states() -> list[Counter[str]]:
        ids = file.read_text().split() if file.exists() else []
        return [Counter(run["state_name"] for run in api.task_runs(flow_run_id)) for flow_run_id in ids]

    with subprocess.Popen([sys.executable, "-m", "tests.prefect.killed_flows", str(file)], cwd=ROOT) as process:
        try:
            wait_for(lambda: states() == [{"Completed": 2, "Running": 2, "Pending": 2}] * 4)
            ended = completed(api, file)
        finally:
            process.kill()
    wait_for(lambda: states() == [{"Completed": 2, "Crashed": 4}] * 4)
    assert completed(api, file) == ended
    flow_run_ids = file.read_text().split()
    assert [api.get(f"/flow_runs/{each}")["state_name"] for each in flow_run_ids] == ["Crashed"] * 4
    (crashed, *_) = [run for run in api.task_runs(flow_run_ids[0]) if run["state_name"] == "Crashed"]
    assert "was killed" in crashed["state"]["message"]
    assert crashed["end_time"] > crashed["expected_start_time"]


def completed(api: Api, file: Path) -> list[tuple[str, str, str]]:
    runs = [run for each in file.read_text().split() for run in api.task_runs(each)]
    return [(run["id"], run["state"]["id"], run["end_time"]) for run in runs if run["state_name"] == "Completed"]


class Rows(NamedTuple):
    """A flow run with task runs, made through the API, as a process that has died may have left them."""

    api: Api
    flow_run_id: str
    flow_id: str
    task_runs: dict[str, str]
    """The ids by the name of the state in which each was made."""

    def states(self) -> dict[str, str]:
        """Return the state of the flow run and the present states of the task runs, by the state they were made in."""
        now = {run["id"]: run["state_name"] for run in self.api.task_runs(self.flow_run_id)}
        own: str = self.api.get(f"/flow_runs/{self.flow_run_id}")["state_name"]
        return {"flow run": own} | {name: now[run_id] for name, run_id in self.task_runs.items()}


MakeRows = Callable[..., Rows]

DAY = 86_400.0
DEFERRED: dict[str, Any] = {"type": "PENDING", "name": "Deferred", "state_details": {"deferred": True}}


@pytest.fixture
def rows(api: Api) -> MakeRows:
    """Make a flow run in the state `state`, with a task run that is Running and others."""

    def make(state: dict[str, Any]) -> Rows:
        flow_id = api.post("/flows/", {"name": f"left-{uuid7()}"})["id"]
        run = api.post("/flow_runs/", {"flow_id": flow_id, "state": {"type": "RUNNING"}})
        api.post(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
        task_runs = {}
        for task_state in (
            {"type": "RUNNING", "name": "Running"},
            {"type": "COMPLETED", "name": "Completed"},
            DEFERRED,
        ):
            name = task_state["name"]
            body = {"flow_run_id": run["id"], "task_key": "work", "dynamic_key": name, "name": f"work-{name}"}
            task_runs[name] = api.post("/task_runs/", body | {"state": task_state})["id"]
        return Rows(api, run["id"], flow_id, task_runs)

    return make


CRASHED = {"type": "CRASHED", "name": "Crashed"}
AS_MADE = {"Running": "Running", "Completed": "Completed", "Deferred": "Deferred"}


def sweep(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, int]:
    """Run the command, and return the number of task runs by flow run."""
    with pytest.raises(SystemExit) as exited:
        main(["prefect", "sweep", "--json", *options])
    assert exited.value.code == 0
    return {each["flow_run_id"]: each["task_runs"] for each in json.loads(capsys.readouterr().out)}


def test_a_sweep_waits_once_for_all_flow_runs(
    rows: MakeRows, capsys: pytest.CaptureFixture[str], mocker: MockerFixture
) -> None:
    """Until states of the dead may be recorded it waits, once for all of them: they may be hundreds."""
    all_left = [rows(CRASHED) for _ in range(3)]
    waits = mocker.spy(Closing, "end_task_runs")
    assert {each.flow_run_id for each in all_left} <= sweep(capsys).keys()
    assert all(each.states()["Running"] == "Crashed" for each in all_left)
    assert waits.call_count == 1


def test_a_sweep_ends_the_task_runs_of_ended_flow_runs(
    rows: MakeRows, capsys: pytest.CaptureFixture[str], api: Api
) -> None:
    """A dry run shows them and a sweep ends them; others stay as they are. An end that is recorded later wins."""
    ended, healthy = rows(CRASHED), rows({"type": "RUNNING", "name": "Running"})
    assert sweep(capsys, "--dry-run")[ended.flow_run_id] == 1
    assert ended.states() == {"flow run": "Crashed", **AS_MADE}
    swept = sweep(capsys)
    assert swept[ended.flow_run_id] == 1
    assert healthy.flow_run_id not in swept
    assert ended.states() == {"flow run": "Crashed", **AS_MADE, "Running": "Crashed"}
    left = api.task_run(ended.task_runs["Running"])
    found = re.search("found at .*, ended not later than (.*)", left["state"]["message"])
    assert found is not None
    assert datetime.fromisoformat(left["end_time"]) == datetime.fromisoformat(found[1])
    assert left["end_time"] >= api.get(f"/flow_runs/{ended.flow_run_id}")["end_time"]
    assert healthy.states() == {"flow run": "Running", **AS_MADE}
    assert ended.flow_run_id not in sweep(capsys)
    with pytest.raises(SystemExit) as exited:
        main(["prefect", "sweep"])
    assert exited.value.code == 0
    assert "nothing to end" in "".join(capsys.readouterr())

    ended.api.post("/events", [state_of_process(ended, "COMPLETED")])
    wait_for(lambda: ended.states()["Running"] == "Completed")


def state_of_process(rows: Rows, state_type: str) -> dict[str, Any]:
    """Return the event by which the process itself had set a state of the task run that was Running."""
    (run,) = [run for run in rows.api.task_runs(rows.flow_run_id) if run["id"] == rows.task_runs["Running"]]
    name = state_type.capitalize()
    state = {"type": state_type, "name": name, "message": "", "state_details": {}}
    return {
        "id": uuid7(),
        "occurred": iso(time.time()),
        "event": f"prefect.task-run.{name}",
        "resource": {"prefect.resource.id": f"prefect.task-run.{run['id']}", "prefect.orchestration": "client"},
        "related": [
            {"prefect.resource.id": f"prefect.flow-run.{rows.flow_run_id}", "prefect.resource.role": "flow-run"}
        ],
        "payload": {
            "intended": {"from": "RUNNING", "to": state_type},
            "initial_state": None,
            "validated_state": state,
            "task_run": {"name": run["name"], "task_key": run["task_key"], "dynamic_key": run["dynamic_key"]},
        },
    }


def test_a_state_that_is_recorded_after_its_end_is_ended_at_once(
    rows: MakeRows, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer state of the dead process, which waited in the server's queue, is no event that was lost."""
    made, sent = rows(CRASHED), []
    send = ServerApi.send

    def send_before_a_late_state(server: ServerApi, bodies: Sequence[bytes]) -> None:
        send(server, bodies)
        sent.append(len(bodies))
        if len(sent) == 1:
            wait_for(lambda: made.states()["Running"] == "Crashed")
            api.post("/events", [state_of_process(made, "RUNNING")])
            wait_for(lambda: made.states()["Running"] == "Running")

    monkeypatch.setattr(ServerApi, "send", send_before_a_late_state)
    end_task_runs(made, monkeypatch)
    assert sent == [1, 1]
    assert api.state_names(made.task_runs["Running"]) == ["Running", "Crashed", "Running", "Crashed"]


def test_many_task_runs_are_ended_page_after_page(rows: MakeRows, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page waits longer than until the one before is recorded."""
    made = rows(CRASHED)
    for number in range(4):
        body = {"flow_run_id": made.flow_run_id, "task_key": "work", "dynamic_key": str(number), "name": str(number)}
        made.task_runs[str(number)] = api.post("/task_runs/", body | {"state": {"type": "RUNNING"}})["id"]
    monkeypatch.setattr("executor_adapter.prefect.crashes.sweep.PAGE_LIMIT", 2)
    end_task_runs(made, monkeypatch)
    assert Counter(made.states().values()) == {"Crashed": 6, "Completed": 1, "Deferred": 1}


def end_task_runs(made: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the task runs, where what the server has taken is never sent again."""
    monkeypatch.setattr("executor_adapter.prefect.crashes.sweep.RESEND_SECONDS", math.inf)
    with ServerApi.connected() as server:
        closing = Closing(server, time.monotonic() + PATIENCE)
        assert closing.end_task_runs(closing.records.flow_runs([made.flow_run_id]), None)


@pytest.mark.parametrize(
    ("state", "run_count", "managed", "expected"),
    [
        pytest.param({"type": "SCHEDULED", "name": "AwaitingRetry"}, 1, True, "AwaitingRetry", id="rescheduled"),
        pytest.param({"type": "PENDING", "name": "Pending"}, 1, True, "Pending", id="started again"),
        pytest.param(
            {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}},
            1,
            False,
            "Suspended",
            id="suspended",
        ),
    ],
)
def test_a_flow_run_that_goes_on_elsewhere_is_untouched(
    rows: MakeRows, state: dict[str, Any], run_count: int, managed: bool, expected: str
) -> None:
    """The death of its process changes nothing of a flow run that another process continues."""
    made = rows(state)
    death = Death({made.flow_run_id: run_count}, time.time(), made.flow_run_id if managed else None)
    assert report(death)
    assert made.states() == {"flow run": expected, **AS_MADE}


def test_a_flow_run_that_was_being_cancelled_becomes_cancelled(rows: MakeRows) -> None:
    """A flow run whose process dies while it is Cancelling becomes Cancelled, and its task runs Crashed."""
    made = rows({"type": "CANCELLING", "name": "Cancelling"})
    assert report(Death({made.flow_run_id: 1}, time.time(), None))
    assert made.states() == {"flow run": "Cancelled", **AS_MADE, "Running": "Crashed"}


def test_a_death_that_could_not_be_reported_is_reported_by_a_sweep(
    rows: MakeRows, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reporter had no time: a sweep ends the flow run, which was started by hand, and its task runs."""
    made = rows({"type": "RUNNING", "name": "Running"})
    death = {"flow_runs": {made.flow_run_id: 1}, "died_at": time.time(), "presence": ""}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(death)))
    main_of_reporter(timeout=0.0)
    assert made.states() == {"flow run": "Running", **AS_MADE}
    file = OutboxFile(server_name())
    assert len(file.deaths()) == 1
    assert sweep(capsys, "--dry-run")[made.flow_run_id] == 1
    assert sweep(capsys)[made.flow_run_id] == 1
    assert made.states() == {"flow run": "Crashed", **AS_MADE, "Running": "Crashed"}
    assert file.deaths() == {}


def test_a_death_that_a_proxy_answers_with_a_page_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kept the reporter from reporting, a sweep finds the death."""
    port = free_port()
    death = {"flow_runs": {str(uuid7()): 1}, "died_at": time.time(), "presence": ""}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(death)))
    with answering(200, port), temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        main_of_reporter(timeout=0.5)
        assert len(OutboxFile(server_name()).deaths()) == 1


def test_a_sweep_goes_on_where_the_outbox_cannot_be_read(
    rows: MakeRows, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no database is named in a warning, and what has crashed on the server ends all the same."""
    made = rows(CRASHED)
    with temporary_settings({PREFECT_HOME: tmp_path}):
        file = OutboxFile(server_name())
        file.path.parent.mkdir()
        file.path.write_bytes(b"no database" * 100)
        assert sweep(capsys)[made.flow_run_id] == 1
    assert made.states() == {"flow run": "Crashed", **AS_MADE, "Running": "Crashed"}
    assert "cannot read the deaths of processes" in caplog.text


def test_a_flow_looks_after_its_earlier_runs(rows: MakeRows) -> None:
    """Only runs of the same flow that ended more than a minute ago are found, however long a healthy one runs."""
    crashed, healthy = rows(CRASHED), rows({"type": "RUNNING", "name": "Running"})
    completed = rows({"type": "COMPLETED", "name": "Completed"})  # A worker that died may have left what it called.
    with ServerApi.connected() as server:
        records, now = Records(server), time.time()
        assert find_earlier_runs(records, crashed.flow_id, now) == []
        for later in (120.0, 1800.0):
            for ended in (crashed, completed):
                (found,) = find_earlier_runs(records, ended.flow_id, now + later)
                assert found.id == ended.flow_run_id
            assert find_earlier_runs(records, healthy.flow_id, now + later) == []


def test_a_flow_that_starts_ends_what_its_earlier_runs_have_left(
    rows: MakeRows, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so in the background, once; runs of other flows stay as they are."""
    monkeypatch.setattr(sweeping, "MIN_AGE_SECONDS", -60.0)  # As if a minute had passed.
    monkeypatch.setattr(sweeping, "_swept", set())
    earlier, other = rows(CRASHED), rows(CRASHED)
    created = api.post("/flow_runs/", {"flow_id": earlier.flow_id, "state": {"type": "RUNNING"}})
    sweeping.sweep_earlier_runs(FlowRun.model_validate(created))
    wait_for(lambda: earlier.states() == {"flow run": "Crashed", **AS_MADE, "Running": "Crashed"})
    assert other.states() == {"flow run": "Crashed", **AS_MADE}


def test_a_flow_run_that_starts_again_looks_after_its_earlier_starts(rows: MakeRows, api: Api) -> None:
    """What a flow run left at an earlier start becomes Crashed, not at its own start; what this one has begun stays."""
    this_start = Start(2, time.time())
    made = rows({"type": "RUNNING", "name": "Running"})  # As of one that never ran, the number of their start is 0.
    found_at = time.time()
    with ServerApi.connected() as server:
        closing = Closing(server, time.monotonic() + 30.0)
        assert list(closing.unfinished([made.flow_run_id], before=this_start)) == []
        closing = Closing(server, time.monotonic() + 30.0)
        closing.end_task_runs(closing.records.flow_runs([made.flow_run_id]), None, before=Start(2, found_at))
    assert made.states() == {"flow run": "Running", **AS_MADE, "Running": "Crashed"}
    left = api.task_run(made.task_runs["Running"])
    assert datetime.fromisoformat(left["end_time"]).timestamp() >= found_at
    numbered = [left | {"flow_run_run_count": number} for number in (1, 2, 3)]
    assert [Start(2, time.time()).is_after(run) for run in numbered] == [True, False, False]


# --- the maintenance flow ---


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


def test_the_flow_cleans_up_what_is_old(api: Api, tmp_path: Path) -> None:
    """Old jobs, results, unsent states and temporary files go, newer ones stay, and lost task runs become Crashed."""
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
    runs = ended_run(api, "collection", 100), ended_run(api, "mine", 100)

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: results}):
        maintenance_flow(config=str(config))

    assert (store.get("old"), getattr(store.get("new"), "job_id", None)) == (None, "new")
    store.close()
    assert (old_file.exists(), new_file.exists(), part.exists()) == (False, True, True)
    assert (dead.count(), other.count()) == (0, 1)
    assert (old_result.exists(), new_result.exists()) == (False, True)
    (run,) = api.post("/flow_runs/filter", {"flows": {"name": {"any_": ["maintenance"]}}})
    wanted = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    wait_for(lambda: any("1 results removed" in log["message"] for log in api.post("/logs/filter", wanted)))
    for run in runs:
        wait_for(lambda run=run: {each["state_name"] for each in api.task_runs(run)} == {"Crashed"})


@pytest.mark.usefixtures("in_threads")
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
