"""A day of collection in compressed time: nothing grows, and every run is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.acceptance.soak import FAILING, FAULTS, HOURS, MARK, TICKS_PER_HOUR, TOOLS, fault_of
from tests.api_server import Answer, as_json, serving
from tests.servers import ROOT, Server, new_user_env, prefect_server
from tests.waiting import PATIENCE, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
"""Real seconds for the simulated day; it takes longer where the machine is too slow for that."""
MAX_SECONDS = 900.0
WARM_UP_HOURS = 6
ROWS = 3
JOBS = HOURS * TICKS_PER_HOUR * TOOLS

LIMITS = {
    # How much the mean of the last hours may exceed that of the first ones after the warm-up.
    "rss_mib": 8.0,
    "tree_mib": 16.0,
    "descriptors": 2.0,
    "threads": 2.0,
    "processes": 1.0,
    "disk_kib": 512.0,
}


def answer(path: str, body: Any) -> Answer:
    """Answer as the API of a tool; `/broken` is a server in trouble."""
    if path == "/broken":
        return 500, {}, b"no"
    return as_json([{"id": number} for number in range(ROWS)])


def count(server: Server, what: str, body: dict[str, Any]) -> Counter[str]:
    """Return the numbers of flow runs or task runs by the name of their state."""
    found: Counter[str] = Counter()
    offset = 0
    while page := server.call("POST", f"/{what}/filter", {"offset": offset, "sort": "ID_DESC", **body}):
        found.update(run["state_name"] for run in page)
        offset += len(page)
    return found


def test_a_day_of_collection(tmp_path: Path) -> None:
    """Memory, descriptors, threads, processes and disk are flat after the warm-up; no run is lost or wrongly told."""
    home, folder = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    folder.mkdir()
    with prefect_server(home, new_user_env(home)) as server, serving(answer) as (url, _):
        own = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "CRITICAL", MARK: str(os.getpid())}
        env = server.env | own
        command = [sys.executable, "-m", "tests.acceptance.soak", url, str(folder), str(SECONDS)]
        done = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=SECONDS + PATIENCE)
        assert done.returncode == 0, done.stdout[-4000:]
        *hours, outcome = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        for hour in hours:
            print(hour)
        print(outcome["ends"])
        assert len(hours) == HOURS
        assert outcome["wrong"] == []
        assert sum(outcome["ends"].values()) == JOBS

        faults = Counter(fault_of(tool, tick) for tool in range(TOOLS) for tick in range(HOURS * TICKS_PER_HOUR))
        assert 0.03 < (JOBS - faults[""]) / JOBS < 0.07
        assert set(FAULTS) <= set(faults)
        expected = {
            "Completed": faults[""] + faults["server error"] + faults["crash"],
            "TimedOut": faults["hang"],
            "Failed": faults["broken data"],
        }
        wait_for(lambda: count(server, "task_runs", {}) == expected, what=f"task runs {expected}")
        assert count(server, "flow_runs", {}) == {"Completed": HOURS * TICKS_PER_HOUR}

    assert {file.name for file in folder.glob("tool-*")} == {f"tool-{tool}.json" for tool in range(TOOLS)}
    for tool in range(TOOLS):
        collected = json.loads((folder / f"tool-{tool}.json").read_text())
        assert collected == {
            str(tick): ROWS for tick in range(HOURS * TICKS_PER_HOUR) if fault_of(tool, tick) not in FAILING
        }

    warm = hours[WARM_UP_HOURS:]
    early, late = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    grown = {name: mean(hour[name] for hour in late) - mean(hour[name] for hour in early) for name in LIMITS}
    print({name: round(value, 1) for name, value in grown.items()})
    assert {name: value for name, value in grown.items() if value > LIMITS[name]} == {}
    assert hours[-1]["seconds"] < MAX_SECONDS
