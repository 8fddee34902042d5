"""A cancelled flow run ends its jobs, and the server records it: however it is cancelled, and wherever it runs.

`make nightly` runs one of the combinations, `make chaos` the others; by day prefect/test_cancellation.py and
prefect/test_signals.py hold each way to cancel.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.acceptance.browser import new_page
from tests.servers import ROOT, Server, new_user_env, prefect, running
from tests.shared_server import shared_server
from tests.waiting import wait_for

SCRIPT = ROOT / "tests" / "acceptance" / "cancellable.py"
WORKERS = 2
JOBS = 12
END_SECONDS = {"button": 10.0, "command": 10.0, "SIGTERM": 5.0, "SIGINT": 5.0, "shutdown": 10.0}
"""Seconds after which no process may be alive, where nothing else runs. A runner polls for a cancel, so it takes longer
than a signal."""

RUNNERS = ("ours", "stock", "bulk")
CHOSEN = ("button", "hand", "ours")
ALL = [
    *itertools.product(("button", "command", "SIGTERM", "SIGINT"), ("hand", "served", "worker"), RUNNERS),
    *itertools.product(("shutdown",), ("served", "worker"), RUNNERS),
]


@dataclass(frozen=True, kw_only=True)
class FlowRun:
    """A flow run whose first jobs are running. `host` is the process of the flow, or of its runner or worker."""

    id: str
    folder: Path
    server: Server
    host: Popen[bytes]
    by_hand: bool

    def pids(self, kind: str) -> list[int]:
        """Return the process ids of the flow, of its jobs, or of the processes that the jobs started."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"{kind}-*")]

    def anything_alive(self) -> bool:
        return any(_is_alive(pid) for kind in ("flow", "job", "child") for pid in self.pids(kind))

    def state(self) -> str:
        return str(self.server.call("GET", f"/flow_runs/{self.id}")["state_name"])

    def states(self) -> list[str]:
        """Return the states that it has had, each with its time, message and name."""
        states = self.server.call("GET", f"/flow_run_states/?flow_run_id={self.id}")
        return [f"{state['timestamp']} {state['name']}: {state['message']}" for state in states]

    def task_states(self) -> Counter[str]:
        return Counter(run["state_name"] for run in self._task_runs())

    def task_messages(self) -> set[str]:
        return {run["state"]["message"] for run in self._task_runs()}

    def _task_runs(self) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"id": {"any_": [self.id]}}, "limit": 200}
        runs: list[dict[str, Any]] = []
        while page := self.server.call("POST", "/task_runs/filter", wanted | {"offset": len(runs)}):
            runs += page
        return runs


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- start it ---


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Copy the flows to a directory outside the repository."""
    return Path(shutil.copy(SCRIPT, tmp_path))


@pytest.fixture
def server_of_all(tmp_path: Path) -> Iterator[Server]:
    """The server of all tests."""
    with shared_server() as url:
        yield Server(url=url.removesuffix("/api"), env=new_user_env(tmp_path, PREFECT_API_URL=url))


@pytest.fixture
def start(request: pytest.FixtureRequest, script: Path, tmp_path: Path) -> Iterator[Callable[..., FlowRun]]:
    """Return a function that starts a flow run in a place, and returns it once its jobs are running."""
    with ExitStack() as stack:

        def started(place: str, name: str, jobs: int = JOBS) -> FlowRun:
            server: Server = request.getfixturevalue("server_of_all" if place == "hand" else "server")
            folder = tmp_path / "began"
            folder.mkdir()
            arguments = [str(folder), str(jobs)]
            match place:
                case "hand":
                    command = [sys.executable, str(script), "hand", name, *arguments]
                case "served":
                    command = [sys.executable, str(script), "serve", name]
                case _:
                    _deploy(server, script, name)
                    command = prefect("worker", "start", "--pool", "local", "--type", "process")
            log = tmp_path / f"{place}.log"
            host = stack.enter_context(running(command, env=server.env, cwd=tmp_path, log=log))
            if place != "hand":
                wait_for(lambda: "being served" in log.read_text() or "started!" in log.read_text(), what="host")
                server.run_deployment(f"{name}/{name}", folder=str(folder), jobs=jobs)
            return _begun(server, folder, host, jobs, by_hand=place == "hand")

        yield started


def _deploy(server: Server, script: Path, name: str) -> None:
    pools = {pool["name"] for pool in server.call("POST", "/work_pools/filter", {})}
    if "local" not in pools:
        server.run(*prefect("work-pool", "create", "local", "--type", "process"))
    server.run(*prefect("--no-prompt", "deploy", f"{script}:{name}", "--name", name, "--pool", "local"))


def _begun(server: Server, folder: Path, host: Popen[bytes], jobs: int, *, by_hand: bool) -> FlowRun:
    wait_for(lambda: len(list(folder.glob("child-*"))) >= WORKERS and list(folder.glob("flow-*")), what="jobs")
    flow_run_id = (folder / "id").read_text()
    run = FlowRun(id=flow_run_id, folder=folder, server=server, host=host, by_hand=by_hand)
    wait_for(lambda: run.task_states() == {"Running": WORKERS, "Pending": jobs - WORKERS}, what="their states")
    return run


# --- cancel it ---


def _press_cancel(browser: Browser, run: FlowRun) -> float:
    """Press the button on the run's page, and return when it was pressed.

    On wide pages it is disabled for runs without a deployment; narrow pages have it in a menu for all runs.
    """
    page = new_page(browser, 500 if run.by_hand else 1400, 900)
    try:
        page.goto(f"{run.server.url}/runs/flow-run/{run.id}")
        if run.by_hand:
            page.locator(".flow-run-menu button").first.click()
            page.get_by_text("Cancel", exact=True).click()
        else:
            page.get_by_role("button", name="Cancel", exact=True).click()
        with page.expect_response("**/set_state"):  # A page that is closed before sends nothing.
            page.get_by_role("button", name="Confirm", exact=True).click()
        return time.monotonic()
    finally:
        page.close()


def _cancel(how: str, run: FlowRun, request: pytest.FixtureRequest) -> float:
    """Cancel the flow run, and return when that was."""
    match how:
        case "button":
            return _press_cancel(request.getfixturevalue("browser"), run)
        case "command":
            run.server.run(*prefect("flow-run", "cancel", run.id))
        case "shutdown":
            run.host.send_signal(signal.SIGTERM)
        case _:
            os.kill(run.pids("flow")[0], signal.Signals[how])
    return time.monotonic()


# --- check its end ---


def _assert_ended(
    run: FlowRun, cancelled_at: float, how: str, place: str, *, jobs: int = JOBS, is_alone: bool = True
) -> None:
    wait_for(lambda: not run.anything_alive(), what="the end of all processes")
    took = time.monotonic() - cancelled_at
    assert not is_alone or took < END_SECONDS[how], f"the last process lived for {took:.1f} s"
    assert len(run.pids("job")) == WORKERS, "a job started after the flow run was cancelled"
    if (how, place) == ("shutdown", "worker"):  # The worker kills the flow's process, which cannot report anything.
        wait_for(lambda: run.task_states() == {"Crashed": jobs}, what=f"{jobs} Crashed, {run.task_states()}")
        return
    wait_for(lambda: run.task_states() == {"Cancelled": jobs}, what=f"{jobs} Cancelled, {run.task_states()}")
    if how in ("button", "command"):
        wrong = {each for each in run.task_messages() if "its flow run was cancelled" not in each}
        assert not wrong, "a cancel says whose it was"
    # Prefect marks a flow as Crashed if a signal ends its process and its run was not cancelled.
    expected = "Crashed" if how.startswith("SIG") else "Cancelled"
    wait_for(lambda: run.state() == expected, what=lambda: f"a flow run that is {expected}, not {run.states()}")


@pytest.mark.parametrize(
    ("how", "place", "name"),
    [
        pytest.param(*each, marks=pytest.mark.nightly if each == CHOSEN else pytest.mark.chaos, id="-".join(each))
        for each in ALL
    ],
)
def test_a_cancelled_flow_run_ends_its_jobs(
    start: Callable[..., FlowRun], request: pytest.FixtureRequest, how: str, place: str, name: str
) -> None:
    """No process is left, no job starts later, and the flow run and its task runs are Cancelled."""
    run = start(place, name)
    cancelled_at = _cancel(how, run, request)
    _assert_ended(run, cancelled_at, how, place, is_alone=(how, place, name) != CHOSEN)


@pytest.mark.parametrize(("how", "place"), [("command", "hand"), ("command", "worker"), ("SIGTERM", "hand")])
@pytest.mark.chaos
def test_five_hundred_jobs_are_recorded_cancelled(
    start: Callable[..., FlowRun], request: pytest.FixtureRequest, how: str, place: str
) -> None:
    """All 500 jobs are recorded Cancelled, and none stays Pending or Running."""
    run = start(place, "ours", 500)
    cancelled_at = _cancel(how, run, request)
    _assert_ended(run, cancelled_at, how, place, jobs=500)
