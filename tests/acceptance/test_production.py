"""The road of a user in production, from a clone to two workers on a server of several processes.

The tests run in their order, on one server with PostgreSQL and Redis: set up, deploy, run by schedule, by the form and
again for what is missing, cancel, pause, collide, share, and lose a worker.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from executor_adapter.config import read_yaml
from tests.acceptance.browser import new_page
from tests.acceptance.shared_work import PARTS, is_whole
from tests.acceptance.test_server_ha import children, needs_services, without_database
from tests.servers import ROOT, Server, free_port, new_user_env, prefect, running
from tests.waiting import PATIENCE, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
SHARED_RUNS = 40
RUNS_AT_ONCE = 3
"""Flow runs that a worker runs at once: each is a process that imports Prefect, and the machine has other work."""
OWN_DEPLOYMENTS = """
  - name: portions
    entrypoint: tests/acceptance/shared_work.py:portions
    work_pool: *collection
"""
REDIS = "redis://127.0.0.1:6379/8"


@dataclass(kw_only=True)
class Cluster:
    """A clone, the server, and the workers that were started."""

    clone: Path
    server: Server
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def lake(self) -> Path:
        return self.clone / "data"

    def run(self, *command: str) -> str:
        """Run a command in the clone that must succeed, and return its output."""
        done = subprocess.run(
            command, env=self.server.env, cwd=self.clone, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def adapter(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "executor_adapter.cli", *words)

    def deployment(self, name: str) -> dict[str, Any]:
        wanted = {"deployments": {"name": {"any_": [name]}}}
        (found,) = self.server.call("POST", "/deployments/filter", wanted)
        return found  # type: ignore[no-any-return]

    def start(self, name: str, **parameters: Any) -> str:
        """Ask for a run of a deployment, and return its id."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.server.call("POST", path, {"parameters": parameters})["id"])

    def flow_run(self, run_id: str) -> dict[str, Any]:
        return self.server.call("GET", f"/flow_runs/{run_id}")  # type: ignore[no-any-return]

    def flow_runs(self, name: str) -> list[dict[str, Any]]:
        wanted = {"deployments": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return self.server.call("POST", "/flow_runs/filter", wanted)  # type: ignore[no-any-return]

    def task_runs(self, run_ids: list[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        wanted = {"flow_runs": {"id": {"any_": run_ids}}, "sort": "ID_DESC"}
        while page := self.server.call("POST", "/task_runs/filter", wanted | {"offset": len(found)}):
            found += page
        return found

    def states(self, run_id: str) -> list[str]:
        states = self.server.call("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def ended(self, run_id: str) -> dict[str, Any]:
        """Return the run once it has ended."""

        def is_over() -> dict[str, Any] | None:
            run = self.flow_run(run_id)
            return run if run["state_type"] in FINAL else None

        return wait_for(is_over, what=lambda: f"the end of {run_id}: {self.states(run_id)}")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, as a commit of these files would give it, with one month of flights, and a deployment more."""
    directory = tmp_path_factory.mktemp("production") / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in listed.decode().rstrip("\0").split("\0"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if not (ROOT / name).exists():  # It was deleted, and that is not committed yet.
            continue
        shutil.copy(ROOT / name, directory / name, follow_symlinks=False)
    write_config(directory, ["2013-01"])
    with (directory / "deployments" / "prefect.yaml").open("a") as file:
        file.write(OWN_DEPLOYMENTS)
    return directory


def write_config(clone: Path, windows: list[str]) -> None:
    """Reduce the configuration to some months of flights."""
    settings = read_yaml(ROOT / "config.yaml")
    flights = settings["tools"]["flights"]
    flights["tables"] = {"flights": flights["tables"]["flights"] | {"windows": windows}}
    (clone / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def cluster(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The server of several processes, as `make server-ha` starts it, and the clone."""
    needs_services()
    folder = tmp_path_factory.mktemp("cluster")
    database, port = f"prefect_ha_{uuid4().hex[:8]}", free_port()
    env = new_user_env(folder) | {"PYTHONPATH": str(clone), "EXECUTOR_ADAPTER_CONFIG": str(clone / "config.yaml")}
    options = ["--port", str(port), "--database", database, "--redis", REDIS]
    command = [sys.executable, str(clone / "deployments" / "server_ha.py"), *options]
    log = folder / "server.log"
    with without_database(database), running(command, env=env, cwd=folder, log=log) as process:
        wait_for(lambda: "Ctrl-C ends" in log.read_text() or process.poll() is not None, what="the servers")
        assert process.poll() is None, log.read_text()[-4000:]
        url = f"http://127.0.0.1:{port}"
        yield Cluster(clone=clone, server=Server(url=url, env=env | {"PREFECT_API_URL": f"{url}/api"}), folder=folder)


@pytest.fixture(scope="module")
def deployed(cluster: Cluster) -> Cluster:
    """The cluster, set up and deployed as the documentation says."""
    cluster.adapter("prefect", "bootstrap", "--file", "deployments/bootstrap.yaml")
    cluster.run(*prefect("--no-prompt", "deploy", "--all"))
    return cluster


@pytest.fixture(scope="module")
def working(deployed: Cluster) -> Iterator[Cluster]:
    """The cluster with two workers."""
    with ExitStack() as stack:
        for number in range(2):
            deployed.workers.append(stack.enter_context(worker(deployed, f"worker-{number}")))
        yield deployed


@contextmanager
def worker(cluster: Cluster, name: str) -> Iterator[subprocess.Popen[bytes]]:
    words = ["worker", "start", "--pool", "local", "--type", "process", "--name", name, "--limit", str(RUNS_AT_ONCE)]
    with running(
        prefect(*words), env=cluster.server.env, cwd=cluster.folder, log=cluster.folder / f"{name}.log"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return new_page(browser, 1440, 1200)


def test_a_second_bootstrap_changes_nothing(cluster: Cluster) -> None:
    """The first bootstrap creates everything, and says so; the second says that all is unchanged."""
    command = ("prefect", "bootstrap", "--file", "deployments/bootstrap.yaml")
    first, second = (cluster.adapter(*command).splitlines()[1:] for _ in range(2))
    assert all(re.search(r"\bcreated\b", line) for line in first)
    assert all(re.search(r"\bunchanged\b", line) for line in second)
    assert len(first) == len(second) > 10


def test_a_scheduled_run_starts_on_its_time(working: Cluster) -> None:
    """A schedule creates runs, and a worker completes one that started within seconds of its time."""
    deployment = working.deployment("flights")
    schedule = {"schedule": {"interval": 60, "anchor_date": datetime.now(UTC).isoformat()}, "active": True}
    path = f"/deployments/{deployment['id']}/schedules"
    (created,) = working.server.call("POST", path, [schedule])

    def completed() -> dict[str, Any] | None:
        runs = [run for run in working.flow_runs("flights") if run["auto_scheduled"]]
        return next((run for run in runs if run["state_type"] == "COMPLETED"), None)

    run = wait_for(completed, what="a scheduled run")
    working.server.call("DELETE", f"{path}/{created['id']}")
    late = datetime.fromisoformat(run["start_time"]) - datetime.fromisoformat(run["expected_start_time"])
    print(f"the scheduled run started {late.total_seconds():.1f} s after its time")
    # The server rounds how early a run is to whole seconds; the flow's process imports Prefect and the pipeline before.
    assert -0.5 <= late.total_seconds() < 45
    assert months(working) == {"2013-01"}


def test_a_run_is_started_by_the_form(working: Cluster, page: Page, tmp_path: Path) -> None:
    """The form of a deployment explains its parameters, and its button starts a run with them."""
    deployment = working.deployment("portions")
    page.goto(f"{working.server.url}/deployments/deployment/{deployment['id']}/run?parameters=%7B%7D")
    expect(page.get_by_text("The number of the portion.")).to_be_visible()
    folder = working.folder / "by form"
    folder.mkdir()
    page.locator(".schema-form-property", has_text="folder").locator("input, textarea").first.fill(str(folder))
    page.screenshot(path=tmp_path / "form.png")
    page.get_by_role("button", name="Submit").click()
    run = wait_for(lambda: next(iter(working.flow_runs("portions")), None), what="the run of the form")
    assert run["parameters"]["folder"] == str(folder)
    assert run["created_by"] is None or run["created_by"]["type"] != "AUTOMATION"
    assert working.ended(run["id"])["state_name"] == "Completed"
    assert is_whole(folder, 1)


def months(cluster: Cluster, layer: str = "raw") -> set[str]:
    """Return the months of flights in a layer of the lake."""
    found = (cluster.lake / layer / "flights" / "flights").glob("*/rows.parquet")
    return {path.parent.name.removeprefix("window=") for path in found}


def test_a_backfill_collects_what_is_missing(working: Cluster) -> None:
    """Months that are added to the configuration are collected by one run, and processed by the automation after it."""
    raw = working.lake / "raw" / "flights" / "flights" / "window=2013-01" / "rows.parquet"
    before = raw.stat().st_mtime_ns
    write_config(working.clone, ["2013-01", "2013-02", "2013-03"])
    working.run(*prefect("deployment", "run", "collection/flights"))
    wanted = {"2013-01", "2013-02", "2013-03"}
    wait_for(lambda: months(working) == wanted, what="the months")
    wait_for(lambda: months(working, "processed") == wanted, what="the processed months")
    assert raw.stat().st_mtime_ns == before
    rows = {
        month: pq.read_metadata(working.lake / "raw/flights/flights" / f"window={month}" / "rows.parquet").num_rows
        for month in wanted
    }
    assert rows == {"2013-01": 27004, "2013-02": 24951, "2013-03": 28834}


def test_a_run_is_cancelled_by_the_button(working: Cluster, page: Page, tmp_path: Path) -> None:
    """The button of a run's page ends its jobs and all their processes, and the run and its task runs are Cancelled."""
    folder = working.folder / "cancelled"
    folder.mkdir()
    run_id = working.start("portions", folder=str(folder), seconds=600)
    wait_for(lambda: "RUNNING" in task_states(working, [run_id]), what="a running job")
    page.goto(f"{working.server.url}/runs/flow-run/{run_id}")
    page.get_by_role("button", name="Cancel").click()
    page.screenshot(path=tmp_path / "cancel.png")
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    assert working.ended(run_id)["state_name"] == "Cancelled"
    wait_for(lambda: set(task_states(working, [run_id])) == {"CANCELLED"}, what="cancelled task runs")
    assert list(folder.iterdir()) == []
    wait_for(
        lambda: not descendants(*(each.pid for each in working.workers)),
        what="the end of all processes of the run",
    )


def task_states(cluster: Cluster, run_ids: list[str]) -> Counter[str]:
    return Counter(run["state_type"] for run in cluster.task_runs(run_ids))


def descendants(*pids: int) -> list[int]:
    """Return the processes that these have started, and theirs."""
    found: list[int] = []
    ahead = list(pids)
    while ahead:
        with suppress(FileNotFoundError, ProcessLookupError):
            ahead += (begun := children(ahead.pop()))
            found += begun
    return found


def test_a_paused_schedule_starts_nothing(working: Cluster) -> None:
    """While a schedule is paused no run of it starts, and its runs that were waiting are gone."""
    deployment = working.deployment("portions")
    path = f"/deployments/{deployment['id']}/schedules"
    parameters = {"folder": str(working.folder)}
    schedule = {"schedule": {"interval": 3600}, "active": True, "parameters": parameters}
    (created,) = working.server.call("POST", path, [schedule])
    wait_for(lambda: scheduled_by_clock(working), what="runs of the schedule")
    working.run(*prefect("deployment", "schedule", "pause", "portions/portions", created["id"]))
    wait_for(lambda: not scheduled_by_clock(working), what="the end of the waiting runs")
    time.sleep(10)  # Five turns of the scheduler.
    assert not scheduled_by_clock(working)
    working.run(*prefect("deployment", "schedule", "resume", "portions/portions", created["id"]))
    wait_for(lambda: scheduled_by_clock(working), what="runs of the resumed schedule")
    working.server.call("DELETE", f"{path}/{created['id']}")


def scheduled_by_clock(cluster: Cluster) -> list[dict[str, Any]]:
    return [run for run in cluster.flow_runs("portions") if run["auto_scheduled"] and run["state_type"] == "SCHEDULED"]


def test_a_collision_is_refused(working: Cluster) -> None:
    """Of two collections of a tool at once, one completes and the other is cancelled with the reason."""
    runs = [working.start("flights") for _ in range(2)]
    ends = {run_id: working.ended(run_id) for run_id in runs}
    assert Counter(run["state_name"] for run in ends.values()) == {"Completed": 1, "Cancelled": 1}
    (refused,) = [run for run in ends.values() if run["state_name"] == "Cancelled"]
    assert "concurrency limit" in refused["state"]["message"].lower()


def test_workers_share_runs_and_one_of_them_is_lost(working: Cluster) -> None:
    """Two workers share 40 runs. One is killed with all its processes: its runs are started again, and no data is lost.

    Its runs and their task runs become Crashed, and the automation schedules the runs again within three minutes.
    """
    folder = working.folder / "shared"
    folder.mkdir()
    runs = [working.start("portions", folder=str(folder), number=number, seconds=4.0) for number in range(SHARED_RUNS)]
    names: dict[str, set[str]] = {}

    def both_have_finished_some() -> bool:
        for run_id in runs:
            names.setdefault(run_by(working, run_id), set()).add(run_id)
        return all(len(names.get(f"worker-{number}", ())) >= RUNS_AT_ONCE + 1 for number in range(2))

    wait_for(both_have_finished_some, what="runs of both workers")

    def of_victim(*state_types: str) -> set[str]:
        return {
            run_id
            for run_id in runs
            if run_by(working, run_id) == "worker-1" and working.flow_run(run_id)["state_type"] in state_types
        }

    def has_running_jobs() -> bool:
        running = of_victim("RUNNING")
        return bool(running) and task_states(working, list(running))["RUNNING"] > 0

    wait_for(has_running_jobs, what="running jobs of the worker that is to be lost")
    killed_at = time.time()
    kill_tree(working.workers[1].pid)
    lost = of_victim("RUNNING", "PENDING")
    assert lost

    def rescheduled(run_id: str) -> bool:
        return "AwaitingRetry" in working.states(run_id)

    wait_for(lambda: all(map(rescheduled, lost)), what="the lost runs to be scheduled")
    print(f"{len(lost)} runs of the killed worker were scheduled again within {time.time() - killed_at:.0f} s")
    ended: dict[str, str] = {}

    def another_has_ended() -> bool:
        found = map(working.flow_run, set(runs) - set(ended))
        new = {run["id"]: run["state_name"] for run in found if run["state_type"] in FINAL}
        ended.update(new)
        return bool(new)

    while len(ended) < len(runs):  # Those that were scheduled again wait behind all others.
        wait_for(another_has_ended, what=lambda: {run: working.states(run) for run in set(runs) - set(ended)})
    assert set(ended.values()) == {"Completed"}
    assert is_whole(folder, SHARED_RUNS)
    histories = {run_id: working.states(run_id) for run_id in lost}
    began = [run_id for run_id, names in histories.items() if "Running" in names[: names.index("AwaitingRetry")]]
    assert began
    assert all("Crashed" in histories[run_id] for run_id in began)

    def all_ended() -> bool:
        return set(task_states(working, runs)) <= FINAL

    wait_for(all_ended, what="the end of all task runs")
    states = task_states(working, runs)
    print(f"{SHARED_RUNS} runs, {len(began)} of them crashed: task runs {dict(states)}")
    assert states["COMPLETED"] >= SHARED_RUNS * PARTS
    assert states["CRASHED"] > 0


def run_by(cluster: Cluster, run_id: str) -> str:
    """Return the name of the worker that has a run, from its log."""
    for number in range(2):
        if run_id in (cluster.folder / f"worker-{number}.log").read_text():
            return f"worker-{number}"
    return ""


def kill_tree(pid: int) -> None:
    """Kill a worker with all that it has started, its sentinels too, as the loss of its machine does."""
    tree = [pid, *descendants(pid)]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # They are stopped, so that none reports the death of another.
        for each in tree:
            with suppress(ProcessLookupError):
                os.kill(each, number)
