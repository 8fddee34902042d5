"""The long proof that nothing stays Running when the process of a flow is killed, at random moments.

`KILL_ROUNDS` is the number of rounds, in each of which one flow for each way of running jobs is killed. `KILL_SEED`
repeats their moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.prefect_server import Kind, MeasuredServer, prefect_server
from tests.servers import ROOT, prefect, running
from tests.waiting import PATIENCE, wait_for

SCRIPT = ROOT / "tests" / "acceptance" / "killable.py"
NAMES = ("ours", "stock", "bulk")
ROUNDS = int(os.environ.get("KILL_ROUNDS", "8"))
SEED = int(os.environ.get("KILL_SEED", "0")) or random.randrange(1 << 30)
MAX_SECONDS = float(os.environ.get("KILL_SECONDS", "10"))
"""Seconds after which everything must be ended, on a machine with nothing else to do."""
STEADY_SECONDS = 4.0
"""Seconds for which everything must stay ended: the server may still record what the flow had sent before its death."""
LOOK_SECONDS = 0.25
"""Seconds between two looks. More of them would keep the server busy that is measured."""
SWEPT_EVERY = 5
"""In every fifth round the sentinels are killed too, as with a whole container, and the command sweeps."""
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


@dataclass(kw_only=True)
class Place:
    """Where the flows run: by hand, under `serve`, or on a worker."""

    kind: str
    server: MeasuredServer
    folder: Path

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Start the runner or worker, if there is one."""
        commands = {
            "served": [sys.executable, str(self.folder / SCRIPT.name), "serve"],
            "worker": prefect("worker", "start", "--pool", "local", "--type", "process"),
        }
        if self.kind == "hand":
            yield
            return
        if self.kind == "worker":
            self.run(*prefect("work-pool", "create", "local", "--type", "process"))
            for name in NAMES:
                entrypoint = f"{self.folder / SCRIPT.name}:{name}"
                self.run(*prefect("--no-prompt", "deploy", entrypoint, "--name", name, "--pool", "local"))
        log = self.folder / f"{self.kind}.log"
        with running(commands[self.kind], env=dict(os.environ), cwd=self.folder, log=log):
            wait_for(lambda: len(self.server.post("/deployments/filter", {})) == len(NAMES), what="deployments")
            yield

    def run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=PATIENCE)

    def start(self, name: str, stack: ExitStack) -> tuple[str, int]:
        """Start a flow, and return the id of its flow run and its process once its jobs are submitted."""
        folder = self.folder / f"{name}-{time.monotonic_ns()}"
        folder.mkdir()
        if self.kind == "hand":
            command = [sys.executable, str(SCRIPT), "hand", name, str(folder)]
            log = stack.enter_context((folder / "log").open("wb"))
            stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
        else:
            (deployment,) = self.server.post("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
            parameters = {"folder": str(folder)}
            self.server.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        file = wait_for(lambda: next(folder.glob("*-*-*-*-*"), None), what=f"{name} to start")
        flow_run_id, _, pid = file.name.rpartition("-")
        return flow_run_id, int(pid)


@dataclass(kw_only=True)
class Victim:
    """A flow that is killed, and what the server knew of it just before."""

    server: MeasuredServer
    name: str
    flow_run_id: str
    pid: int

    def task_runs(self) -> dict[str, dict[str, Any]]:
        body = {"task_runs": {"flow_run_id": {"any_": [self.flow_run_id]}}, "limit": 200}
        return {run["id"]: run for run in self.server.post("/task_runs/filter", body)}

    def ends(self) -> dict[str, tuple[str, str]]:
        """Return the state ids and names of the task runs that are final."""
        runs = self.task_runs().values()
        return {run["id"]: (run["state_id"], run["state_name"]) for run in runs if run["state_type"] in FINAL}

    def flow_run_state(self) -> str:
        (run,) = self.server.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [self.flow_run_id]}}})
        return str(run["state_name"])

    def is_ended(self) -> bool:
        """Return whether it and its task runs are final. To read all of them would keep the server from recording."""
        ours: dict[str, Any] = {"flow_run_id": {"any_": [self.flow_run_id]}}
        final = {"state": {"type": {"any_": sorted(FINAL)}}}
        counts = [self.server.post("/task_runs/count", {"task_runs": each}) for each in (ours, ours | final)]
        return counts[0] == counts[1] and self.flow_run_state() == "Crashed"

    def sentinel(self) -> int:
        """Return the process id of its sentinel."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        (pid,) = [pid for pid in children if b"worker.sentinel" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(pid)


@pytest.mark.parametrize("kind", ["hand", "served", "worker"])
@pytest.mark.parametrize("database", ["tuned", "postgresql"])
def test_nothing_stays_running_when_a_flow_is_killed(database: Kind, kind: str, tmp_path: Path) -> None:
    """At whatever moment: after ten seconds all task runs and flow runs are final, and no end has changed."""
    chance, took = random.Random(SEED), []
    shutil.copy(SCRIPT, tmp_path)
    with (
        prefect_server(database, tmp_path) as server,
        server.environment(PREFECT_RUNNER_POLL_FREQUENCY="1", PREFECT_WORKER_QUERY_SECONDS="1", PYTHONPATH=str(ROOT)),
    ):
        place = Place(kind=kind, server=server, folder=tmp_path)
        with place.opened():
            for number in range(1, ROUNDS + 1):
                took += run_round(place, chance, swept=number % SWEPT_EVERY == 0)
    took.sort()
    print(f"{database}, {kind}: {len(took)} flows killed, ended after {took[len(took) // 2]:.1f} s (median), ", end="")
    print(f"{took[-1]:.1f} s (longest); KILL_SEED={SEED}")
    assert took[-1] < MAX_SECONDS, [round(each, 1) for each in took]


def run_round(place: Place, chance: random.Random, *, swept: bool) -> list[float]:
    """Start a flow of each kind and kill it; return the seconds until everything was ended."""
    moments = [chance.uniform(0.0, 6.0) for _ in NAMES]
    with ThreadPoolExecutor(len(NAMES)) as threads:
        took = list(threads.map(lambda name, moment: run_and_kill(place, name, moment, swept=swept), NAMES, moments))
    return [] if swept else took


def run_and_kill(place: Place, name: str, moment: float, *, swept: bool) -> float:
    with ExitStack() as stack:
        flow_run_id, pid = place.start(name, stack)
        victim = Victim(server=place.server, name=name, flow_run_id=flow_run_id, pid=pid)
        stack.callback(kill, pid)
        time.sleep(moment)
        before = victim.ends()
        took = seconds_to_end(victim, place, swept=swept)
        check(victim, before)
        return took


def seconds_to_end(victim: Victim, place: Place, *, swept: bool) -> float:
    killed_at = time.monotonic()
    if swept:
        kill(victim.sentinel())
    kill(victim.pid)
    if swept:
        end_flow_run(victim, place)
        done = subprocess.run(
            [sys.executable, "-m", "executor_adapter.cli", "prefect", "sweep", "--json"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert all(each["is_recorded"] for each in json.loads(done.stdout))
    return ended_for_good(victim) - killed_at


def ended_for_good(victim: Victim) -> float:
    """Return the monotonic time since which everything is ended, once it has stayed so for a while."""
    deadline, since = time.monotonic() + 60.0, None
    while since is None or time.monotonic() - since < STEADY_SECONDS:
        now = time.monotonic()
        since = (since or now) if victim.is_ended() else None
        assert now < deadline, f"{victim.name}: {victim.flow_run_state()}, {victim.task_runs()}"
        time.sleep(LOOK_SECONDS)
    return since


def end_flow_run(victim: Victim, place: Place) -> None:
    """Wait until the runner has ended the flow run; by hand nobody does, but its user."""
    if place.kind == "hand":
        state = {"state": {"type": "CRASHED"}, "force": True}
        place.server.post(f"/flow_runs/{victim.flow_run_id}/set_state", state)
    wait_for(lambda: victim.flow_run_state() == "Crashed", what=lambda: f"{victim.name}: {victim.flow_run_state()}")


def check(victim: Victim, before: dict[str, tuple[str, str]]) -> None:
    """Check what must hold after the death."""
    now = victim.ends()
    assert before.items() <= now.items(), f"{victim.name}: ends have changed"
    assert {name for _, name in now.values()} <= {"Completed", "Crashed"}, now


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
